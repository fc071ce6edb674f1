"""Task embeddings against explicit python loops over episodes and steps."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamherd_jax import fisher
from tamherd_jax.envs.episodes import Episodes
from tamherd_jax.herd import embeddings
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig, latent_features
from tamherd_jax.networks import GaussianPolicy

OBS, ACTION, E, T = 3, 2, 2, 4
POLICY = GaussianPolicy(ACTION, (3,), init_log_std=-0.3)
KEYS = jax.random.split(jax.random.key(7), 8)


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(POLICY.init, jax.random.key(0), jnp.zeros(OBS))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, jnp.float32), shapes)


PARAMS = make_params()


def make_episodes(tasks, seed=0, episodes=E):
    """Episodes `[tasks, E, T]` of random length, with rubbish after their end."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T + 1, (tasks, episodes, 1))
    valid = (np.arange(T) < length).astype(np.float32)
    obs, next_obs = rng.normal(size=(2, tasks, episodes, T, OBS)).astype(np.float32)
    obs[valid == 0] = np.nan
    rewards = rng.normal(size=valid.shape).astype(np.float32) + 0.5
    actions = rng.normal(size=(*valid.shape, ACTION)).astype(np.float32)
    terminated = (np.arange(T) == length - 1) & (length < T)
    fields = (obs, actions, rewards * valid, next_obs, terminated.astype(np.float32), valid, np.zeros((tasks, episodes)))
    return Episodes(*(jnp.asarray(field, jnp.float32) for field in fields))


def task_of(episodes, task):
    return jax.tree.map(lambda leaf: leaf[task], episodes)


@cache
def compiled(embedding):
    features = jax.vmap(partial(embedding.features, POLICY.apply), in_axes=(None, 0, 0))
    return jax.jit(features), jax.jit(embedding.self_gram), jax.jit(embedding.gram), jax.jit(embedding.norms)


def all_features(embedding, episodes, params=PARAMS):
    return compiled(embedding)[0](params, episodes, KEYS[: episodes.valid.shape[0]])


def loop_mean(episodes, reward, embed):
    """The definition: weighted `embed(e, t)`, averaged over valid steps and then over episodes."""
    valid = np.asarray(episodes.valid) > 0
    r = np.asarray(episodes.rewards, np.float64)
    highest, magnitude = r[valid].max(), np.abs(r[valid]).max()
    scale = {"max": highest if highest > 0.05 * magnitude else magnitude, "absolute": magnitude}.get(reward, 1.0)
    per_episode = []
    for e in range(valid.shape[0]):
        steps = [(1.0 if reward == "none" else r[e, t] / scale) * embed(e, t) for t in range(valid.shape[1]) if valid[e, t]]
        per_episode.append(sum(steps) / len(steps))
    return sum(per_episode) / len(per_episode)


score_at = jax.jit(jax.grad(embeddings.gaussian_log_prob(POLICY.apply)))
mean_at = jax.jit(POLICY.apply)
factors_at = jax.jit(partial(fisher.score_factors, embeddings.gaussian_log_prob(POLICY.apply)))
dense_rows = jax.jit(fisher.dense_scores)
expected_at = jax.jit(partial(fisher.gaussian_factors, POLICY.apply))


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def fisher_matrix(episodes, key, reward="max", block=slice(None)):
    """Dense sampled Fisher matrix of one task, with the key used as documented."""
    noise = np.asarray(jax.random.normal(key, (episodes.valid.size, ACTION))).reshape(*episodes.valid.shape, ACTION)

    def embed(e, t):
        mean, log_std = mean_at(PARAMS, episodes.obs[e, t])
        g = flat(score_at(PARAMS, episodes.obs[e, t], mean + jnp.exp(log_std) * noise[e, t]))[block]
        return np.outer(g, g)

    return loop_mean(episodes, reward, embed)


