"""Task embeddings: from a probe's episodes in a task to a point in a Euclidean space, of which only inner products are used.

The paper's four (section 4.2) and their variants, all behind one interface, so that clustering, assignment and plots never
care which it is: `features` of one task, and `gram`, `self_gram` and `norms` between tasks. Transitions are averaged over an
episode's valid steps and then over episodes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tamherd_jax import distributions, fisher
from tamherd_jax.registry.choices import METRICS, REWARD_WEIGHTS
from tamherd_jax.types import Episodes, Params, PyTree

Apply: TypeAlias = Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]]

# The largest reward counts as a scale only above this share of the largest magnitude.
GUARD = 0.05

CHOICES = {
    "kind": ("fisher", "transition", "latent", "gradient"),
    "form": ("gram", "diagonal", "last_layer", "kronecker", "projection"),
    "expectation": ("sample", "closed_form"),
    "reward": tuple(REWARD_WEIGHTS),
    "metric": tuple(METRICS),
    "density": ("density", "log"),
    "latent": ("mean", "wasserstein", "kl"),
}
# Options that mean something to one kind only; elsewhere they must keep their default.
OPTIONS_OF_KIND = {
    "form": "fisher",
    "expectation": "fisher",
    "projection_size": "fisher",
    "density": "gradient",
    "latent": "latent",
}


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Which embedding. The defaults are the paper's headline, the reward-weighted Fisher matrix, literally and exactly.

    Attributes:
      kind: `fisher` sum w g g^T; `transition` sum w [s,s'][s,s']^T; `latent` the posterior that the caller gives;
        `gradient` sum w grad pi(a|s) at the executed action.
      form: of the Fisher matrix: `gram` exact; `diagonal`; `last_layer` the block of the dense layer called last;
        `kronecker` factors of each layer; `projection` scores projected to `projection_size` dimensions.
      expectation: over actions: one fresh `sample` per state, or the `closed_form` of a Gaussian policy.
      reward: weights r / max r (`max`, with the guard), r / max|r| (`absolute`), 1 (`none`), r (`raw`).
      metric: `euclidean` (Frobenius) or `cosine`, the same on embeddings scaled to unit norm.
      density: for `gradient`, of the density (literal) or of its `log`.
      latent: for `latent`, distance of the posterior's `mean`, 2-`wasserstein`, or the root of the symmetrised `kl`.
      projection_size: dimensions of the random projection; its matrices are the same for all tasks.

    Raises:
      ValueError: a value is unknown or does not go with the others.
    """

    kind: str = "fisher"
    form: str = "gram"
    expectation: str = "sample"
    reward: str = "max"
    metric: str = "euclidean"
    density: str = "density"
    latent: str = "mean"
    projection_size: int = 128

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"embedding {name} is one of {', '.join(choices)}; not {getattr(self, name)!r}")
        for name, kind in OPTIONS_OF_KIND.items():
            if self.kind != kind and getattr(self, name) != getattr(EmbeddingConfig, name):
                raise ValueError(f"embedding {name}={getattr(self, name)!r} belongs to kind {kind!r}, not {self.kind!r}")
        if self.projection_size < 1:
            raise ValueError(f"embedding projection_size must be positive, not {self.projection_size}")
        if self.kind == "latent" and self.reward not in ("max", "none"):
            raise ValueError(f"embedding kind 'latent' has no reward weight, so reward={self.reward!r} means nothing")
        if self.latent == "kl" and self.metric == "cosine":
            raise ValueError("embedding latent='kl' is a distance without inner products, so it has no cosine metric")


@struct.dataclass
class Features:
    """What of one task the inner products need; leading axes as the caller vmapped them.

    Attributes:
      values: pytree, by kind and form: score factors of n samples, or the embedding itself.
      weights: `[n]` weights of the samples, None where the values are sums already.
      guard: `[]` whether the reward guard fired; inner products ignore it.
    """

    values: PyTree
    weights: PyTree
    guard: jax.Array


