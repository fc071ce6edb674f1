import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tamherd_jax.distributions import gaussian_entropy, gaussian_kl, gaussian_log_prob
from tamherd_jax.maml import (
    TRPOConfig,
    adapt,
    conjugate_gradient,
    discounted_returns,
    gauss_newton,
    generalized_advantages,
    hvp,
    linear_baseline,
    normalize_advantages,
    trpo_step,
)

pytestmark = pytest.mark.usefixtures("strict_ranks")


def small_network(seed=0, sizes=(3, 4, 2)):
    rng = np.random.default_rng(seed)
    return [
        {"w": jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a)), "b": jnp.asarray(0.1 * rng.normal(size=b))}
        for a, b in itertools.pairwise(sizes)
    ]


def apply(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def regression(params, x, y):
    return jnp.mean((apply(params, x) - y) ** 2)


def data(seed=1, n=7):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, 3))), jnp.asarray(rng.normal(size=(n, 2)))


# Distributions --------------------------------------------------------------------------------------------------------


def test_gaussian_log_prob_entropy_and_kl_equal_scipy(float64):
    from scipy import stats

    rng = np.random.default_rng(0)
    x, mp, lp, mq, lq = (jnp.asarray(rng.normal(size=(5, 3))) for _ in range(5))
    expected = stats.norm.logpdf(x, mp, np.exp(lp)).sum(1)
    np.testing.assert_allclose(gaussian_log_prob(x, mp, lp), expected, rtol=1e-12)
    np.testing.assert_allclose(gaussian_entropy(lp), stats.norm.entropy(scale=np.exp(lp)).sum(1), rtol=1e-12)
    sp, sq = np.exp(lp), np.exp(lq)
    kl = (np.log(sq / sp) + (sp**2 + (mp - mq) ** 2) / (2 * sq**2) - 0.5).sum(1)
    np.testing.assert_allclose(gaussian_kl(mp, lp, mq, lq), kl, rtol=1e-12)
    np.testing.assert_array_equal(gaussian_kl(mp, lp, mp, lp), np.zeros(5))


def test_kl_is_accurate_near_equality_in_float32():
    small = jnp.full((1, 6), 1e-4, jnp.float32)
    zero = jnp.zeros((1, 6), jnp.float32)
    np.testing.assert_allclose(gaussian_kl(zero, small, zero, zero), [6 * 1e-8], rtol=1e-3)


# Inner loop -----------------------------------------------------------------------------------------------------------


def test_inner_step_is_one_step_of_gradient_descent(float64):
    params, (x, y) = small_network(), data()
    adapted = adapt(regression, params, x, y, step_size=0.3)
    gradient = jax.grad(regression)(params, x, y)
    expected = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), adapted, expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradient_equals_finite_differences(float64, steps):
    params, (x, y), (x2, y2) = small_network(), data(1), data(2)
    flat, unravel = ravel_pytree(params)

    def objective(theta):
        return regression(adapt(regression, unravel(theta), x, y, step_size=0.3, steps=steps), x2, y2)

    gradient = np.asarray(jax.grad(objective)(flat))
    eps = 1e-6
    objective = jax.jit(objective)
    finite = [(objective(flat.at[i].add(eps)) - objective(flat.at[i].add(-eps))) / (2 * eps) for i in range(flat.size)]
    np.testing.assert_allclose(gradient, finite, rtol=1e-6, atol=1e-9)


def test_first_order_switch_drops_exactly_the_hessian_term(float64):
    params, (x, y), (x2, y2) = small_network(), data(1), data(2)
    flat, unravel = ravel_pytree(params)
    outer = jax.grad(lambda theta: regression(unravel(theta), x2, y2))

    def meta_gradient(first_order):
        def objective(theta):
            return regression(adapt(regression, unravel(theta), x, y, step_size=0.3, first_order=first_order), x2, y2)

        return jax.grad(objective)(flat)

    adapted = ravel_pytree(adapt(regression, params, x, y, step_size=0.3))[0]
    hessian = jax.jit(jax.hessian(lambda theta: regression(unravel(theta), x, y)))(flat)
    np.testing.assert_allclose(meta_gradient(True), outer(adapted), rtol=1e-10)
    np.testing.assert_allclose(meta_gradient(False), outer(adapted) - 0.3 * hessian @ outer(adapted), rtol=1e-8, atol=1e-12)
    assert np.abs(meta_gradient(True) - meta_gradient(False)).max() > 1e-3