def expected_matrix(episodes, reward="max"):
    def embed(e, t):
        parts = expected_at(PARAMS, episodes.obs[e, t][None])
        rows = np.concatenate([np.asarray(dense_rows(part), np.float64) for part in parts])
        return rows.T @ rows

    return loop_mean(episodes, reward, embed)


def grams_match(embedding, episodes, matrices, tolerance=2e-5):
    features = all_features(embedding, episodes)
    dense = np.stack([np.ravel(matrix) for matrix in matrices])
    dense = dense / np.linalg.norm(dense, axis=1, keepdims=True) if embedding.config.metric == "cosine" else dense
    expected = dense @ dense.T
    some = jax.tree.map(lambda leaf: leaf[:2], features)
    _, self_gram_of, gram_of, norms_of = compiled(embedding)
    self_gram, gram, norms = self_gram_of(features), gram_of(features, some), norms_of(features)
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(self_gram, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(gram, expected[:, :2], rtol=0, atol=atol)
    np.testing.assert_allclose(norms, np.diagonal(expected), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("reward", "metric"),
    [*((r, "euclidean") for r in ("max", "absolute", "none", "raw")), ("max", "cosine"), ("none", "cosine")],
)
def test_fisher_gram_is_that_of_the_dense_matrices(reward, metric):
    episodes = make_episodes(3)
    matrices = [fisher_matrix(task_of(episodes, i), KEYS[i], reward) for i in range(3)]
    grams_match(Embedding(EmbeddingConfig(reward=reward, metric=metric)), episodes, matrices)


def test_fisher_blocks():
    episodes = make_episodes(3)
    matrices = [fisher_matrix(task_of(episodes, i), KEYS[i]) for i in range(3)]
    grams_match(Embedding(EmbeddingConfig(form="diagonal")), episodes, [np.diagonal(m) for m in matrices])
    # Leaves in order: log_std, layer_0 (bias, kernel), layer_1 (bias, kernel).
    last = slice(ACTION + 3 + 3 * OBS, None)
    blocks = [fisher_matrix(task_of(episodes, i), KEYS[i], block=last) for i in range(3)]
    assert blocks[0].shape == (8, 8)
    grams_match(Embedding(EmbeddingConfig(form="last_layer")), episodes, blocks)


def test_closed_form_expectation():
    episodes = make_episodes(3)
    matrices = [expected_matrix(task_of(episodes, i)) for i in range(3)]
    grams_match(Embedding(EmbeddingConfig(expectation="closed_form")), episodes, matrices)
    diagonals = [np.diagonal(matrix) for matrix in matrices]
    grams_match(Embedding(EmbeddingConfig(expectation="closed_form", form="diagonal")), episodes, diagonals)


def layer_moments(episodes, expectation, key):
    """Dense Kronecker blocks by their definition, one state at a time."""
    noise = np.asarray(jax.random.normal(key, (E * T, ACTION))).reshape(E, T, ACTION)

    def rows(e, t):
        obs = episodes.obs[e, t]
        mean, log_std = mean_at(PARAMS, obs)
        if expectation == "sample":
            action = mean + jnp.exp(log_std) * noise[e, t]
            return factors_at(PARAMS, obs[None], action[None])
        return jax.tree.map(lambda *x: np.concatenate(x), *expected_at(PARAMS, obs[None]))

    table = {(e, t): jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), rows(e, t)) for e, t in np.ndindex(E, T)}
    blocks = []
    for layer in range(2):
        a = loop_mean(episodes, "max", lambda e, t, i=layer: np.outer(*(table[e, t].inputs[i][0],) * 2))
        b = loop_mean(episodes, "none", lambda e, t, i=layer: table[e, t].deltas[i].T @ table[e, t].deltas[i])
        blocks.append(np.kron(a, b).ravel())
    rest = loop_mean(episodes, "max", lambda e, t: table[e, t].rest.T @ table[e, t].rest)
    return np.concatenate([*blocks, rest.ravel()])


