import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from point_mass import PointMass, point_tasks

from tamherd_jax.envs import Locomotion, collect_episodes, systematic_resample, take_tasks
from tamherd_jax.maml import MAML, MAMLConfig, TRPOConfig
from tamherd_jax.maml.learner import TaskBatch

pytestmark = pytest.mark.usefixtures("strict_ranks")
SMALL = MAMLConfig(episodes_per_task=3, horizon=5, hidden_sizes=(8,))


def random_batch(rng, tasks=2, episodes=3, length=5, obs=1, action=1):
    valid = np.ones((tasks, episodes, length))
    valid[0, 1, 2:] = 0.0
    return TaskBatch(
        obs=jnp.asarray(rng.normal(size=(tasks, episodes, length, obs))),
        actions=jnp.asarray(rng.normal(size=(tasks, episodes, length, action))),
        log_prob=jnp.asarray(rng.normal(size=valid.shape)),
        advantages=jnp.asarray(rng.normal(size=valid.shape) * valid),
        valid=jnp.asarray(valid),
    )


# Task draws -----------------------------------------------------------------------------------------------------------


def test_equal_weights_give_an_exactly_balanced_meta_batch():
    draw = jax.jit(jax.vmap(lambda k: systematic_resample(k, jnp.ones(4), 20)))
    counts = jax.vmap(lambda i: jnp.bincount(i, length=4))(draw(jax.random.split(jax.random.key(0), 500)))
    np.testing.assert_array_equal(counts, 5)


def test_weights_are_followed_within_one_and_zero_weight_is_never_drawn():
    weights = jnp.array([0.0, 0.55, 0.0, 0.15, 0.3, 0.0])
    draws = jax.jit(jax.vmap(lambda k: systematic_resample(k, weights, 7)))(jax.random.split(jax.random.key(1), 2000))
    counts = np.stack([(np.asarray(draws) == n).sum(1) for n in range(6)], 1)
    assert (counts[:, [0, 2, 5]] == 0).all()
    assert (np.abs(counts - 7 * np.asarray(weights)) <= 1.001).all()
    np.testing.assert_allclose(counts.mean(0), 7 * np.asarray(weights), atol=0.05)


# One learner ----------------------------------------------------------------------------------------------------------


