"""PEARL: its mathematics against plain numpy in float64, its collection, and that it learns."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pearl_reference as reference
import pytest
from goal_mass import GoalMass, half_circle
from scipy import stats

from tamherd_jax.envs import Locomotion, collect_autoreset_steps, ml2
from tamherd_jax.herd.algorithm import meta_test, probe_tasks
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig
from tamherd_jax.pearl import PEARL, ContextualSAC, PEARLConfig, PEARLPolicy, ReplayBatch, Transition, losses, posterior
from tamherd_jax.types import ReplayLearner

OBS, ACTION, TASKS, CONTEXT, BATCH = 3, 2, 2, 5, 6
SMALL = PEARLConfig(
    latent_size=2, encoder_sizes=(4, 3), hidden_sizes=(5, 4), learning_rate=1e-2, pre_tanh_weight=1e-2, target_rate=0.1
)
pytestmark = pytest.mark.usefixtures("strict_ranks")
TINY = PEARLConfig(
    horizon=10,
    latent_size=2,
    encoder_sizes=(8,),
    hidden_sizes=(8,),
    initial_steps=30,
    prior_steps=20,
    posterior_steps=30,
    gradient_steps=3,
    meta_batch_size=2,
    batch_size=8,
    context_size=8,
    replay_capacity=500,
)


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape))


def random_transitions(rng, count):
    done = jnp.asarray(rng.random((TASKS, count)) < 0.3, float)
    obs, action = normal(rng, TASKS, count, OBS), jnp.tanh(normal(rng, TASKS, count, ACTION))
    return Transition(obs, action, normal(rng, TASKS, count), normal(rng, TASKS, count, OBS), done)


def random_batch(seed):
    rng = np.random.default_rng(seed)
    context, data = random_transitions(rng, CONTEXT), random_transitions(rng, BATCH)
    noise = normal(rng, TASKS, SMALL.latent_size), normal(rng, TASKS, BATCH, ACTION), normal(rng, TASKS, BATCH, ACTION)
    return ReplayBatch(context, data, *noise, reward_unit=jnp.asarray(1.7))


def as_numpy(batch):
    return jax.tree.map(np.asarray, dataclasses.asdict(batch))


@pytest.fixture
def sac(float64):
    return ContextualSAC(OBS, ACTION, SMALL)


VARIANTS = {
    "oyster": {},
    "exact": {"squash": "exact", "temperature": 0.3},
    "target-q": {"bootstrap": "q"},
    "layer-norm": {"critic_norm": "layer"},
    "categorical": {"critic_loss": "categorical", "value_bins": 7, "value_limit": 6.0},
    "all": {"squash": "exact", "bootstrap": "q", "critic_norm": "layer", "critic_loss": "categorical", "value_limit": 8.0},
}


@pytest.fixture(params=VARIANTS)
def variant(request, float64):
    return ContextualSAC(OBS, ACTION, dataclasses.replace(SMALL, **({"value_bins": 9} | VARIANTS[request.param])))


def small_state(sac):
    """Parameters in float64, moved off their tiny last layers so that every loss has curvature."""
    keys = iter(jax.random.split(jax.random.key(3), 200))
    state = jax.jit(sac.init)(jax.random.key(0))
    moved = jax.tree.map(lambda x: x.astype(float) + 0.3 * jax.random.normal(next(keys), x.shape, float), state.params)
    target = jax.tree.map(lambda x: x.astype(float) + 0.3 * jax.random.normal(next(keys), x.shape, float), state.target_value)
    return dataclasses.replace(state, params=moved, target_value=target, optimizers=to_double(state.optimizers))


def to_double(tree):
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def vector(variables, index=None):
    """A network's parameters in the reference's order."""
    return reference.flatten(reference.layers_of(variables if index is None else reference.row_of(variables, index)))


# The belief ----------------------------------------------------------------------------------------------------------


def test_posterior_equals_the_product_of_densities(float64):
    rng = np.random.default_rng(0)
    mean, var = rng.normal(size=(7, 2)), rng.uniform(0.3, 3.0, size=(7, 2))
    got_mean, got_var = posterior.product_of_gaussians(jnp.asarray(mean), jnp.asarray(var))
    grid = np.linspace(-8, 8, 20_001)
    for z in range(2):
        density = np.prod(stats.norm.pdf(grid[:, None], mean[:, z], np.sqrt(var[:, z])), axis=1)
        density /= density.sum()
        np.testing.assert_allclose(got_mean[z], density @ grid, atol=1e-10)
        np.testing.assert_allclose(got_var[z], density @ grid**2 - (density @ grid) ** 2, atol=1e-10)


def test_posterior_ignores_order_and_invalid_factors(float64):
    rng = np.random.default_rng(1)
    mean, var = normal(rng, 6, 3), jnp.exp(normal(rng, 6, 3))
    keep = np.array([5, 0, 3])
    valid = jnp.zeros(6).at[keep].set(1.0)
    nan = jnp.where(valid[:, None] > 0, mean, jnp.nan)
    got = posterior.product_of_gaussians(nan, jnp.where(valid[:, None] > 0, var, 0.0), valid)
    for a, b in zip(got, posterior.product_of_gaussians(mean[keep], var[keep]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_posterior_without_experience_is_the_prior():
    mean, var = posterior.product_of_gaussians(jnp.full((4, 2), jnp.nan), jnp.ones((4, 2)), jnp.zeros(4))
    assert mean.tolist() == [0, 0]
    assert var.tolist() == [1, 1]


def test_kl_from_prior(float64):
    mean, var = jnp.array([0.3, -1.2]), jnp.array([0.5, 2.0])
    x = np.linspace(-20, 20, 400_001)
    expected = 0.0
    for m, v in zip(mean, var, strict=True):
        p = stats.norm(m, np.sqrt(v))
        expected += np.sum(p.pdf(x) * (p.logpdf(x) - stats.norm.logpdf(x))) * (x[1] - x[0])
    np.testing.assert_allclose(posterior.kl_from_prior(mean, var), expected, rtol=1e-8)
    assert posterior.kl_from_prior(jnp.zeros(2), jnp.ones(2)) == 0.0


def test_latent_noise_has_the_belief_moments():
    noise = jax.random.normal(jax.random.key(0), (100_000, 2))
    z = posterior.latent_from_noise(jnp.array([[1.0, -2.0]]), jnp.array([[0.25, 4.0]]), noise)
    np.testing.assert_allclose(jnp.mean(z, 0), [1.0, -2.0], atol=0.02)
    np.testing.assert_allclose(jnp.var(z, 0), [0.25, 4.0], rtol=0.02)


# Losses and the gradient step ----------------------------------------------------------------------------------------


def test_squashed_log_prob_is_a_density(float64):
    """The density of tanh(u) integrates to the probability of its interval."""
    mean, log_std = jnp.array([0.4]), jnp.array([-0.3])
    action = np.linspace(-0.95, 0.95, 100_001)
    log_prob = losses.squashed_log_prob(jnp.arctanh(action)[:, None], mean[None], log_std[None])
    mass = np.trapezoid(np.exp(log_prob), action)
    edges = stats.norm.cdf(np.arctanh([-0.95, 0.95]), 0.4, np.exp(-0.3))
    np.testing.assert_allclose(mass, edges[1] - edges[0], rtol=1e-4)


def test_exact_density_keeps_its_gradient_where_the_clipped_one_is_flat(float64):
    """d/du log(1 - tanh(u)^2) = -2 tanh(u), at any u."""
    u = jnp.array([-30.0, -9.0, -1.0, 0.0, 0.5, 9.0, 30.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(losses.exact_log_slope))(u), -2 * np.tanh(u), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(losses.exact_log_slope(u[2:5]), np.log(1 - np.tanh(u[2:5]) ** 2), rtol=1e-12)
    np.testing.assert_allclose(losses.exact_log_slope(jnp.array(20.0)), 2 * np.log(2) - 40, rtol=1e-12)
    assert abs(jax.grad(losses.clipped_log_slope)(20.0)) < 1e-6
    zero, one = jnp.zeros(1), jnp.full(1, 20.0)
    np.testing.assert_allclose(losses.squashed_log_prob(one, one, zero), 38.6137 - 0.9189, atol=1e-3)


def test_categorical_loss_is_least_at_a_distribution_of_the_right_mean(float64):
    """The gradient is softmax less the target's bins: these from uniform logits, and none left at their logarithm."""
    head, targets = losses.categorical_head(51, 10.0), jnp.array([-3.3, 0.0, 7.4])
    gradient = jax.grad(lambda logits: jnp.sum(head.loss(logits, targets)))
    bins = 1 / 51 - gradient(jnp.zeros((3, 51)))
    best = jnp.log(jnp.maximum(bins, 1e-300))
    np.testing.assert_allclose(jnp.sum(bins, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(gradient(best), 0, atol=1e-12)
    np.testing.assert_allclose(head.value(best), targets, atol=1e-6)
    assert jnp.all(jnp.isfinite(head.loss(best, jnp.array([-1e9, 1e9, 10.0]))))


def test_posterior_of_a_vanishing_variance_is_finite():
    mean, var = posterior.product_of_gaussians(jnp.array([[2.0], [5.0]]), jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(mean, [2.0], rtol=1e-5)
    np.testing.assert_allclose(var, [posterior.MIN_FACTOR_VARIANCE], rtol=1e-5)


def test_a_time_limit_is_no_termination_in_the_target():
    y = losses.q_targets(jnp.array([1.0, 1.0]), jnp.array([0.0, 1.0]), jnp.array([10.0, 10.0]), 0.9, 5.0)
    np.testing.assert_allclose(y, [14.0, 5.0])


def test_objectives_equal_numpy(variant):
    state, batch, c = small_state(variant), random_batch(0), variant.config
    ref, data, p = reference.Reference(state, c), as_numpy(batch), state.params
    n = ref.nets
    qs = (n["q0"], n["q1"])
    got, (z, info) = jax.jit(variant.critic_objective)(p.encoder, p.critic, state.target_value, p.actor, batch)
    expected_z, kl = reference.latents(n["encoder"], data)
    np.testing.assert_allclose(z[:, 0], expected_z, rtol=1e-10)
    np.testing.assert_allclose(info["kl"] * TASKS, kl, rtol=1e-10)
    np.testing.assert_allclose(got, reference.critic_objective(n["encoder"], qs, ref.target, n["actor"], data, c), rtol=1e-10)
    got, (min_q, log_prob, _) = jax.jit(variant.actor_objective)(p.actor, p.critic, z, batch)
    np.testing.assert_allclose(got, reference.actor_objective(n["actor"], qs, expected_z, data, c), rtol=1e-10)
    expected_q, expected_log_prob, *_ = reference.act(n["actor"], qs, expected_z, data, c)
    np.testing.assert_allclose(min_q.ravel(), expected_q, rtol=1e-10)
    np.testing.assert_allclose(log_prob.ravel(), expected_log_prob, rtol=1e-10)
    if c.bootstrap == "value":
        got = variant.value_objective(p.value, min_q, log_prob, z, batch)
        expected = reference.value_objective(n["value"], expected_q, expected_log_prob, expected_z, data, c)
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_gradients_of_encoder_and_critic_equal_numpy(variant):
    state, batch = small_state(variant), random_batch(1)
    expected = reference.Reference(state, variant.config).gradients_of_critic_and_encoder(as_numpy(batch))
    grad = jax.jit(jax.grad(variant.critic_objective, argnums=(0, 1), has_aux=True))
    (encoder, critic), _ = grad(state.params.encoder, state.params.critic, state.target_value, state.params.actor, batch)
    np.testing.assert_allclose(vector(encoder), expected["encoder"], rtol=1e-8, atol=1e-13)
    for i in range(2):
        np.testing.assert_allclose(vector(critic, i), expected[f"q{i}"], rtol=1e-8, atol=1e-13)
    assert np.abs(expected["encoder"]).max() > 1e-3


def test_full_updates_equal_numpy(variant):
    """Three steps of all networks, the second without the policy: order of updates, Adam's memory, target, regularisers."""
    state = small_state(variant)
    ref, step = reference.Reference(state, variant.config), jax.jit(variant.step, static_argnums=2)
    for seed in range(3):
        batch = random_batch(10 + seed)
        state, info = step(state, batch, seed != 1)
        ref.step(as_numpy(batch), seed != 1)
        assert all(jnp.isfinite(value) for value in info.values())
    rows = {"q0": (state.params.critic, 0), "q1": (state.params.critic, 1)}
    for name, layers in ref.nets.items():
        got = vector(*rows.get(name, (getattr(state.params, name, None),)))
        np.testing.assert_allclose(got, reference.flatten(layers), rtol=1e-7, atol=1e-10, err_msg=name)
    if variant.has_value:
        np.testing.assert_allclose(vector(state.target_value), reference.flatten(ref.target), rtol=1e-7, atol=1e-10)
    else:
        for i in range(2):
            np.testing.assert_allclose(vector(state.target_value, i), reference.flatten(ref.target[i]), rtol=1e-7, atol=1e-10)


def test_who_is_trained_by_whom(sac):
    """One step's results depend on exactly these inputs; policy and V never reach the encoder, V never the policy."""
    depends = {
        "encoder": {"encoder", "critic", "target"},
        "critic": {"encoder", "critic", "target"},
        "actor": {"encoder", "critic", "target", "actor"},
        "value": {"encoder", "critic", "target", "actor", "value"},
    }
    state, batch, step = small_state(sac), random_batch(2), jax.jit(sac.step)
    plain = step(state, batch)[0]
    for changed in ("encoder", "critic", "target", "actor", "value"):
        other = step(perturbed(state, changed), batch)[0]
        for result, sources in depends.items():
            before, after = (getattr(x.optimizers, result)[0].mu for x in (plain, other))
            same = all(bool(jnp.array_equal(a, b)) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
            assert same == (changed not in sources), f"gradient of {result} when {changed} changes"


def perturbed(state, name):
    def move(tree):
        return jax.tree.map(lambda x: x * 1.1, tree)

    if name == "target":
        return dataclasses.replace(state, target_value=move(state.target_value))
    return dataclasses.replace(state, params=dataclasses.replace(state.params, **{name: move(getattr(state.params, name))}))


def test_latent_is_a_constant_to_policy_and_value(sac):
    state, batch = small_state(sac), random_batch(3)

    def through(encoder, which):
        _, (z, _) = sac.critic_objective(encoder, state.params.critic, state.target_value, state.params.actor, batch)
        loss, (min_q, log_prob, _) = sac.actor_objective(state.params.actor, state.params.critic, z, batch)
        return loss if which == "actor" else sac.value_objective(state.params.value, min_q, log_prob, z, batch)

    for which in ("actor", "value"):
        gradient = jax.jit(jax.grad(through), static_argnums=1)(state.params.encoder, which)
        assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(gradient))


def test_networks_have_the_authors_sizes_and_initial_ranges():
    state = jax.jit(ContextualSAC(17, 6, PEARLConfig()).init)(jax.random.key(0))
    count = {
        f.name: sum(x.size for x in jax.tree.leaves(getattr(state.params, f.name))) for f in dataclasses.fields(state.params)
    }
    assert count == {"encoder": 87_410, "critic": 2 * 189_601, "value": 187_801, "actor": 191_112}
    for name, width, last in (("encoder", 200, 3e-3), ("critic", 300, 3e-3), ("value", 300, 3e-3), ("actor", 300, 1e-3)):
        tree = getattr(state.params, name)["params"]["mlp"]
        for i in range(3):
            assert 0.98 / np.sqrt(width) < jnp.abs(tree[f"layer_{i}"]["kernel"]).max() <= 1.0 / np.sqrt(width)
            np.testing.assert_allclose(tree[f"layer_{i}"]["bias"], 0.1)
        for leaf in tree["layer_3"].values():
            assert 0 < jnp.abs(leaf).max() <= last
    assert not jnp.array_equal(*state.params.critic["params"]["mlp"]["layer_0"]["kernel"])


# Collection ----------------------------------------------------------------------------------------------------------


def collected(env, length=60, horizon=20):
    """An environment whose policy walks right and shows its context in the second action."""

    def act(context, obs, key):
        return jnp.stack([jnp.ones(()), context])

    def renew(key, episode):
        return 0.01 * episode

    key, goal = jax.random.key(0), jnp.array([0.0, 1.0])
    return jax.jit(lambda k: collect_autoreset_steps(env, act, jnp.zeros(()), renew, goal, k, length, horizon))(key)


def test_lanes_go_on_after_a_termination():
    steps = collected(GoalMass(fence=0.7))
    assert steps.steps == 60
    assert jnp.all(steps.valid == 1)
    ends = np.flatnonzero(steps.terminated)
    assert len(ends) >= 9
    starts = np.append(0, ends[:-1] + 1)
    assert jnp.all(jnp.abs(steps.obs[starts]) < 0.25), "every termination is followed by a reset"
    assert len(np.unique(np.asarray(steps.obs[starts, 0]))) == len(starts), "resets are fresh"
    assert jnp.all(jnp.linalg.norm(steps.next_obs[ends], axis=1) > 0.7), "the step that ends an episode keeps its own end"
    np.testing.assert_allclose(steps.actions[:, 1], 0.01 * steps.episode, rtol=1e-6, err_msg="a new context on every reset")
    np.testing.assert_allclose(steps.returns, jnp.sum(steps.rewards[: ends[0] + 1]), rtol=1e-6)


def test_a_time_limit_cuts_without_terminating():
    steps = collected(GoalMass())
    assert jnp.all(steps.terminated == 0)
    assert np.bincount(steps.episode).tolist() == [20, 20, 20]
    assert jnp.all(jnp.abs(steps.obs[::20]) < 0.25)
    assert jnp.all(steps.next_obs[19::20, 0] > 2.0), "the last transition leads where the step led, not to the reset"


def test_a_diverged_state_is_masked_and_replaced():
    steps = collected(GoalMass(poison=1.0))
    assert steps.nonfinite >= 6
    assert steps.steps == 60 - steps.nonfinite
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(steps))
    assert jnp.all(jnp.where(steps.valid == 0, steps.terminated, 0) == 0)


# The learner ---------------------------------------------------------------------------------------------------------

GOALS = half_circle(3)
WEIGHTS = jnp.array([0.5, 0.0, 0.5])


def learner(fence=jnp.inf, config=TINY):
    return PEARL(GoalMass(fence), meta_batch_size=4, tasks=3, config=config)


class Ran(NamedTuple):
    """A learner of terminating episodes after one epoch: what is compiled, its state, and what preparation and epoch report."""

    pearl: PEARL
    init: Any
    prefill: Any
    epoch: Any
    state: Any
    prepared: Any
    trained: Any


@pytest.fixture(scope="module")
def ran():
    pearl, keys = learner(fence=0.3), jax.random.split(jax.random.key(0), 3)
    init, prefill, epoch = jax.jit(pearl.init), jax.jit(pearl.prefill), jax.jit(pearl.train_epoch)
    state, prepared = prefill(keys[1], init(keys[0]), GOALS, WEIGHTS)
    state, trained = epoch(keys[2], state, GOALS, WEIGHTS)
    return Ran(pearl, init, prefill, epoch, state, prepared, trained)


def test_an_epoch_delivers_its_full_number_of_valid_transitions(ran):
    pearl, state, first, epoch = ran.pearl, ran.state, ran.prepared, ran.trained
    assert first.steps == 2 * TINY.initial_steps
    assert epoch.steps == pearl.steps_per_epoch == 4 * (TINY.prior_steps + TINY.posterior_steps)
    assert state.full.size.tolist() == [130, 0, 130], "30 initially and 2 tasks x 50 each; none for a task of weight 0"
    assert state.encoder.size.tolist() == [20, 0, 20], "the last draw's prior phase alone"
    assert state.full.experience.terminated.sum() > 10
    assert jnp.isnan(epoch.before[1])
    assert jnp.all(jnp.isfinite(epoch.before[jnp.array([0, 2])]))
    assert all(bool(jnp.isfinite(value)) for value in epoch.diagnostics.values())


def test_the_encoder_buffer_is_of_the_full_buffers_last_prior_phase(ran):
    state = ran.state
    for task in (0, 2):
        context, full = state.encoder.experience.obs[task, :20], state.full.experience.obs[task, :130]
        np.testing.assert_array_equal(context, full[50:70], "second draw's prior phase: after 30 initial and 20 of the first")


def test_a_context_window_keeps_the_latest_prior_phases_of_every_draw():
    pearl = learner(fence=0.3, config=dataclasses.replace(TINY, context_window=60, context_episodes=1))
    keys = jax.random.split(jax.random.key(0), 3)
    state, _ = jax.jit(pearl.prefill)(keys[1], jax.jit(pearl.init)(keys[0]), GOALS, WEIGHTS)
    state, trained = jax.jit(pearl.train_epoch)(keys[2], state, GOALS, WEIGHTS)
    assert state.encoder.size.tolist() == [60, 0, 60]
    assert all(bool(jnp.isfinite(value)) for value in trained.diagnostics.values())
    for task in (0, 2):
        held = np.roll(state.encoder.experience.obs[task], -int(state.encoder.cursor[task]), axis=0)
        full = state.full.experience.obs[task]
        np.testing.assert_array_equal(held, full[10:70], "20 of the 30 initial steps, and the 20 of each of two draws")


def test_stored_actions_are_squashed_and_rewards_those_of_the_task(ran):
    state = ran.state
    stored = jax.tree.map(lambda leaf: leaf[0, :130], state.full.experience)
    assert jnp.all(jnp.abs(stored.action) < 1)
    np.testing.assert_allclose(stored.next_obs, stored.obs + 0.15 * stored.action, atol=1e-6)
    distance = [jnp.linalg.norm(x - GOALS[:1], axis=1) for x in (stored.obs, stored.next_obs)]
    np.testing.assert_allclose(stored.reward, 10 * (distance[0] - distance[1]), atol=1e-5)


def test_a_vmapped_learner_equals_itself_alone_and_a_dead_one_harms_nobody(ran):
    keys = jax.random.split(jax.random.key(5), 3)
    rows = [ran.prefill(key, ran.init(key), GOALS, WEIGHTS)[0] for key in keys]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    poisoned = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), states.train.params)
    states = dataclasses.replace(states, train=dataclasses.replace(states.train, params=poisoned))
    together, metrics = jax.jit(jax.vmap(ran.pearl.train_epoch, (0, 0, None, None)))(keys, states, GOALS, WEIGHTS)
    for row in (0, 2):
        alone, _ = ran.epoch(keys[row], rows[row], GOALS, WEIGHTS)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[row], rtol=2e-4, atol=2e-5)
    assert metrics.steps[1] == 0
    assert metrics.nonfinite[1] == ran.pearl.steps_per_epoch
    assert jnp.all(jnp.isfinite(together.full.experience.obs[1]))