@pytest.mark.parametrize("expectation", ["sample", "closed_form"])
def test_kronecker_factors(expectation):
    episodes = make_episodes(2)
    blocks = [layer_moments(task_of(episodes, i), expectation, KEYS[i]) for i in range(2)]
    grams_match(Embedding(EmbeddingConfig(form="kronecker", expectation=expectation)), episodes, blocks)


def test_projection_tends_to_the_exact_gram():
    episodes = make_episodes(3)
    exact, projected = (
        np.asarray(compiled(e)[1](all_features(e, episodes)))
        for e in map(Embedding, (EmbeddingConfig(), EmbeddingConfig(form="projection", projection_size=1500)))
    )
    np.testing.assert_allclose(projected, exact, atol=0.15 * np.abs(exact).max())


def test_transition_embedding():
    episodes = make_episodes(3)

    def matrix(task):
        pair = np.concatenate([task.obs, task.next_obs], -1).astype(np.float64)
        return loop_mean(task, "max", lambda e, t: np.outer(pair[e, t], pair[e, t]))

    matrices = [matrix(task_of(episodes, i)) for i in range(3)]
    assert matrices[0].shape == (2 * OBS, 2 * OBS)
    grams_match(Embedding(EmbeddingConfig(kind="transition")), episodes, matrices)


@pytest.mark.parametrize("density", ["density", "log"])
def test_gradient_embedding(density):
    episodes = make_episodes(3)
    log_prob = jax.jit(embeddings.gaussian_log_prob(POLICY.apply))

    def vector(task):
        def embed(e, t):
            step = (PARAMS, task.obs[e, t], task.actions[e, t])
            return flat(score_at(*step)) * (float(jnp.exp(log_prob(*step))) if density == "density" else 1.0)

        return loop_mean(task, "max", embed)

    vectors = [vector(task_of(episodes, i)) for i in range(3)]
    grams_match(Embedding(EmbeddingConfig(kind="gradient", density=density)), episodes, vectors)


def test_test_tasks_may_have_another_number_of_episodes():
    train, test = make_episodes(3), make_episodes(2, seed=5, episodes=1)
    embedding = Embedding(EmbeddingConfig())
    cross = compiled(embedding)[2](all_features(embedding, test), all_features(embedding, train))
    dense = [[fisher_matrix(task_of(part, i), KEYS[i]).ravel() for i in range(n)] for part, n in ((test, 2), (train, 3))]
    np.testing.assert_allclose(cross, np.stack(dense[0]) @ np.stack(dense[1]).T, rtol=1e-4)


@pytest.mark.parametrize("field", ["obs", "actions", "rewards", "next_obs"])
def test_nan_in_one_task_stays_there(field):
    """The step is left out of its own task's mean, and no bit of another task's features changes."""
    episodes = make_episodes(3)
    value = getattr(episodes, field).at[1, 0, 0].set(jnp.nan)
    embedding = Embedding(EmbeddingConfig())
    clean, dirty = (all_features(embedding, e) for e in (episodes, dataclasses.replace(episodes, **{field: value})))
    for before, after in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(before[jnp.array([0, 2])], after[jnp.array([0, 2])])
        assert np.isfinite(after).all()
    assert dirty.weights[1, 0] == 0


def test_vmapped_over_seeds_equals_alone():
    embedding = Embedding(EmbeddingConfig())
    params = [PARAMS, make_params(1)]
    episodes = [make_episodes(3, 1), make_episodes(3, 2)]

    def gram(params, episodes):
        features = jax.vmap(partial(embedding.features, POLICY.apply, params))(episodes, KEYS[:3])
        return embedding.self_gram(features)

    together = jax.jit(jax.vmap(gram))(*(jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in (params, episodes)))
    for s in range(2):
        np.testing.assert_allclose(together[s], jax.jit(gram)(params[s], episodes[s]), rtol=1e-4)