# Curvature ------------------------------------------------------------------------------------------------------------


def test_hvp_equals_the_dense_hessian(float64):
    params, (x, y) = small_network(), data()
    flat, unravel = ravel_pytree(params)
    vector = np.random.default_rng(3).normal(size=flat.size)
    dense = jax.jit(jax.hessian(lambda theta: regression(unravel(theta), x, y)))(flat)
    product = hvp(lambda p: regression(p, x, y), params, unravel(vector))
    np.testing.assert_allclose(ravel_pytree(product)[0], dense @ vector, rtol=1e-10)


def test_conjugate_gradient_equals_the_dense_solution(float64):
    rng = np.random.default_rng(4)
    root = rng.normal(size=(12, 12))
    matrix, b = root @ root.T + 0.1 * np.eye(12), rng.normal(size=12)
    x = conjugate_gradient(lambda v: matrix @ v, jnp.asarray(b), iterations=40, tolerance=1e-24)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)
    # k steps minimise the energy over a Krylov space: compare with that definition
    krylov = np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(3)], 1)
    coefficients = np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
    x3 = conjugate_gradient(lambda v: matrix @ v, jnp.asarray(b), iterations=3)
    np.testing.assert_allclose(x3, krylov @ coefficients, rtol=1e-6)


def test_conjugate_gradient_stops_at_the_tolerance_and_survives_a_zero_right_side():
    matrix = jnp.diag(jnp.array([1.0, 1.0, 1.0]))
    x = conjugate_gradient(lambda v: matrix @ v, jnp.array([1.0, 2.0, 3.0]), iterations=10)
    np.testing.assert_allclose(x, [1, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(conjugate_gradient(lambda v: matrix @ v, jnp.zeros(3)), np.zeros(3))


def policy_outputs(x, support, step_size=0.2):
    """A Gaussian policy's outputs after an inner step, as MAML has them; params = (network, log_std)."""

    def inner(params, sx, sy, advantage):
        mean = apply(params[0], sx)
        return -jnp.mean(gaussian_log_prob(sy, mean, jnp.broadcast_to(params[1][None], mean.shape)) * advantage)

    def outputs(params):
        network, log_std = adapt(inner, params, *support, step_size=step_size)
        mean = apply(network, x)
        return mean, jnp.broadcast_to(log_std[None], mean.shape)

    return outputs


def policy_problem():
    rng = np.random.default_rng(5)
    (sx, sy), (x, actions) = data(6, 9), data(7, 8)
    support = (sx, sy, jnp.asarray(rng.normal(size=9)))
    params = (small_network(8), jnp.array([-0.2, 0.1]))
    advantages = jnp.asarray(rng.normal(size=8))
    outputs = policy_outputs(x, support)

    def loss(old, new):
        return -jnp.mean(jnp.exp(gaussian_log_prob(actions, *new) - gaussian_log_prob(actions, *old)) * advantages)

    def kl(old, new):
        return jnp.mean(gaussian_kl(*old, *new))

    def metric(old, tangent):
        return jnp.exp(-2 * old[1]) * tangent[0] / 8, 2 * tangent[1] / 8

    return params, outputs, loss, kl, metric, (actions, advantages)


def test_gauss_newton_product_is_the_hessian_of_the_adapted_kl(float64):
    params, outputs, _, kl, metric, _ = policy_problem()
    flat, unravel = ravel_pytree(params)
    old, _, product = gauss_newton(outputs, params, metric)
    dense = jax.jit(jax.hessian(lambda theta: kl(old, outputs(unravel(theta)))))(flat)
    vector = np.random.default_rng(9).normal(size=flat.size)
    np.testing.assert_allclose(ravel_pytree(product(unravel(vector)))[0], dense @ vector, rtol=1e-8, atol=1e-12)


def test_kl_vanishes_with_its_gradient_and_the_surrogates_agree_at_the_old_parameters(float64):
    params, outputs, loss, kl, _, (actions, advantages) = policy_problem()
    old = outputs(params)
    value, gradient = jax.value_and_grad(lambda p: kl(old, outputs(p)))(params)
    assert float(value) == 0.0
    np.testing.assert_allclose(ravel_pytree(gradient)[0], 0.0, atol=1e-14)
    ratio = ravel_pytree(jax.grad(lambda p: loss(old, outputs(p)))(params))[0]
    likelihood = jax.grad(lambda p: -jnp.mean(gaussian_log_prob(actions, *outputs(p)) * advantages))(params)
    np.testing.assert_allclose(ratio, ravel_pytree(likelihood)[0], rtol=1e-9, atol=1e-13)


# The trust-region step ------------------------------------------------------------------------------------------------


def test_trpo_step_equals_a_dense_computation(float64):
    params, outputs, loss, kl, metric, _ = policy_problem()
    flat, unravel = ravel_pytree(params)
    config = TRPOConfig(cg_iterations=200, cg_tolerance=1e-28, cg_damping=1e-3)
    new, info = jax.jit(lambda p: trpo_step(outputs, loss, kl, metric, p, config))(params)
    old = outputs(params)
    g = np.asarray(jax.grad(lambda t: loss(old, outputs(unravel(t))))(flat))
    h = np.asarray(jax.jit(jax.hessian(lambda t: kl(old, outputs(unravel(t)))))(flat)) + 1e-3 * np.eye(flat.size)
    x = np.linalg.solve(h, g)
    step = x * np.sqrt(2 * 0.01 / (x @ h @ x + 1e-8))
    for j in range(15):
        candidate = outputs(unravel(flat - 0.8**j * step))
        if loss(old, candidate) < loss(old, old) and kl(old, candidate) <= 0.01:
            break
    assert bool(info.accepted)
    assert int(info.backtracks) == j
    np.testing.assert_allclose(ravel_pytree(new)[0], flat - 0.8**j * step, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(info.kl, kl(old, outputs(new)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_an_accepted_step_is_better_and_near_and_a_rejected_one_changes_nothing(float64, seed):
    rng = np.random.default_rng(seed)
    params, outputs, _, kl, metric, _ = policy_problem()
    actions, advantages = jnp.asarray(rng.normal(size=(8, 2))), jnp.asarray(rng.normal(size=8) * 10.0 ** (seed - 4))

    def loss(old, new):  # a wild objective: the quadratic model is often wrong
        return -jnp.mean(jnp.sin(40 * gaussian_log_prob(actions, *new)) * advantages)

    config = TRPOConfig(max_backtracks=1 + seed % 4, max_kl=10.0 ** (seed % 3 - 3))
    new, info = jax.jit(lambda p: trpo_step(outputs, loss, kl, metric, p, config))(params)
    old = outputs(params)
    if info.accepted:
        assert float(loss(old, outputs(new))) < float(loss(old, old))
        assert float(kl(old, outputs(new))) <= config.max_kl
    else:
        jax.tree.map(np.testing.assert_array_equal, new, params)
        assert int(info.backtracks) == config.max_backtracks - 1


def test_a_kl_bound_that_decays_is_the_constant_one_of_each_step(float64):
    """Held, then a constant factor a step, then held: and a step with it is the step of a constant bound of that size."""
    config = TRPOConfig(max_kl=0.2, final_max_kl=0.05, decay_begin=3, decay_steps=4)
    expected = 0.2 * 0.25 ** (np.clip(np.arange(12) - 3, 0, 4) / 4)
    np.testing.assert_allclose([config.max_kl_at(step) for step in range(12)], expected, rtol=1e-6)
    params, outputs, loss, kl, metric, _ = policy_problem()
    run = jax.jit(lambda p, step: trpo_step(outputs, loss, kl, metric, p, config, step))
    for step in (2, 5, 9):
        new, info = run(params, jnp.int32(step))
        same, _ = trpo_step(outputs, loss, kl, metric, params, TRPOConfig(max_kl=float(expected[step])))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, same)
        assert 0 < float(info.kl) <= expected[step] * (1 + 1e-6)
    assert TRPOConfig().max_kl_at(7) == TRPOConfig.max_kl


def test_a_step_that_cannot_improve_is_rejected_with_the_parameters_bits():
    params, outputs, _, kl, metric, _ = policy_problem()

    def optimal_already(old, new):  # with a gradient that lies: any step makes it worse
        return jnp.sum((new[0] - old[0]) ** 2) + 1e-3 * jnp.sum(new[0] - jax.lax.stop_gradient(new[0]))

    new, info = jax.jit(lambda p: trpo_step(outputs, optimal_already, kl, metric, p))(params)
    assert not bool(info.accepted)
    jax.tree.map(np.testing.assert_array_equal, new, params)


def test_a_loss_that_is_not_finite_changes_nothing_and_harms_no_neighbour():
    params, outputs, loss, kl, metric, _ = policy_problem()
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)

    def step(poison):
        return trpo_step(outputs, lambda old, new: loss(old, new) * jnp.where(poison, jnp.nan, 1.0), kl, metric, params)

    new, info = jax.jit(jax.vmap(step))(jnp.array([True, False]))
    alone, _ = jax.jit(jax.vmap(step))(jnp.array([False, False]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), new, params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), new, alone)
    assert info.accepted.tolist() == [False, True]


# Advantages and baseline ----------------------------------------------------------------------------------------------


def episodes_with_early_ends(seed=0, episodes=4, length=12):
    rng = np.random.default_rng(seed)
    lengths = [length, 5, 1, 9][:episodes]
    valid = np.array([[float(t < n) for t in range(length)] for n in lengths])
    return rng.normal(size=(episodes, length)) * valid, rng.normal(size=(episodes, length)), valid, lengths


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_returns_and_advantages_equal_a_loop_over_episodes(float64, lam):
    rewards, values, valid, lengths = episodes_with_early_ends()
    for r, v, mask, n in zip(rewards, values, valid, lengths, strict=True):
        expected_returns = [sum(0.99**k * r[t + k] for k in range(n - t)) for t in range(n)]
        np.testing.assert_allclose(discounted_returns(jnp.asarray(r), 0.99)[:n], expected_returns, rtol=1e-12)
        next_values = np.append(v[1:n], 0.0)
        deltas = r[:n] + 0.99 * next_values - v[:n]
        expected = [sum((0.99 * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]
        advantages = generalized_advantages(jnp.asarray(r), jnp.asarray(v), jnp.asarray(mask), 0.99, lam)
        np.testing.assert_allclose(advantages[:n], expected, rtol=1e-10)
        np.testing.assert_array_equal(advantages[n:], 0.0)


@pytest.mark.parametrize("scale", ["std", "variance", "none"])
def test_normalisation_is_over_valid_steps_and_named_honestly(float64, scale):
    _, advantages, valid, _ = episodes_with_early_ends(3)
    inside = advantages[valid > 0]
    divisor = {"std": inside.std(ddof=1) + 1e-8, "variance": inside.var(ddof=1) + 1e-8, "none": 1.0}[scale]
    ours = np.asarray(normalize_advantages(jnp.asarray(advantages), jnp.asarray(valid), scale))
    np.testing.assert_allclose(ours[valid > 0], (inside - inside.mean()) / divisor, rtol=1e-10)
    np.testing.assert_array_equal(ours[valid == 0], 0.0)
    with pytest.raises(ValueError, match="advantage scale must be std, variance or none, not 'max'"):
        normalize_advantages(jnp.asarray(advantages), jnp.asarray(valid), "max")


def baseline_batch(case):
    """Observations, returns to go and valid `[10, 100, ...]` whose features are independent, collinear or nearly constant."""
    rng = np.random.default_rng(7)
    obs = np.cumsum(rng.normal(size=(10, 100, 17)), 1) * 0.1
    lengths = rng.integers(20, 101, 10) if case == "walker" else np.full(10, 100)
    if case == "walker":  # what falls is a smooth function of time; its height and the square hardly change
        obs = np.sin(rng.normal(size=17) * np.arange(100)[:, None] / 100 + 0.05 * rng.normal(size=(10, 1, 17)))
        obs[..., 0] = 1.25 + 1e-3 * rng.normal(size=(10, 100))
    if case == "constant":
        obs[..., :5] = 3.0
    if case == "twice":
        obs[..., 9:] = obs[..., :8]
    valid = (np.arange(100)[None] < lengths[:, None]).astype(float)
    returns = np.arange(100)[::-1][None] * 0.5 + obs[..., 1] * 5 + rng.normal(size=(10, 100)) + 30.0
    return obs.astype(np.float32), (returns * valid).astype(np.float32), valid.astype(np.float32)


def ridge_regression(obs, returns, valid):
    """The reference's formula in float64, ridge 1e-5 on every diagonal entry, by QR of the augmented system."""
    tau = np.broadcast_to(np.arange(obs.shape[1])[None, :, None] / 100, (*obs.shape[:2], 1))
    clipped = np.clip(obs.astype(np.float64), -10, 10)
    features = np.concatenate([clipped, clipped**2, tau, tau**2, tau**3, np.ones_like(tau)], 2)[valid > 0]
    system = np.concatenate([features, np.sqrt(1e-5) * np.eye(features.shape[1])])
    basis = np.linalg.qr(system / np.linalg.norm(system, axis=0))[0][: len(features)]
    return basis @ (basis.T @ returns[valid > 0].astype(np.float64))


@pytest.mark.parametrize("case", ["cheetah", "walker", "constant", "twice"])
def test_linear_baseline_is_the_references_ridge_regression(case):
    """To 1e-6 of the largest return in float32 and to 1e-10 in float64, padding of any content left out."""
    obs, returns, valid = baseline_batch(case)
    expected, largest = ridge_regression(obs, returns, valid), np.abs(returns).max()
    obs[valid == 0], returns[valid == 0] = np.nan, np.inf
    fit = jax.jit(linear_baseline)
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-10)):
        with jax.enable_x64(dtype == np.float64):
            ours = np.asarray(fit(*(jnp.asarray(a, dtype) for a in (obs, returns, valid))))
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours[valid > 0], expected, rtol=0, atol=tolerance * largest)
        np.testing.assert_array_equal(ours[valid == 0], 0.0)


def test_padding_of_any_content_is_left_out_of_advantages():
    valid = jnp.array([1.0, 1.0, 0.0, 0.0])
    rewards, values = jnp.array([1.0, 2.0, jnp.nan, jnp.inf]), jnp.array([0.5, 0.25, jnp.nan, 7.0])
    clean = generalized_advantages(rewards.at[2:].set(0), values.at[2:].set(0), valid, 0.9, 0.8)
    np.testing.assert_array_equal(generalized_advantages(rewards, values, valid, 0.9, 0.8), clean)


def test_the_linear_baseline_does_not_need_float64_enabled():
    """Values and reverse derivatives, also where `vmap` and `scan` meet a program that is traced already."""
    obs, returns, valid = (jnp.stack([leaf, leaf]) for leaf in baseline_batch("walker"))

    def loss(obs, returns, valid):
        return jnp.sum(jax.jit(linear_baseline)(obs, returns, valid) ** 2)

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    with jax.enable_x64(True):
        expected = jax.vmap(gradient)(obs, returns, valid)
    for ours in (jax.vmap(gradient)(obs, returns, valid), jax.lax.map(lambda batch: gradient(*batch), (obs, returns, valid))):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def test_linear_baseline_of_constant_observations_is_finite():
    out = linear_baseline(jnp.ones((2, 5, 3)), jnp.arange(10.0).reshape(2, 5), jnp.ones((2, 5)))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(linear_baseline(jnp.ones((2, 5, 3)), jnp.ones((2, 5)), jnp.zeros((2, 5))), 0.0)