def test_an_unprepared_epoch_trains_on_what_it_collected(ran):
    state, metrics = ran.epoch(jax.random.key(1), ran.init(jax.random.key(0)), GOALS, WEIGHTS)
    assert state.full.size.tolist() == [100, 0, 100]
    assert all(bool(jnp.isfinite(value)) for value in metrics.diagnostics.values())


def test_settings_are_leaves_of_one_program():
    """Rows of a vmap over settings equal learners of those settings alone; no learning rate leaves a learner where it was."""
    configs = [
        dataclasses.replace(OPTIONS, learning_rate=rate, reward_scale=scale) for rate, scale in ((0.0, 1.0), (1e-2, 9.0))
    ]
    settings = jax.tree.map(lambda *leaves: jnp.array(leaves), *configs)

    def trained(config, key):
        pearl = learner(config=config)
        state, _ = pearl.prefill(key, pearl.init(key), GOALS, WEIGHTS)
        return pearl.train_epoch(key, state, GOALS, WEIGHTS)[0].train

    key = jax.random.key(0)
    together = jax.jit(jax.vmap(trained, (0, None)))(settings, key)
    alone = jax.jit(lambda k: trained(configs[1], k))(key)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=2e-4, atol=2e-5)
    start = jax.jit(learner(config=OPTIONS).init)(key).train.params
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(a[0], b)