@struct.dataclass
class KroneckerFactors:
    """Block-diagonal Fisher matrix with blocks `A_l (x) B_l`; inputs `A_l [in, in]`, deltas `B_l [out, out]`, rest `[r, r]`."""

    inputs: tuple[jax.Array, ...]
    deltas: tuple[jax.Array, ...]
    rest: jax.Array


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Pure functions of one embedding; all may be jitted and vmapped. Axes: E episodes, T steps, N tasks."""

    config: EmbeddingConfig

    def features(self, apply: Apply, params: Params, episodes: Episodes, key: jax.Array) -> Features:
        """Compute features of ONE task.

        Args:
          apply: `apply(params, obs [O]) -> (mean [A], log_std [A])`, the probe's (pre-tanh) Gaussian policy, not jitted.
          params: its parameters.
          episodes: leaves `[E, T, ...]`; invalid and non-finite steps are left out.
          key: consumed, by the sample of fresh actions only.

        Raises:
          ValueError: the kind is `latent`, whose features are `latent_features`.
        """
        if self.config.kind == "latent":
            raise ValueError("embedding kind 'latent' takes the posterior: use latent_features(mean, var)")
        steps, valid = finite_steps(episodes)
        weights, guard = reward_weights(steps.rewards, valid, self.config.reward)
        uniform, _ = reward_weights(steps.rewards, valid, "none")
        steps, weights, uniform = jax.tree.map(_merge_episodes, (steps, weights, uniform))
        with jax.default_matmul_precision("highest"):
            any_scale = self.config.metric == "cosine"  # which needs no absolute magnitudes, and so must not lose them
            if self.config.kind == "transition":
                return Features(transition_embedding(steps, weights, any_scale), None, guard)
            if self.config.kind == "gradient":
                values = gradient_embedding(apply, params, steps, weights, self.config.density, any_scale)
                return Features(values, None, guard)
            values, row_weights = fisher_embedding(apply, params, steps.obs, weights, uniform, key, self.config)
        return Features(values, row_weights, guard)

    def gram(self, a: Features, b: Features) -> Float[Array, "Na Nb"]:
        """Compute inner products `[Na, Nb]` of features with leaves `[Na, ...]` and `[Nb, ...]`."""
        if self.config.metric != "cosine":
            return self._inner(a, b)
        a, b = self._scaled(a), self._scaled(b)
        return cosine(self._inner(a, b), self._squares(a), self._squares(b))

    def self_gram(self, a: Features) -> Float[Array, "N N"]:
        """Compute `gram(a, a)`, symmetric `[N, N]`, for about half the work."""
        if self.config.metric != "cosine":
            return self._inner(a, None)
        gram = self._inner(self._scaled(a), None)
        return cosine(gram, jnp.diagonal(gram), jnp.diagonal(gram))

    def norms(self, a: Features) -> Float[Array, " N"]:
        """Compute squared norms `[N]`, the diagonal of `self_gram`."""
        if self.config.metric != "cosine":
            return self._squares(a)
        squares = self._squares(self._scaled(a))
        return jnp.where(squares > 0, 1.0, jnp.where(squares == 0, 0.0, squares)).astype(squares.dtype)

    def _inner(self, a: Features, b: Features | None) -> jax.Array:
        if self.config.latent == "kl" and self.config.kind == "latent":
            other = a if b is None else b
            # Distances written as a Gram: -D/2 (with zero norms) has the squared distances g_ii + g_jj - 2 g_ij = D.
            return -symmetric_kl(*a.values, *other.values) / 2
        return _inner_products(self._comparable(a), None if b is None else self._comparable(b))

    def _squares(self, a: Features) -> jax.Array:
        if self.config.latent == "kl" and self.config.kind == "latent":
            return jnp.zeros(a.guard.shape)
        comparable = self._comparable(a)
        if isinstance(comparable.values, fisher.ScoreFactors):
            return fisher.gram_norms(comparable.values, comparable.weights)
        return jax.lax.map(lambda one: _inner_products(jax.tree.map(lambda leaf: leaf[None], one), None)[0, 0], comparable)

    def _scaled(self, a: Features) -> Features:
        """Features of the same directions with entries near 1: fourth powers of others would leave float32's range."""
        a = self._comparable(a)
        weights = a.weights if a.weights is None else jax.vmap(_to_unit_maximum)(a.weights)
        return dataclasses.replace(a, values=jax.vmap(_to_unit_magnitude)(a.values), weights=weights)

    def _comparable(self, a: Features) -> Features:
        if self.config.kind != "latent" or not isinstance(a.values, tuple):
            return a
        mean, var = a.values
        # 2-Wasserstein between diagonal Gaussians is the Euclidean distance of (mean, standard deviation).
        point = mean if self.config.latent == "mean" else jnp.concatenate([mean, jnp.sqrt(var)], -1)
        return dataclasses.replace(a, values=point)