# Reward weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "scale", "fired"),
    [
        ([1.0, 2.0, -3.0], 2.0, False),
        ([-1.0, -2.0, -4.0], 4.0, True),  # the wrong direction: no weight changes its sign
        ([0.05, -5.0, -5.0], 5.0, True),  # one lucky step does not weigh a hundred
        ([0.26, -5.0, -5.0], 0.26, False),
        ([0.0, 0.0, 0.0], 1.0, True),
        ([0.0, -2.0, -2.0], 2.0, True),
    ],
)
def test_reward_guard(rewards, scale, fired):
    rewards, valid = jnp.array([[*rewards, 100.0]]), jnp.array([[1.0, 1.0, 1.0, 0.0]])
    weights, guard = embeddings.reward_weights(rewards, valid, "max")
    np.testing.assert_allclose(weights, np.where(valid > 0, rewards, 0) / scale / 3, rtol=1e-6)
    assert bool(guard) is fired


def test_only_the_literal_normalisation_has_a_guard():
    rewards, valid = -jnp.ones((2, 3)), jnp.ones((2, 3))
    for mode, expected in (("absolute", -1 / 6), ("raw", -1 / 6), ("none", 1 / 6)):
        weights, guard = embeddings.reward_weights(3 * rewards if mode == "absolute" else rewards, valid, mode)
        np.testing.assert_allclose(weights, np.full((2, 3), expected), rtol=1e-6)
        assert not guard


def test_two_level_mean_and_an_episode_without_steps():
    valid = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    weights, _ = embeddings.reward_weights(jnp.ones_like(valid), valid, "max")
    np.testing.assert_allclose(weights, [[1 / 2, 0, 0, 0], [1 / 8] * 4, [0] * 4])


# Latents ------------------------------------------------------------------------------------------------------------


def posteriors(n, seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, 5)), jnp.float32), jnp.asarray(rng.uniform(0.2, 2, (n, 5)), jnp.float32)


def kl(mean_p, var_p, mean_q, var_q):
    return 0.5 * (np.log(var_q / var_p) + (var_p + (mean_p - mean_q) ** 2) / var_q - 1).sum()


def test_distances_between_posteriors():
    a, b = posteriors(3, 0), posteriors(2, 1)
    expected_w = [
        [((m - n) ** 2 + (v**0.5 - u**0.5) ** 2).sum() for n, u in zip(*b, strict=True)] for m, v in zip(*a, strict=True)
    ]
    np.testing.assert_allclose(embeddings.wasserstein2(*a, *b), expected_w, rtol=1e-5)
    expected_kl = [[(kl(m, v, n, u) + kl(n, u, m, v)) / 2 for n, u in zip(*b, strict=True)] for m, v in zip(*a, strict=True)]
    np.testing.assert_allclose(embeddings.symmetric_kl(*a, *b), expected_kl, rtol=1e-5)


@pytest.mark.parametrize("latent", ["mean", "wasserstein", "kl"])
def test_latent_grams_have_the_latent_distances(latent):
    embedding = Embedding(EmbeddingConfig(kind="latent", latent=latent))
    a, b = posteriors(4, 0), posteriors(2, 1)
    train, test = (jax.vmap(latent_features)(*p) for p in (a, b))
    distances = {
        "mean": lambda m, v, n, u: ((m[:, None] - n[None]) ** 2).sum(-1),
        "wasserstein": embeddings.wasserstein2,
        "kl": embeddings.symmetric_kl,
    }[latent]
    gram, cross, norms = embedding.self_gram(train), embedding.gram(test, train), embedding.norms(test)
    own = jnp.diagonal(gram)
    np.testing.assert_allclose(own[:, None] + own[None] - 2 * gram, distances(*a, *a), atol=1e-5)
    np.testing.assert_allclose(norms[:, None] + own[None] - 2 * cross, distances(*b, *a), atol=1e-5)


# Configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "fisherr"},
        {"form": "exact"},
        {"reward": "min"},
        {"kind": "transition", "form": "diagonal"},
        {"kind": "gradient", "expectation": "closed_form"},
        {"kind": "latent", "reward": "raw"},
        {"kind": "fisher", "latent": "kl"},
        {"kind": "fisher", "density": "log"},
        {"kind": "latent", "latent": "kl", "metric": "cosine"},
        {"form": "projection", "projection_size": 0},
    ],
)
def test_impossible_combinations_are_refused_in_one_line(options):
    with pytest.raises(ValueError, match=r"^[^\n]{10,120}$"):
        EmbeddingConfig(**options)


def test_latents_do_not_come_from_episodes():
    embedding = Embedding(EmbeddingConfig(kind="latent"))
    with pytest.raises(ValueError, match="latent_features"):
        embedding.features(POLICY.apply, PARAMS, task_of(make_episodes(1), 0), KEYS[0])


SCALED_KINDS = {
    "fisher": EmbeddingConfig(metric="cosine"),
    "closed form": EmbeddingConfig(metric="cosine", expectation="closed_form"),
    "diagonal": EmbeddingConfig(metric="cosine", form="diagonal"),
    "kronecker": EmbeddingConfig(metric="cosine", form="kronecker"),
    "projection": EmbeddingConfig(metric="cosine", form="projection", projection_size=8),
}


def cosines(config, episodes, params=PARAMS):
    return np.asarray(compiled(Embedding(config))[1](all_features(Embedding(config), episodes, params)))


@pytest.mark.parametrize("kind", SCALED_KINDS)
@pytest.mark.parametrize("log_std", [-10.0, -13.8])
def test_cosines_of_a_narrow_policy_are_those_of_a_wider_one(kind, log_std):
    """With a linear network every score of the mean scales with the inverse deviation and that of the deviation does not, so
    at any two small deviations the cosines agree; the fourth powers of the scores leave float32's range.
    """
    episodes = make_episodes(3)

    def at(value):
        leaf = jnp.full(ACTION, value, jnp.float32)
        return cosines(SCALED_KINDS[kind], episodes, {"params": PARAMS["params"] | {"log_std": leaf}})

    wider, narrow = at(-7.0), at(log_std)
    assert 0.01 < np.abs(wider[0, 1]) < 1.0
    np.testing.assert_allclose(np.diagonal(narrow), 1.0, atol=1e-5)
    np.testing.assert_allclose(narrow, wider, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e5, 1e15])
def test_cosines_of_transitions_do_not_depend_on_their_unit(scale):
    episodes, config = make_episodes(3), EmbeddingConfig(kind="transition", metric="cosine")
    scaled = dataclasses.replace(episodes, obs=episodes.obs * scale, next_obs=episodes.next_obs * scale)
    np.testing.assert_allclose(cosines(config, scaled), cosines(config, episodes), atol=1e-5)


def test_cosines_of_a_narrow_policys_density_gradients():
    """Densities of e^40 a dimension; their directions against those in float64, where they fit."""
    config = EmbeddingConfig(kind="gradient", metric="cosine")
    params = {"params": PARAMS["params"] | {"log_std": jnp.full(ACTION, -13.0)}}
    episodes = make_episodes(3)
    mean, _ = POLICY.apply(params, jnp.nan_to_num(episodes.obs))
    episodes = dataclasses.replace(episodes, actions=mean + 1e-6 * jnp.asarray(make_episodes(3, seed=5).actions))
    found = cosines(config, episodes, params)
    np.testing.assert_allclose(np.diagonal(found), 1.0, atol=1e-5)
    assert np.isfinite(found).all()
    assert (np.abs(found) < 1 + 1e-5).all()
    latent = Embedding(EmbeddingConfig(kind="latent", metric="cosine"))
    points = jnp.asarray([[1e-25, 0.0], [1e-25, 1e-25], [1e25, 1e25]])
    gram = latent.self_gram(jax.vmap(latent_features)(points, jnp.ones((3, 2))))
    np.testing.assert_allclose(gram, [[1, 0.5**0.5, 0.5**0.5], [0.5**0.5, 1, 1], [0.5**0.5, 1, 1]], rtol=1e-6)
