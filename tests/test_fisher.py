"""Fisher kernels against dense matrices formed explicitly on small networks."""

from functools import partial

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
        hidden = nn.LayerNorm(epsilon=1.0)(twice(nn.tanh(twice(obs))))
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
    """Random parameters from numpy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(policy.init, jax.random.key(0), jnp.zeros(OBS))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2), shapes)


def log_prob_of(policy):
    def log_prob(params, obs, action):
        mean, log_std = policy.apply(params, obs)
        return -(((action - mean) * jnp.exp(-log_std)) ** 2 / 2 + log_std).sum()

    return log_prob


def samples(tasks, n, seed=3):
    rng = np.random.default_rng(seed)
    obs, actions, weights = (rng.normal(size=(tasks, n, *shape)) for shape in ((OBS,), (ACTION,), ()))
    return jnp.asarray(obs), jnp.asarray(actions), jnp.asarray(weights / n)


def dense_fishers(log_prob, params, obs, actions, weights):
    """The definition: d x d matrices from one gradient at a time, in float64 numpy."""
    gradient, matrices = jax.jit(jax.grad(log_prob)), []
    for task in range(obs.shape[0]):
        total = 0.0
        for t in range(obs.shape[1]):
            score = gradient(params, obs[task, t], actions[task, t])
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
    scores = jax.jit(partial(fisher.score_gradients, log_prob))(params, obs[0], actions[0])
    factors = jax.jit(partial(fisher.score_factors, log_prob))(params, obs[0], actions[0])
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
    factors = jax.eval_shape(partial(fisher.score_factors, log_prob_of(policy)), params, obs[0], actions[0])
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


def test_grams_equal_the_dense_definition(policy, tolerance):
    params, log_prob = init(policy), log_prob_of(policy)
    a, b = samples(3, 7, seed=3), samples(2, 5, seed=4)
    dense_a, dense_b = (dense_fishers(log_prob, params, *data).reshape(len(data[0]), -1) for data in (a, b))

    @jax.jit
    def grams(a, b):
        found = []
        for score, gram in ((fisher.score_gradients, fisher.fisher_gram), (fisher.score_factors, fisher.factor_gram)):
            rows = [jax.vmap(lambda o, u, f=score: f(log_prob, params, o, u))(*data[:2]) for data in (a, b)]
            found.append((gram(rows[0], a[2]), gram(rows[0], a[2], rows[1], b[2])))
        return *found, fisher.gram_norms(rows[1], b[2])

    (plain, plain_cross), (fast, fast_cross), norms = grams(a, b)
    for symmetric in (plain, fast):
        close(symmetric, dense_a @ dense_a.T, tolerance)
        np.testing.assert_array_equal(symmetric, symmetric.T)
    for cross in (plain_cross, fast_cross):
        close(cross, dense_a @ dense_b.T, tolerance)
    close(norms, (dense_b**2).sum(1), tolerance)


def test_a_jitted_policy_is_slower_but_the_same():
    policy = POLICIES["gaussian"]
    params, jitted = init(policy), jax.jit(policy.apply)
    obs, actions, _ = samples(1, 4)

    def log_prob(params, obs, action):
        mean, log_std = jitted(params, obs)
        return -(((action - mean) * jnp.exp(-log_std)) ** 2 / 2 + log_std).sum()

    plain, fast = (fisher.score_factors(f, params, obs[0], actions[0]) for f in (log_prob, log_prob_of(policy)))
    assert plain.inputs == ()
    close(fisher.factor_kernel(plain, plain), np.asarray(fisher.factor_kernel(fast, fast)), 1e-5)


@pytest.mark.parametrize("block_rows", [1, 4, 7, 14, 20])
def test_blocks_do_not_change_the_gram(block_rows):
    """Cutting tasks into chunks, and putting several into a block, with every kind of padding."""
    rng = np.random.default_rng(0)
    g, w = rng.normal(size=(3, 7, 6)).astype(np.float32), rng.normal(size=(3, 7)).astype(np.float32)
    h, v = rng.normal(size=(2, 5, 6)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32)
    dense_g, dense_h = (np.einsum("it,itd,ite->ide", w, g, g).reshape(len(w), -1) for w, g in ((w, g), (v, h)))
    close(fisher.fisher_gram(g, w, block_rows=block_rows), dense_g @ dense_g.T, 1e-5)
    close(fisher.fisher_gram(g, w, h, v, block_rows=block_rows), dense_g @ dense_h.T, 1e-5)


def test_gram_vmapped_over_seeds_equals_a_loop():
    policy = POLICIES["gaussian"]
    log_prob = log_prob_of(policy)
    obs, actions, weights = (jnp.stack([samples(3, 6, seed)[i] for seed in (5, 6)]) for i in range(3))
    params = [init(policy, seed) for seed in (1, 2)]

    def gram(params, obs, actions, weights):
        rows = jax.vmap(lambda o, u: fisher.score_factors(log_prob, params, o, u))(obs, actions)
        return fisher.factor_gram(rows, weights, block_rows=4)

    together = jax.jit(jax.vmap(gram))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params), obs, actions, weights)
    alone = jnp.stack([jax.jit(gram)(params[s], obs[s], actions[s], weights[s]) for s in range(2)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_diagonals(policy, tolerance):
    params, log_prob = init(policy), log_prob_of(policy)
    obs, actions, weights = samples(1, 6)
    dense = np.diagonal(dense_fishers(log_prob, params, obs, actions, weights)[0])
    plain = jax.jit(partial(fisher.diagonal_fisher, log_prob))(params, weights[0], obs[0], actions[0])
    close(fisher.flatten_samples(plain, 0), dense, tolerance)
    factors = jax.jit(partial(fisher.score_factors, log_prob))(params, obs[0], actions[0])
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
    every = jnp.broadcast_to(obs[0][:, None], (4, 9, OBS))
    factors = jax.jit(jax.vmap(partial(fisher.score_factors, log_prob, params)))(every, actions)
    scores = np.asarray(fisher.dense_scores(factors), np.float64)
    expected = np.einsum("t,a,tai,taj->ij", weights[0], probabilities, scores, scores)
    by_mean, by_deviation = jax.jit(partial(fisher.gaussian_factors, policy.apply))(params, obs[0])
    actual = 0.0
    for part in (by_mean, by_deviation):
        rows = np.asarray(fisher.dense_scores(part), np.float64)
        each = np.repeat(weights[0], ACTION) if len(rows) == 4 * ACTION else np.full(ACTION, weights[0].sum())
        actual = actual + (rows.T * each) @ rows
    close(actual, expected, tolerance)


def test_closed_form_against_many_sampled_actions():
    policy = POLICIES["gaussian"]
    params, log_prob = init(policy), log_prob_of(policy)
    obs, n = jnp.array([0.3, -1.0, 0.5]), 20_000
    mean, log_std = policy.apply(params, obs)
    actions = mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(0), (n, ACTION))
    scores = fisher.dense_scores(
        jax.jit(partial(fisher.score_factors, log_prob))(params, jnp.broadcast_to(obs, (n, OBS)), actions)
    )
    rows = [fisher.dense_scores(part) for part in fisher.gaussian_factors(policy.apply, params, obs[None])]
    expected = sum(part.T @ part for part in rows)
    np.testing.assert_allclose(scores.T @ scores / n, expected, atol=0.04 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("name", "precision"), [("gaussian", "float32"), ("heads", "float64")])
def test_gram_of_rows_that_share_inputs_is_the_dense_one(name, precision, monkeypatch):
    monkeypatch.setattr(fisher.moments, "BLOCK_ENTRIES", 40)  # several chunks, the last one padded
    x64, tolerance = PRECISIONS[precision]
    with jax.enable_x64(x64):
        check_shared_inputs(POLICIES[name], tolerance)


def check_shared_inputs(policy, tolerance):
    params = init(policy)
    (obs_a, _, weights_a), (obs_b, _, weights_b) = samples(3, 4, seed=3), samples(2, 5, seed=4)

    @jax.jit
    def rows(obs):
        parts = jax.vmap(partial(fisher.gaussian_factors, policy.apply, params))(obs)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *parts)

    def weights_of(weights, inputs):
        """Of every input, then those of the deviation: the sum of all where it does not depend on the input."""
        return jnp.concatenate([weights, weights if inputs == 2 * weights.shape[1] else weights.sum(1, keepdims=True)], 1)

    def dense(factors, weights):
        scores = np.asarray(fisher.dense_scores(factors), np.float64)
        return np.einsum("nt,nta,ntb->nab", np.repeat(weights, ACTION, 1), scores, scores).reshape(len(weights), -1)

    flat = [rows(obs) for obs in (obs_a, obs_b)]
    weights = [weights_of(w, f.rest.shape[1] // ACTION) for w, f in zip((weights_a, weights_b), flat, strict=True)]
    first, second = map(dense, flat, weights)
    a, b = (jax.vmap(lambda f: fisher.group_rows(f, ACTION))(f) for f in flat)
    for moments in (True, False):
        gram = jax.jit(partial(fisher.jacobian_gram, moments=moments))
        symmetric = gram(a, weights[0])
        close(symmetric, first @ first.T, tolerance)
        np.testing.assert_array_equal(symmetric, symmetric.T)
        close(gram(a, weights[0], b, weights[1]), first @ second.T, tolerance)


def test_the_way_of_fewer_products_is_taken():
    """By hand, layers (in 2, out 3) and rest (1, 2), B = 2: a pair costs 2 + 1 + 4 (3 + 2), an input 3 x 6 + 2 x 6 + 3."""

    def factors(inputs):
        shapes = {"x": (1, inputs, 2), "delta": (1, inputs, 2, 3), "rest": (1, inputs, 2, 2)}
        leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        return fisher.JacobianFactors((leaves["x"],), (leaves["delta"],), leaves["rest"])

    for inputs in (2, 3, 4):
        assert fisher.moments_are_cheaper(factors(inputs), inputs, None) == (33 * inputs < 23 * inputs**2 / 2)
        assert fisher.moments_are_cheaper(factors(inputs), inputs, 7) == (33 * (inputs + 7) < 23 * inputs * 7)


@pytest.mark.parametrize(("name", "rows"), [("gaussian", ACTION), ("shared", ACTION), ("heads", 4 * ACTION)])
def test_deviation_rows_are_shared_where_the_state_does_not_matter(name, rows):
    policy = POLICIES[name]
    _, log_std = jax.eval_shape(partial(fisher.gaussian_factors, policy.apply), init(policy), samples(1, 4)[0][0])
    assert log_std.rest.shape[0] == rows


def test_a_gram_of_many_samples_never_holds_their_square():
    rows = jax.ShapeDtypeStruct((2, 20_000, 5), jnp.float32)
    weights = jax.ShapeDtypeStruct((2, 20_000), jnp.float32)
    compiled = jax.jit(lambda r, w: fisher.fisher_gram(r, w, block_rows=512)).lower(rows, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20e6


SCORES, WEIGHTS = {"w": jnp.ones((4, 3, 2))}, jnp.ones((4, 3))
FACTORS = fisher.ScoreFactors((jnp.ones((4, 3, 2)),), (jnp.ones((4, 3, 2)),), jnp.ones((4, 3, 0)))
JACOBIANS = fisher.JacobianFactors((jnp.ones((4, 3, 2)),), (jnp.ones((4, 3, 5, 2)),), jnp.ones((4, 3, 5, 0)))


@pytest.mark.parametrize(
    ("gram", "rows"),
    [(fisher.fisher_gram, SCORES), (fisher.factor_gram, FACTORS), (fisher.jacobian_gram, JACOBIANS)],
    ids=["scores", "factors", "jacobians"],
)
def test_weights_that_do_not_fit_their_scores_are_refused(gram, rows):
    """Some broadcast to a Gram of the wrong matrices."""
    assert gram(rows, WEIGHTS).shape == (4, 4)
    for wrong in (WEIGHTS.T, jnp.ones((4, 1)), jnp.ones(3), jnp.ones((4, 3, 1))):
        with pytest.raises(ValueError, match=r"weights a must be \[matrices, samples\]"):
            gram(rows, wrong)
        with pytest.raises(ValueError, match=r"weights b must be .* weights have shape .*, scores \(4, 3\)"):
            gram(rows, WEIGHTS, rows, wrong)
    with pytest.raises(ValueError, match="weights b were passed without scores b"):
        gram(rows, WEIGHTS, None, WEIGHTS)
    with pytest.raises(ValueError, match="scores b were passed without weights b"):
        gram(rows, WEIGHTS, rows)


def test_weights_that_do_not_fit_are_refused_where_there_is_one_matrix():
    with pytest.raises(ValueError, match="weights a must be"):
        fisher.gram_norms(FACTORS, WEIGHTS.T)