NAMES: dict[str, dict[str, Any]] = {
    "fisher": {},
    "fisher-expected": {"expectation": "closed_form"},
    "fisher-diagonal": {"form": "diagonal"},
    "fisher-last-layer": {"form": "last_layer"},
    "fisher-kronecker": {"form": "kronecker"},
    "fisher-projection": {"form": "projection"},
    "transition": {"kind": "transition"},
    "gradient": {"kind": "gradient"},
    "log-gradient": {"kind": "gradient", "density": "log"},
    "latent": {"kind": "latent"},
    "latent-wasserstein": {"kind": "latent", "latent": "wasserstein"},
    "latent-kl": {"kind": "latent", "latent": "kl"},
}
"""Names of the embeddings on the command line: name -> fields of `EmbeddingConfig`, the reward weights and the metric aside."""


def named_embedding(name: str, reward: str | None = None, metric: str | None = None) -> EmbeddingConfig:
    """Return the configuration of an embedding by its name in `NAMES`.

    Args:
      name: of `NAMES`.
      reward, metric: as in `EmbeddingConfig`; None for its default.

    Raises:
      ValueError: the name or a value is unknown, or they do not go together.
    """
    if name not in NAMES:
        raise ValueError(f"unknown embedding {name!r}; choose from {', '.join(NAMES)}")
    fields: dict[str, Any] = NAMES[name] | {"reward": reward, "metric": metric}
    return EmbeddingConfig(**{field: value for field, value in fields.items() if value is not None})


# From episodes to weights -------------------------------------------------------------------------------------------


def finite_steps(episodes: Episodes) -> tuple[Episodes, jax.Array]:
    """Return episodes with zeros wherever a step is invalid or not finite, and the mask `[E, T]` of the steps that remain.

    Zeros, because a weight of 0 does not silence a NaN.
    """
    data = (episodes.obs, episodes.actions, episodes.rewards[..., None], episodes.next_obs)
    valid = episodes.valid > 0
    for leaf in data:
        valid &= jnp.isfinite(leaf).all(-1)

    def keep(leaf: jax.Array) -> jax.Array:
        return jnp.where(valid.reshape(valid.shape + (1,) * (leaf.ndim - valid.ndim)), leaf, 0.0)

    obs, actions, rewards, next_obs = map(keep, data)
    kept = dataclasses.replace(episodes, obs=obs, actions=actions, rewards=rewards[..., 0], next_obs=next_obs)
    return kept, valid


def reward_weights(rewards: jax.Array, valid: jax.Array, mode: str) -> tuple[jax.Array, jax.Array]:
    """Compute weights of one task's transitions, the means over steps and episodes included, and whether the guard fired.

    `w_et = valid_et rho_et / (T_e E)`, with T_e the valid steps of episode e, E the episodes that have one, and rho the reward
    over its maximum over all valid transitions of the task. With a maximum <= 0 or tiny that would flip or inflate every
    weight, so unless `max r > 0.05 max|r|` the guard divides by `max|r|`.

    Args:
      rewards: `[E, T]`.
      valid: `[E, T]`.
      mode: `max`, `absolute`, `none` or `raw`, see `EmbeddingConfig`.

    Returns:
      weights `[E, T]` and guard `[]`.
    """
    chex.assert_rank([rewards, valid], 2)
    chex.assert_equal_shape([rewards, valid])
    valid = valid > 0
    rewards = jnp.where(valid, rewards, 0.0)
    magnitude = jnp.abs(rewards).max()
    highest = jnp.where(valid, rewards, -magnitude).max()
    guard = jnp.logical_not(highest > GUARD * magnitude) & (mode == "max")
    scale = {"max": jnp.where(guard, magnitude, highest), "absolute": magnitude}.get(mode, jnp.ones_like(magnitude))
    values = jnp.ones_like(rewards) if mode == "none" else rewards / jnp.where(scale > 0, scale, 1.0)
    steps = valid.sum(-1, keepdims=True)
    episodes = (steps > 0).sum()
    return jnp.where(valid, values, 0.0) / jnp.maximum(steps, 1) / jnp.maximum(episodes, 1), guard