OPTIONS = dataclasses.replace(
    TINY, gradient_steps=4, policy_delay=2, critic_norm="layer", bootstrap="q", squash="exact", reward_unit="magnitude"
)


def test_rewards_count_in_units_of_their_mean_magnitude():
    """Tasks of weight 0 and rows not yet filled do not count."""
    pearl = learner(config=OPTIONS)
    state, _ = jax.jit(pearl.prefill)(jax.random.key(1), pearl.init(jax.random.key(0)), GOALS, jnp.ones(3))
    reward = np.asarray(state.full.experience.reward)
    unit = jax.jit(pearl._reward_unit)(state.full, WEIGHTS)
    np.testing.assert_allclose(unit, np.abs(reward[[0, 2], :30]).mean(), rtol=1e-4)


def test_a_delayed_policy_moves_every_second_step():
    pearl = learner(config=OPTIONS)
    state, _ = jax.jit(pearl.prefill)(jax.random.key(1), pearl.init(jax.random.key(0)), GOALS, WEIGHTS)
    train, _ = jax.jit(pearl._improve)(jax.random.key(2), state, WEIGHTS)
    assert train.optimizers.critic[0].count == 4
    assert train.optimizers.actor[0].count == 2


def test_a_donated_state_is_not_copied():
    config = dataclasses.replace(TINY, replay_capacity=100_000)
    pearl = learner(config=config)
    state = jax.eval_shape(pearl.init, jax.random.key(0))
    program = jax.jit(pearl.train_epoch, donate_argnums=1).lower(jax.random.key(1), state, GOALS, WEIGHTS).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes > pearl.replay_bytes
    assert memory.temp_size_in_bytes < 0.1 * pearl.replay_bytes


