"""Fisher kernels against dense matrices formed explicitly on small networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamherd_jax import fisher
from tamherd_jax.networks import GaussianPolicy

OBS, ACTION = 3, 2


class SharedTwoHeads(nn.Module):
    """A Gaussian whose deviation depends on the state, with a bare parameter, a layer norm and a layer used twice."""

    @nn.compact
    def __call__(self, obs):
        twice = nn.Dense(OBS, name="twice")
        hidden = nn.LayerNorm()(twice(nn.tanh(twice(obs))))
        hidden = nn.tanh(nn.Dense(4, use_bias=False)(hidden)) * self.param("scale", nn.initializers.ones, (4,))
        return nn.Dense(ACTION, name="mean")(hidden), nn.Dense(ACTION, name="log_std")(hidden)


POLICIES = {
    "gaussian": GaussianPolicy(ACTION, (4, 3), init_log_std=-0.3),
    "shared": GaussianPolicy(ACTION, (4,), shared_log_std=True, init_log_std=0.2),
    "heads": SharedTwoHeads(),
}
PRECISIONS = {"float32": (False, 1e-5), "float64": (True, 1e-10)}


@pytest.fixture(params=PRECISIONS)
def tolerance(request):
    x64, tolerance = PRECISIONS[request.param]
    with jax.enable_x64(x64):
        yield tolerance


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


def init(policy, seed=0):
    params = policy.init(jax.random.key(seed), jnp.zeros(OBS))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    dtype = jnp.zeros(()).dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), jax.tree.unflatten(treedef, noisy))


def log_prob_of(policy):
    def log_prob(params, obs, action):
        mean, log_std = policy.apply(params, obs)
        return -(((action - mean) * jnp.exp(-log_std)) ** 2 / 2 + log_std).sum()

    return log_prob


def samples(tasks, n, seed=3):
    keys = jax.random.split(jax.random.key(seed), 3)
    draw = lambda key, *shape: jax.random.normal(key, (tasks, n, *shape))  # noqa: E731
    return draw(keys[0], OBS), draw(keys[1], ACTION), draw(keys[2]) / n


def dense_fishers(log_prob, params, obs, actions, weights):
    """The definition: d x d matrices from one gradient at a time, in float64 numpy."""
    matrices = []
    for task in range(obs.shape[0]):
        total = 0.0
        for t in range(obs.shape[1]):
            score = jax.grad(log_prob)(params, obs[task, t], actions[task, t])
            g = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(score)])
            total = total + float(weights[task, t]) * np.outer(g, g)
        matrices.append(total)
    return np.stack(matrices)


def close(actual, expected, tolerance):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def test_factors_are_the_scores(policy, tolerance):
    params, log_prob = init(policy), log_prob_of(policy)
    obs, actions, _ = samples(1, 5)
    scores = fisher.score_gradients(log_prob, params, obs[0], actions[0])
    factors = fisher.score_factors(log_prob, params, obs[0], actions[0])
    flat, dense = fisher.flatten_samples(scores), fisher.dense_scores(factors)
    assert flat.shape == dense.shape
    assert all(leaf.dtype == flat.dtype for leaf in jax.tree.leaves(factors))
    close(fisher.factor_kernel(factors, factors), np.asarray(flat @ flat.T), tolerance)
    # The same numbers in another order of parameters.
    close(np.sort(dense, -1), np.sort(flat, -1), tolerance)


def test_layers_that_cannot_be_factorised_go_to_the_rest():
    policy = POLICIES["heads"]
    params = init(policy)
    obs, actions, _ = samples(1, 2)
    factors = fisher.score_factors(log_prob_of(policy), params, obs[0], actions[0])
    assert [x.shape[-1] for x in factors.inputs] == [OBS, 5, 5]  # no bias; twice one for the bias
    twice, norm, scale = (OBS + 1) * OBS, 2 * OBS, 4
    assert factors.rest.shape[-1] == twice + norm + scale


def test_other_code_falls_back_to_plain_gradients():
    def log_prob(params, x, y):
        return -((y - params["w"] @ x) ** 2).sum()

    obs, actions, _ = samples(1, 4)
    params = {"w": jnp.ones((ACTION, OBS))}
    factors = fisher.score_factors(log_prob, params, obs[0], actions[0])
    assert factors.inputs == ()
    np.testing.assert_allclose(
        factors.rest, fisher.flatten_samples(fisher.score_gradients(log_prob, params, obs[0], actions[0]))
    )


@pytest.mark.parametrize("block_rows", [None, 4, 7, 20, 1])
def test_grams_equal_the_dense_definition(policy, tolerance, block_rows):
    params, log_prob = init(policy), log_prob_of(policy)
    a, b = samples(3, 7, seed=3), samples(2, 5, seed=4)
    dense_a, dense_b = (dense_fishers(log_prob, params, *data).reshape(len(data[0]), -1) for data in (a, b))

    def both(data):
        score = jax.vmap(lambda o, u: fisher.score_gradients(log_prob, params, o, u))(*data[:2])
        factors = jax.vmap(lambda o, u: fisher.score_factors(log_prob, params, o, u))(*data[:2])
        return score, factors

    for gram, rows_a, rows_b in zip((fisher.fisher_gram, fisher.factor_gram), both(a), both(b), strict=True):
        symmetric = jax.jit(lambda r, w, gram=gram: gram(r, w, block_rows=block_rows))(rows_a, a[2])
        close(symmetric, dense_a @ dense_a.T, tolerance)
        np.testing.assert_array_equal(symmetric, symmetric.T)
        close(gram(rows_a, a[2], rows_b, b[2], block_rows=block_rows), dense_a @ dense_b.T, tolerance)
    close(fisher.gram_norms(both(b)[1], b[2], block_rows=block_rows), (dense_b**2).sum(1), tolerance)


def test_gram_vmapped_over_seeds_equals_a_loop():
    policy = POLICIES["gaussian"]
    log_prob = log_prob_of(policy)
    obs, actions, weights = (jnp.stack([samples(3, 6, seed)[i] for seed in (5, 6)]) for i in range(3))
    params = [init(policy, seed) for seed in (1, 2)]

    def gram(params, obs, actions, weights):
        rows = jax.vmap(lambda o, u: fisher.score_factors(log_prob, params, o, u))(obs, actions)
        return fisher.factor_gram(rows, weights, block_rows=4)

    together = jax.vmap(gram)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params), obs, actions, weights)
    alone = jnp.stack([gram(params[s], obs[s], actions[s], weights[s]) for s in range(2)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_diagonals(policy, tolerance):
    params, log_prob = init(policy), log_prob_of(policy)
    obs, actions, weights = samples(1, 6)
    dense = np.diagonal(dense_fishers(log_prob, params, obs, actions, weights)[0])
    plain = fisher.diagonal_fisher(log_prob, params, weights[0], obs[0], actions[0])
    close(fisher.flatten_samples(plain, 0), dense, tolerance)
    factors = fisher.score_factors(log_prob, params, obs[0], actions[0])
    close(np.sort(fisher.factor_diagonal(factors, weights[0])), np.sort(dense), tolerance)


def quadrature(order=3):
    """Nodes and weights of a two-dimensional standard normal, exact for polynomials of degree 2 order - 1 in each."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    nodes = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    return nodes, (w[:, None] * w[None]).ravel() / w.sum() ** 2