def _merge_episodes(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(-1, *leaf.shape[2:]) if leaf.ndim >= 2 else leaf


# The kinds, each on the n = E T flattened steps of one task --------------------------------------------------------


def transition_embedding(steps: Episodes, weights: Float[Array, " n"], any_scale: bool = False) -> Float[Array, " entries"]:
    """Compute `sum_t w_t [s_t, s_t+1][s_t, s_t+1]^T`, flattened `[(2 O)^2]` (section 4.2, embedding 2).

    Args:
      steps: leaves `[n, ...]`.
      weights: `[n]`.
      any_scale: whether any positive multiple will do; then observations whose squares leave float32's range do as well.
    """
    pairs = jnp.concatenate([steps.obs, steps.next_obs], -1)
    return _second_moment(weights, _to_unit_maximum(pairs) if any_scale else pairs).ravel()


def gradient_embedding(
    apply: Apply, params: Params, steps: Episodes, weights: Float[Array, " n"], density: str, any_scale: bool = False
) -> Float[Array, " d"]:
    """Compute `sum_t w_t grad_theta pi(a_t | s_t)` at the executed actions, `[d]` (section 4.2, embedding 4); or of `log pi`.

    With `any_scale` densities are divided by the largest of a weighted step: a narrow policy's leave float32's range.
    """

    def weighted(params: Params) -> jax.Array:
        log_probs = jax.vmap(gaussian_log_prob(apply), in_axes=(None, 0, 0))(params, steps.obs, steps.actions)
        if density == "density" and any_scale:
            highest = jnp.max(jnp.where(weights != 0, log_probs, -jnp.inf))
            log_probs = jnp.where(weights != 0, log_probs - jax.lax.stop_gradient(highest), 0.0)
        return weights @ (jnp.exp(log_probs) if density == "density" else log_probs)

    return fisher.flatten_samples(jax.grad(weighted)(params), 0)


def fisher_embedding(
    apply: Apply,
    params: Params,
    obs: Float[Array, "n O"],
    weights: Float[Array, " n"],
    uniform: Float[Array, " n"],
    key: jax.Array,
    config: EmbeddingConfig,
) -> tuple[PyTree, PyTree]:
    """Compute the reward-weighted Fisher matrix `sum_t w_t E_a[g g^T | s_t]` in the configured form (section 4.2, embedding 1).

    Args:
      apply: `apply(params, obs [O]) -> (mean [A], log_std [A])`.
      params: its parameters.
      obs: `[n, O]`.
      weights: `[n]`.
      uniform: `[n]` the weights without reward.
      key: consumed where fresh actions are sampled.
      config: form, expectation and projection size.

    Returns:
      values and weights as in `Features`.
    """
    rows = expected_rows if config.expectation == "closed_form" else functools.partial(sampled_rows, key=key)
    score = rows(apply, params, obs, weights, uniform)
    if config.form == "diagonal":
        return fisher.factor_diagonal(score.factors, score.weights), None
    if config.form == "kronecker":
        return kronecker_factors(score), None
    if config.form == "projection":
        return projected_fisher(score.factors, score.weights, config.projection_size), None
    factors = score.factors
    if config.form == "last_layer":
        factors = fisher.ScoreFactors(factors.inputs[-1:], factors.deltas[-1:], factors.rest[:, :0])
    if score.per_input > 1:
        return fisher.group_rows(factors, score.per_input), score.weights[:: score.per_input]
    return factors, score.weights


def gaussian_log_prob(apply: Apply) -> Callable[[PyTree, jax.Array, jax.Array], jax.Array]:
    """`log N(a; mean(s), diag exp(2 log_std(s)))` as a function of `(params, obs [O], action [A])`."""

    def log_prob(params: Params, obs: jax.Array, action: jax.Array) -> jax.Array:
        return distributions.gaussian_log_prob(action, *apply(params, obs))

    return log_prob


def noise_log_prob(apply: Apply) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
    """`log N(a; mean(s), diag exp(2 log_std(s)))` at the fixed action `a = mean + exp(log_std) noise`.

    The action itself is never rounded: a narrow policy's `a - mean` would keep few digits.
    """

    def log_prob(params: Params, obs: jax.Array, noise: jax.Array) -> jax.Array:
        mean, log_std = apply(params, obs)
        fixed_mean, fixed_log_std = jax.lax.stop_gradient((mean, log_std))
        offset = (fixed_mean - mean) + jnp.exp(fixed_log_std) * noise
        return distributions.gaussian_log_prob(offset, jnp.zeros_like(mean), log_std)

    return log_prob


class ScoreRows(NamedTuple):
    """Scores, `m` rows for n states: factors `[m, ...]` and, each `[m]`, the weights, the weights without reward, and the
    weights with which every state counts once however many rows it has. Each `per_input` rows in a row are of one state.
    """

    factors: fisher.ScoreFactors
    weights: jax.Array
    uniform: jax.Array
    once: jax.Array
    per_input: int = 1


def sampled_rows(
    apply: Apply,
    params: Params,
    obs: Float[Array, "n O"],
    weights: Float[Array, " n"],
    uniform: Float[Array, " n"],
    key: jax.Array,
) -> ScoreRows:
    """Compute scores at one fresh action per state: a sample of the Fisher matrix, not the empirical Fisher matrix."""
    mean: Any = jax.eval_shape(jax.vmap(apply, in_axes=(None, 0)), params, obs)[0]
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    factors = fisher.score_factors(noise_log_prob(apply), params, obs, noise)
    return ScoreRows(factors, weights, uniform, weights)


def expected_rows(
    apply: Apply, params: Params, obs: Float[Array, "n O"], weights: Float[Array, " n"], uniform: Float[Array, " n"]
) -> ScoreRows:
    """Compute pseudo-scores of the exact expectation over actions, A of the mean and up to A of the deviation per state."""
    mean, log_std = fisher.gaussian_factors(apply, params, obs)
    count = mean.rest.shape[0] // obs.shape[0]
    shared = log_std.rest.shape[0] == count

    def spread(w: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.repeat(w, count), jnp.repeat(w.sum(keepdims=True) if shared else w, count)])

    factors = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), mean, log_std)
    once = jnp.concatenate([jnp.repeat(weights, count) / count, jnp.zeros(log_std.rest.shape[0], weights.dtype)])
    return ScoreRows(factors, spread(weights), spread(uniform), once, count)