def test_replay_memory_is_checked_before_anything_is_allocated():
    pearl = PEARL(Locomotion("mujoco"), 20, 4)
    assert pearl.replay_bytes == pytest.approx(4 * (1_000_000 + 2000) * 42 * 4, rel=1e-3)
    pearl.check_memory(50, 80 * 2**30)
    with pytest.raises(ValueError, match=r"lower replay_capacity from 1000000 to \d+, or train fewer seeds at once"):
        pearl.check_memory(500, 80 * 2**30)


def test_settings_that_cannot_run_are_refused():
    with pytest.raises(ValueError, match=r"prior steps must be a multiple of the horizon 200"):
        PEARLConfig(prior_steps=1050)
    with pytest.raises(ValueError, match=r"posterior steps must be a multiple of the horizon 200, at least 2 of it, not 200"):
        PEARLConfig(posterior_steps=200)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        PEARLConfig(batch_size=0)
    with pytest.raises(ValueError, match="learning_rate must be finite"):
        PEARLConfig(learning_rate=float("nan"))
    with pytest.raises(ValueError, match="bootstrap must be one of value, q"):
        PEARLConfig(bootstrap="x")
    with pytest.raises(ValueError, match="context window must be a multiple of the horizon 200, not 300"):
        PEARLConfig(context_window=300)
    with pytest.raises(ValueError, match="gradient steps must be a multiple of the policy delay 3, not 2000"):
        PEARLConfig(policy_delay=3)
    with pytest.raises(ValueError, match="replay capacity must be at least 2000"):
        PEARLConfig(replay_capacity=10)