def test_closed_form_is_the_expectation_over_actions(policy, tolerance):
    """Scores are polynomials of degree 2 in the action, so the quadrature is exact."""
    params, log_prob = init(policy), log_prob_of(policy)
    obs, _, weights = samples(1, 4)
    nodes, probabilities = quadrature()
    mean, log_std = policy.apply(params, obs[0])
    actions = mean[:, None] + jnp.exp(log_std)[:, None] * nodes[None]
    factors = jax.vmap(lambda o, u: fisher.score_factors(log_prob, params, jnp.broadcast_to(o, (9, OBS)), u))(obs[0], actions)
    scores = np.asarray(fisher.dense_scores(factors), np.float64)
    expected = np.einsum("t,a,tai,taj->ij", weights[0], probabilities, scores, scores)
    by_mean, by_deviation = fisher.gaussian_factors(policy.apply, params, obs[0])
    actual = 0.0
    for part in (by_mean, by_deviation):
        rows = np.asarray(fisher.dense_scores(part), np.float64)
        each = np.repeat(weights[0], ACTION) if len(rows) == 4 * ACTION else np.full(ACTION, weights[0].sum())
        actual = actual + (rows.T * each) @ rows
    close(actual, expected, tolerance)


def test_closed_form_against_many_sampled_actions():
    policy = POLICIES["gaussian"]
    params, log_prob = init(policy), log_prob_of(policy)
    obs, n = jnp.array([0.3, -1.0, 0.5]), 40_000
    mean, log_std = policy.apply(params, obs)
    actions = mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(0), (n, ACTION))
    scores = fisher.dense_scores(fisher.score_factors(log_prob, params, jnp.broadcast_to(obs, (n, OBS)), actions))
    rows = [fisher.dense_scores(part) for part in fisher.gaussian_factors(policy.apply, params, obs[None])]
    expected = sum(part.T @ part for part in rows)
    np.testing.assert_allclose(scores.T @ scores / n, expected, atol=0.04 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("name", "rows"), [("gaussian", ACTION), ("shared", ACTION), ("heads", 4 * ACTION)])
def test_deviation_rows_are_shared_where_the_state_does_not_matter(name, rows):
    policy = POLICIES[name]
    _, log_std = fisher.gaussian_factors(policy.apply, init(policy), samples(1, 4)[0][0])
    assert log_std.rest.shape[0] == rows


def test_a_gram_of_many_samples_never_holds_their_square():
    rows = jax.ShapeDtypeStruct((2, 20_000, 5), jnp.float32)
    weights = jax.ShapeDtypeStruct((2, 20_000), jnp.float32)
    compiled = jax.jit(lambda r, w: fisher.fisher_gram(r, w, block_rows=512)).lower(rows, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20e6