def kronecker_factors(rows: ScoreRows) -> KroneckerFactors:
    """`F_l ~ (sum_t w_t x x^T) (x) (sum_t u_t delta delta^T)` per dense layer, and the exact block of the rest.

    Without reward weights (w = u, summing to 1) this is K-FAC's `E[x x^T] (x) E[delta delta^T]`. Reward depends on the
    state, so its weight goes to the inputs; in both factors it would count twice, and dividing by its sum could divide by 0.
    """
    inputs = tuple(_second_moment(rows.once, x) for x in rows.factors.inputs)
    deltas = tuple(_second_moment(rows.uniform, delta) for delta in rows.factors.deltas)
    return KroneckerFactors(inputs, deltas, _second_moment(rows.weights, rows.factors.rest))


def projected_fisher(factors: fisher.ScoreFactors, weights: Float[Array, " n"], size: int) -> Float[Array, " entries"]:
    """`sum_t w_t (P g_t)(P g_t)^T`, flattened `[size^2]`, with a random P of entries with `E[P^T P] = I`.

    A dense layer's block of P is the row-wise Kronecker product of two sign matrices, so that it acts on the factors:
    `P g = (sum_l (R_l delta_l) * (S_l x_l) + R rest) / sqrt(size)`. P comes from a fixed key: all tasks share it.
    """
    blocks = [*factors.inputs, *factors.deltas, factors.rest]
    keys = jax.random.split(jax.random.key(0), len(blocks))
    signs = [jax.random.rademacher(key, (leaf.shape[-1], size), leaf.dtype) for key, leaf in zip(keys, blocks, strict=True)]
    projected = [jnp.dot(leaf, sign, precision="highest") for leaf, sign in zip(blocks, signs, strict=True)]
    layers = len(factors.inputs)
    total = projected[-1]
    for x, delta in zip(projected[:layers], projected[layers:-1], strict=True):
        total = total + x * delta
    return _second_moment(weights, total / jnp.sqrt(size)).ravel()


def _second_moment(weights: Float[Array, " n"], rows: Float[Array, "n d"]) -> Float[Array, "d d"]:
    return jnp.dot(rows.T * weights, rows, precision="highest")


# Inner products and distances --------------------------------------------------------------------------------------


def cosine(
    gram: Float[Array, "Na Nb"], squares_a: Float[Array, " Na"], squares_b: Float[Array, " Nb"]
) -> Float[Array, "Na Nb"]:
    """Scale a Gram `[Na, Nb]` to embeddings of unit norm; a zero embedding keeps zero products.

    Each norm divides by itself: the product of two squared norms would leave float32's range first.
    """
    scale_a, scale_b = jnp.sqrt(jnp.maximum(squares_a, 0.0))[:, None], jnp.sqrt(jnp.maximum(squares_b, 0.0))[None]
    defined = (scale_a > 0) & (scale_b > 0)
    cosines = gram / jnp.where(scale_a > 0, scale_a, 1.0) / jnp.where(scale_b > 0, scale_b, 1.0)
    return jnp.where(jnp.logical_not(defined) & jnp.isfinite(gram), 0.0, cosines)