def test_probe_episodes_carry_the_latent_they_were_acted_on():
    pearl = learner()
    state = jax.jit(pearl.init)(jax.random.key(0))
    actor, episodes = jax.jit(lambda k: pearl.probe(k, state, GOALS[0], 4))(jax.random.key(1))
    assert episodes.obs.shape == (4, 10, 2 + 2)
    z = episodes.obs[:, :, 2:]
    np.testing.assert_array_equal(z, jnp.broadcast_to(z[:, :1], z.shape), "held throughout an episode")
    assert len(np.unique(np.asarray(z[:, 0, 0]))) == 4, "one latent an episode"
    policy = PEARLPolicy(actor, z[0, 0])
    for a, b in zip(
        pearl.distribution(policy, episodes.obs[0, :, :2]), pearl.distribution(actor, episodes.obs[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    seen = pearl.observed(episodes)
    np.testing.assert_allclose(seen.next_obs, seen.obs + 0.15 * seen.actions, atol=1e-6)


def test_adaptation_infers_from_all_valid_steps_and_acts_on_the_mean():
    pearl = learner(fence=0.3, config=dataclasses.replace(TINY, deterministic_exploration=False))
    state = pearl.without_replay(jax.jit(pearl.init)(jax.random.key(0)))
    policy, episodes = jax.jit(lambda k: pearl.adapt(k, state, GOALS[0], 2))(jax.random.key(2))
    mean, var = pearl.infer(state, episodes)
    seen = pearl.observed(episodes)
    keep = np.asarray(seen.valid) > 0
    assert 0 < keep.sum() < keep.size
    context = {"obs": seen.obs[keep], "action": seen.actions[keep], "reward": seen.rewards[keep]}
    encoder = reference.layers_of(state.train.params.encoder)
    expected = reference.posterior(encoder, jax.tree.map(lambda x: np.asarray(x, np.float64), context))
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, expected[1], rtol=1e-4)
    assert jnp.all(jnp.abs(policy.latent - mean) < 6 * jnp.sqrt(var))
    obs = jnp.array([0.2, -0.1])
    action = pearl.act(policy, (), obs, jax.random.key(0))[0]
    np.testing.assert_array_equal(action, pearl.act(policy, (), obs, jax.random.key(1))[0], "no noise at test time")
    np.testing.assert_allclose(action, jnp.tanh(pearl.distribution(policy, obs)[0]))


def test_herd_code_runs_on_pearl(ran):
    """The replay protocol, the Fisher embedding of a probe, and the meta-test."""
    pearl, state = ran.pearl, ran.state
    assert isinstance(pearl, ReplayLearner)
    probe = pearl.without_replay(state)
    embedding = Embedding(EmbeddingConfig())
    features, steps = jax.jit(lambda k: probe_tasks(pearl, embedding, k, probe, GOALS, 2))(jax.random.key(1))
    with jax.numpy_rank_promotion("allow"):
        gram = embedding.self_gram(features)
    assert gram.shape == (3, 3)
    assert jnp.all(jnp.isfinite(gram))
    assert 0 < steps <= 3 * 2 * 10
    members = jax.tree.map(lambda leaf: leaf[None], probe)
    result = jax.jit(lambda k: meta_test(pearl, k, members, jnp.zeros(3, int), GOALS, 2, 3))(jax.random.key(2))
    assert jnp.all(jnp.isfinite(result.after))
    assert 0 < result.steps <= 3 * 2 * 10


def test_ml2_mixes_bodies():
    """Both bodies in one program; a fallen walker's environment goes on."""
    config = dataclasses.replace(TINY, horizon=100, **IN_HUNDREDS)
    pearl = PEARL(Locomotion("mujoco"), meta_batch_size=4, tasks=4, config=config)
    state = jax.jit(pearl.init)(jax.random.key(0))
    state, metrics = jax.jit(pearl.prefill)(jax.random.key(1), state, ml2().tasks, jnp.ones(4) / 4)
    assert state.full.size.tolist() == [200] * 4
    assert metrics.steps == 800
    assert metrics.nonfinite == 0
    falls = jnp.sum(state.full.experience.terminated, axis=1)
    assert jnp.all(falls[:2] == 0), "a cheetah's episode is only ever cut"
    assert jnp.all(falls[2:] > 2)


IN_HUNDREDS = {"initial_steps": 200, "prior_steps": 200, "posterior_steps": 200}


LEARNING = PEARLConfig(
    horizon=20,
    discount=0.8,
    latent_size=3,
    encoder_sizes=(32, 32),
    hidden_sizes=(64, 64),
    learning_rate=2e-3,
    target_rate=0.05,
    initial_steps=200,
    prior_steps=100,
    posterior_steps=100,
    gradient_steps=150,
    batch_size=64,
    context_size=64,
    replay_capacity=10_000,
    deterministic_exploration=False,
)


@pytest.mark.slow
def test_pearl_finds_goals_that_blind_sac_cannot():
    """Of 10 for reaching the goal, PEARL gets at least 7 after two episodes and SAC without a latent at most 3."""
    goals, returns = half_circle(6), {}
    weights = jnp.ones(6) / 6
    for use_context in (True, False):
        pearl = PEARL(GoalMass(), 6, 6, dataclasses.replace(LEARNING, use_context=use_context))
        state = jax.jit(pearl.init)(jax.random.key(0))
        state, _ = jax.jit(pearl.prefill)(jax.random.key(1), state, goals, weights)
        epoch = jax.jit(pearl.train_epoch, donate_argnums=1)
        for i in range(40 if use_context else 15):
            state, _ = epoch(jax.random.fold_in(jax.random.key(2), i), state, goals, weights)
        members = jax.tree.map(lambda leaf: leaf[None], pearl.without_replay(state))
        test = jax.jit(lambda k, m, pearl=pearl: meta_test(pearl, k, m, jnp.zeros(6, int), goals, 2, 1))
        results = [test(jax.random.key(100 + i), members) for i in range(5)]
        returns[use_context] = float(np.mean([result.after for result in results]))
    assert returns[True] > 7.0, returns
    assert returns[False] < 3.0, returns