def test_the_inner_step_uses_each_tasks_own_mean(float64):
    """A task's step must not shrink with the number of tasks, nor with the padding of another."""
    learner = MAML(PointMass(), 2, SMALL)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), learner.init(jax.random.key(0)).params)
    batch = random_batch(np.random.default_rng(0))
    together = jax.vmap(learner._adapt, in_axes=(None, 0))(params, batch)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], batch)

        flat, unravel = ravel_pytree(params)

        def loss(flat, one=one, unravel=unravel):
            mean, log_std = learner.distribution(unravel(flat), one.obs)
            log_prob = -0.5 * (((one.actions - mean) / jnp.exp(log_std)) ** 2 + 2 * log_std + jnp.log(2 * jnp.pi)).sum(-1)
            return -(log_prob * one.advantages * one.valid).sum() / one.valid.sum()

        expected = flat - 0.1 * jax.grad(loss)(flat)
        ours = ravel_pytree(jax.tree.map(lambda leaf, i=i: leaf[i], together))[0]
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_the_ratios_inner_step_moves_with_theta_as_the_expected_return_does(float64):
    """On a quadrature of all actions the ratio is the exact expected advantage J(theta), by hand of a Gaussian of mean m and
    deviation s: d theta' / d theta = I + alpha J''. The likelihood's derivative misses what drawing other actions would bring.
    """
    learner = MAML(PointMass(), 1, dataclasses.replace(SMALL, inner_loss="ratio", inner_step_size=0.3, hidden_sizes=()))
    mean, log_std = 0.4, -0.2
    nodes, weights = np.polynomial.legendre.leggauss(400)
    actions, weights = mean + 8.0 * nodes, 8.0 * weights
    log_prob = -0.5 * ((actions - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    advantages = (actions**3 - actions) * np.exp(log_prob) * weights * weights.size  # paid: a^3 - a
    row = {"actions": actions[:, None], "log_prob": log_prob, "advantages": advantages, "valid": np.ones(400)}
    row = {name: jnp.asarray(value)[None] for name, value in row.items()}
    batch = TaskBatch(obs=jnp.zeros((1, 400, 1)), **row)
    flat, unravel = ravel_pytree(jax.tree.map(lambda p: p.astype(jnp.float64), learner.init(jax.random.key(0)).params))
    names = ["log_std" if "log_std" in str(path) else str(path[-1].key) for path, _ in jax.tree.leaves_with_path(unravel(flat))]
    m, k = names.index("bias"), names.index("log_std")
    theta = jnp.zeros_like(flat).at[m].set(mean).at[k].set(log_std)

    def adapted(theta, learner=learner):
        return ravel_pytree(learner._adapt(unravel(theta), batch))[0]

    s2 = np.exp(2 * log_std)  # J = m^3 + 3 m s^2 - m
    gradient = np.array([3 * mean**2 + 3 * s2 - 1, 6 * mean * s2])
    hessian = np.array([[6 * mean, 6 * s2], [6 * s2, 12 * mean * s2]])
    np.testing.assert_allclose((adapted(theta) - theta)[np.array([m, k])], 0.3 * gradient, rtol=1e-8)
    jacobian = jax.jit(jax.jacobian(adapted))(theta)[np.ix_([m, k], [m, k])]
    np.testing.assert_allclose(jacobian, np.eye(2) + 0.3 * hessian, rtol=1e-7)
    likelihood = MAML(PointMass(), 1, dataclasses.replace(learner.config, inner_loss="likelihood"))
    np.testing.assert_allclose(adapted(theta, likelihood), adapted(theta), rtol=1e-10)
    other = jax.jit(jax.jacobian(lambda t: adapted(t, likelihood)))(theta)[np.ix_([m, k], [m, k])]
    assert np.abs(other - jacobian).max() > 0.5


def test_the_ratio_is_one_where_the_policy_that_acted_stands():
    """A batch keeps the log-probabilities of the policy that acted: the first step is the likelihood's."""
    learner = MAML(PointMass(), 2, dataclasses.replace(SMALL, inner_loss="ratio"))
    state, task = learner.init(jax.random.key(0)), take_tasks(point_tasks().tasks, 1)
    policy, _ = jax.jit(lambda k, s: learner.adapt(k, s, task, 3))(jax.random.key(3), state)
    likelihood = MAML(PointMass(), 2, SMALL)
    same, _ = jax.jit(lambda k, s: likelihood.adapt(k, s, task, 3))(jax.random.key(3), state)
    np.testing.assert_allclose(ravel_pytree(policy)[0], ravel_pytree(same)[0], atol=1e-6)
    assert np.abs(ravel_pytree(policy)[0] - ravel_pytree(state.params)[0]).max() > 1e-3


@pytest.mark.parametrize(("first_order", "entropy"), [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_the_outer_gradient_equals_finite_differences(float64, first_order, entropy):
    """One tiny trust-region step without curvature (huge damping) moves along the meta-gradient of the adapted loss."""
    config = dataclasses.replace(
        SMALL, first_order=first_order, inner_step_size=0.5, outer_loss="likelihood", hidden_sizes=(3,),
        entropy_coefficient=entropy, trpo=TRPOConfig(cg_damping=1e8, max_kl=1e-14, cg_tolerance=0.0, cg_iterations=2),
    )  # fmt: skip
    learner = MAML(PointMass(), 2, config)
    rng = np.random.default_rng(1)
    support, query = random_batch(rng), random_batch(rng)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), learner.init(jax.random.key(1)).params)
    new, _ = jax.jit(learner._outer_step)(params, support, query)
    flat, unravel = ravel_pytree(params)
    step = np.asarray(ravel_pytree(new)[0] - flat)

    @jax.jit
    def objective(theta):
        adapted = jax.vmap(learner._adapt, in_axes=(None, 0))(unravel(theta), support)
        nats = adapted["params"]["log_std"] + 0.5 * np.log(2 * np.pi * np.e)  # one action: [M, 1]
        return jnp.mean(jax.vmap(learner._inner_loss)(adapted, query)) - entropy * jnp.mean(nats)

    eye = 1e-6 * np.eye(flat.size)
    finite = np.array([(objective(flat + e) - objective(flat - e)) / 2e-6 for e in eye])
    cosine = step @ finite / np.linalg.norm(step) / np.linalg.norm(finite)
    if first_order:
        assert cosine > -0.9999
    else:
        np.testing.assert_allclose(cosine, -1.0, atol=1e-6)


def test_padded_steps_do_not_matter():
    """Whatever stands in steps that are not valid, the update is the same."""
    learner = MAML(PointMass(), 2, SMALL)
    rng = np.random.default_rng(2)
    support, query = random_batch(rng), random_batch(rng)
    params = learner.init(jax.random.key(2)).params

    def junk(batch):
        return batch.replace(
            obs=jnp.where(batch.valid[..., None] > 0, batch.obs, 7.0),
            actions=jnp.where(batch.valid[..., None] > 0, batch.actions, -3.0),
        )

    step = jax.jit(learner._outer_step)
    clean, dirty = step(params, support, query), step(params, junk(support), junk(query))
    jax.tree.map(np.testing.assert_array_equal, clean[0], dirty[0])
    assert float(clean[1]["accepted"]) == 1.0


def test_options_change_what_they_name():
    """Each option changes the adapted parameters of the same episodes; garage's network baseline and shared log-std work."""
    task = take_tasks(point_tasks().tasks, 1)
    adapted = {}
    for name, changes in {
        "default": {},
        "variance": {"advantage_scale": "variance"},
        "frozen": {"baseline": "frozen"},
        "two steps": {"inner_steps": 2},
        "larger step": {"inner_step_size": 0.2},
        "shared": {"shared_log_std": True},
    }.items():
        learner = MAML(PointMass(), 4, dataclasses.replace(SMALL, **changes))
        state = learner.init(jax.random.key(0))
        policy, _ = jax.jit(lambda k, s, learner=learner: learner.adapt(k, s, task, 3))(jax.random.key(3), state)
        adapted[name] = np.asarray(ravel_pytree(policy)[0])
        assert np.isfinite(adapted[name]).all()
    for name in set(adapted) - {"default", "shared"}:
        assert np.abs(adapted[name] - adapted["default"]).max() > 1e-5, name
    six = dataclasses.replace(SMALL, shared_log_std=True)
    assert MAML(Locomotion("mujoco"), 4, six).init(jax.random.key(0)).params["params"]["log_std"].shape == (1,)


def test_metrics_are_per_task_means_of_the_tasks_drawn():
    tasks = point_tasks()
    learner = MAML(PointMass(), 6, SMALL)
    state = learner.init(jax.random.key(0))
    _, metrics = jax.jit(learner.train_epoch)(jax.random.key(4), state, tasks.tasks, jnp.array([1.0, 0.0, 1.0, 0.0]))
    assert np.isnan(metrics.before[1])
    assert np.isnan(metrics.after[3])
    assert float(metrics.steps) == 2 * 6 * 3 * 5 == learner.steps_per_epoch
    draw_key, collect_key = jax.random.split(jax.random.key(4))
    index = np.asarray(systematic_resample(draw_key, jnp.array([1.0, 0.0, 1.0, 0.0]), 6))
    drawn = take_tasks(tasks.tasks, index)
    episodes = jax.vmap(
        lambda k, task: collect_episodes(learner.env, lambda o, k: learner.act(state.params, (), o, k)[0], task, k, 3, 5)
    )(jax.random.split(collect_key, (2, 6))[0], drawn)
    for n in (0, 2):
        np.testing.assert_allclose(metrics.before[n], np.asarray(episodes.returns)[index == n].mean(), rtol=1e-5)


def test_a_learner_counts_its_epochs_for_a_kl_bound_that_decays():
    tasks, weights = point_tasks().tasks, jnp.ones(4)
    kl = []
    for trpo in (TRPOConfig(max_kl=0.1), TRPOConfig(max_kl=0.1, final_max_kl=1e-3, decay_begin=1, decay_steps=2)):
        learner = MAML(PointMass(), 4, dataclasses.replace(SMALL, trpo=trpo))
        epoch = jax.jit(lambda k, s, learner=learner: learner.train_epoch(k, s, tasks, weights))
        state, steps = learner.init(jax.random.key(0)), []
        for number in range(4):
            state, metrics = epoch(jax.random.key(number), state)
            steps.append(float(metrics.diagnostics["kl"]))
        assert int(state.epochs) == 4
        assert epoch._cache_size() == 1
        kl.append(np.array(steps))
    np.testing.assert_allclose(kl[1][:2], kl[0][:2], rtol=0.1)
    assert (kl[1] <= [0.1, 0.1, 0.01, 0.001]).all()
    assert kl[0][2:].max() > 0.02


def test_an_entropy_bonus_that_decays_is_the_constant_one_of_each_epoch(float64):
    rng = np.random.default_rng(3)
    support, query = random_batch(rng), random_batch(rng)
    theta = jax.tree.map(lambda p: p.astype(jnp.float64), MAML(PointMass(), 2, SMALL).init(jax.random.key(1)).params)

    def step(**entropy):
        config = dataclasses.replace(SMALL, trpo=TRPOConfig(cg_damping=0.1), **entropy)
        learner = MAML(PointMass(), 2, config)
        return jax.jit(lambda epoch: ravel_pytree(learner._outer_step(theta, support, query, epoch)[0])[0])

    decayed, constant, none = step(entropy_coefficient=0.4, entropy_decay_steps=4), step(entropy_coefficient=0.3), step()
    np.testing.assert_allclose(decayed(1), constant(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(decayed(9), none(0), rtol=1e-5, atol=1e-7)
    assert np.abs(decayed(1) - decayed(9)).max() > 1e-3
    config = MAMLConfig(entropy_coefficient=0.4, entropy_decay_steps=4)
    np.testing.assert_allclose([config.entropy_coefficient_at(e) for e in range(6)], [0.4, 0.3, 0.2, 0.1, 0.0, 0.0], atol=1e-7)


# The learner axis -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped():
    """A learner, its tasks, and its epoch compiled for a learner axis, with a count of its traces."""
    learner = MAML(PointMass(), 4, SMALL)
    tasks = point_tasks().tasks
    traces = []

    def epoch(key, state, weights):
        traces.append(None)
        return learner.train_epoch(key, state, tasks, weights)

    return learner, tasks, jax.jit(jax.vmap(epoch)), traces


def _double(leaf):
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def rows(learner, count):
    keys = jnp.stack([jax.random.key(i) for i in range(count)])
    return keys, jax.vmap(learner.init)(keys), jnp.ones((count, 4))


def test_a_vmapped_learner_equals_the_same_learner_alone(float64):
    """In float64, few conjugate gradient steps: more would amplify the order in which XLA adds up (this Fisher is singular)."""
    config = dataclasses.replace(SMALL, trpo=TRPOConfig(cg_iterations=3))
    learner, tasks = MAML(PointMass(), 4, config), point_tasks().tasks
    keys, states, weights = jax.tree.map(_double, rows(learner, 3))
    alone = jax.jit(lambda k, s, w: learner.train_epoch(k, s, tasks, w)[0])
    together = jax.jit(jax.vmap(lambda k, s, w: learner.train_epoch(k, s, tasks, w)[0]))(keys, states, weights)
    for i in range(3):
        start, ours = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (states, together))
        one = alone(keys[i], start, weights[i])
        assert np.abs(ravel_pytree(one.params)[0] - ravel_pytree(start.params)[0]).max() > 0.01
        np.testing.assert_allclose(ravel_pytree(ours.params)[0], ravel_pytree(one.params)[0], rtol=1e-7, atol=1e-9)


def test_a_learner_that_goes_nan_leaves_its_neighbours_bits_alone(mapped):
    learner, _, epoch, _ = mapped
    keys, states, weights = rows(learner, 3)
    poisoned = states.replace(params=jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), states.params))
    sound, broken = epoch(keys, states, weights)[0], epoch(keys, poisoned, weights)[0]
    for i in (0, 2):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b[i]), sound, broken)


def test_training_compiles_once(mapped):
    learner, _, epoch, traces = mapped
    keys, states, weights = rows(learner, 3)
    jax.clear_caches()  # as conftest does where programs grow too many: the count must not depend on the order of tests
    before = len(traces)
    for i in range(3):
        states, _ = epoch(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys), states, weights)
    assert len(traces) == before + 1


@pytest.mark.learning
def test_maml_learns_the_point_mass():
    """Within one mode the answer is known: full speed ahead; the best return is T (gain + bonus)."""
    learner = MAML(PointMass(), 8, dataclasses.replace(SMALL, horizon=8))
    tasks = point_tasks().tasks
    epoch = jax.jit(lambda k, s: learner.train_epoch(k, s, tasks, jnp.array([1.0, 1.0, 0.0, 0.0])))
    state = learner.init(jax.random.key(0))
    history = []
    for i in range(80):
        state, metrics = epoch(jax.random.key(i), state)
        history.append(np.asarray(metrics.after[:2]))
    assert np.abs(history[0]).max() < 4
    assert history[-1][0] > 0.85 * 8 * 0.5
    assert history[-1][1] > 0.85 * 8 * 1.0