def _to_unit_maximum(x: jax.Array) -> jax.Array:
    """`x` divided by its largest magnitude; zeros stay."""
    largest = jnp.max(jnp.abs(x), initial=0.0)
    return x / jnp.where(largest > 0, largest, 1.0)


def _to_unit_magnitude(values: PyTree) -> PyTree:
    """One task's values as a positive multiple of themselves, with entries near 1; by what they are."""
    if isinstance(values, fisher.ScoreFactors | fisher.JacobianFactors | KroneckerFactors):
        return _balanced(values, values.inputs, values.deltas, values.rest)
    return _to_unit_maximum(values)


def _balanced(values: PyTree, inputs: tuple[jax.Array, ...], deltas: tuple[jax.Array, ...], rest: jax.Array) -> PyTree:
    """Factors whose products are all scaled by one number, the inputs of each layer having 1 as their largest magnitude."""
    sizes = [jnp.max(jnp.abs(x), initial=0.0) for x in inputs]
    sizes = [jnp.where(size > 0, size, 1.0) for size in sizes]
    scaled = [delta * size for delta, size in zip(deltas, sizes, strict=True)]
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in (*scaled, rest)]).max()
    largest = jnp.where(largest > 0, largest, 1.0)
    return values.replace(
        inputs=tuple(x / size for x, size in zip(inputs, sizes, strict=True)),
        deltas=tuple(delta / largest for delta in scaled),
        rest=rest / largest,
    )


def _inner_products(a: Features, b: Features | None) -> jax.Array:
    """Inner products by what the values are: score factors, Kronecker factors or plain vectors `[N, d]`."""
    other = a if b is None else b
    if isinstance(a.values, fisher.ScoreFactors):
        return fisher.factor_gram(a.values, a.weights, *(() if b is None else (b.values, b.weights)))
    if isinstance(a.values, fisher.JacobianFactors):
        return fisher.jacobian_gram(a.values, a.weights, *(() if b is None else (b.values, b.weights)))
    if isinstance(a.values, KroneckerFactors):
        gram = _flat_dot(a.values.rest, other.values.rest)
        inputs = map(_flat_dot, a.values.inputs, other.values.inputs)
        deltas = map(_flat_dot, a.values.deltas, other.values.deltas)
        return gram + sum(x * delta for x, delta in zip(inputs, deltas, strict=True))
    return _flat_dot(a.values, other.values)


def _flat_dot(a: Float[Array, "Na ..."], b: Float[Array, "Nb ..."]) -> Float[Array, "Na Nb"]:
    """Inner products `[Na, Nb]` of arrays `[Na, ...]` and `[Nb, ...]`."""
    return jnp.dot(a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1).T, precision="highest")


def latent_features(mean: Float[Array, " Z"], var: Float[Array, " Z"]) -> Features:
    """Return features of ONE task whose embedding is a posterior `N(mean, diag var)` over PEARL's latent, each `[Z]`."""
    return Features((mean, var), None, jnp.zeros((), bool))


def wasserstein2(
    mean_a: Float[Array, "Na Z"], var_a: Float[Array, "Na Z"], mean_b: Float[Array, "Nb Z"], var_b: Float[Array, "Nb Z"]
) -> Float[Array, "Na Nb"]:
    """Compute squared 2-Wasserstein distances `|m - m'|^2 + |s - s'|^2` between diagonal Gaussians, `[N*, Z]` -> `[Na, Nb]`."""
    means = (mean_a[:, None] - mean_b[None]) ** 2
    deviations = (jnp.sqrt(var_a)[:, None] - jnp.sqrt(var_b)[None]) ** 2
    return (means + deviations).sum(-1)


def symmetric_kl(
    mean_a: Float[Array, "Na Z"], var_a: Float[Array, "Na Z"], mean_b: Float[Array, "Nb Z"], var_b: Float[Array, "Nb Z"]
) -> Float[Array, "Na Nb"]:
    """Compute the mean of the two Kullback-Leibler divergences between diagonal Gaussians, `[Na, Z]`, `[Nb, Z]` -> `[Na, Nb]`.

    `1/4 sum_z [(v + d^2)/v' + (v' + d^2)/v - 2]` with d the difference of the means.
    """
    square = (mean_a[:, None] - mean_b[None]) ** 2
    v_a, v_b = var_a[:, None], var_b[None]
    return ((v_a + square) / v_b + (v_b + square) / v_a - 2.0).sum(-1) / 4
