"""The losses of soft actor-critic, as PEARL uses them (oyster `rlkit/torch/sac/sac.py`), and critics as distributions.

Each is a mean over every leading axis: tasks of the meta-batch and transitions of the batch count alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from tamherd_jax.distributions import gaussian_log_prob

SQUASH_EPSILON = 1e-6
_LOG_2 = 0.6931471805599453


def clipped_log_slope(pre_tanh: jax.Array) -> jax.Array:
    """`log(1 - tanh(u)^2 + 1e-6)`, elementwise: oyster's, flat where |u| is beyond 8."""
    return jnp.log(1.0 - jnp.tanh(pre_tanh) ** 2 + SQUASH_EPSILON)


def exact_log_slope(pre_tanh: jax.Array) -> jax.Array:
    """`log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`, elementwise, to full precision for any u."""
    return 2.0 * (_LOG_2 - pre_tanh - jax.nn.softplus(-2.0 * pre_tanh))


LOG_SLOPES: dict[str, Callable[[jax.Array], jax.Array]] = {"exact": exact_log_slope, "clipped": clipped_log_slope}
"""Logarithm of tanh's derivative, by the name that `PEARLConfig.squash` has for it."""


def squashed_log_prob(
    pre_tanh: Float[Array, "*#b A"],
    mean: Float[Array, "*#b A"],
    log_std: Float[Array, "*#b A"],
    log_slope: Callable[[jax.Array], jax.Array] = exact_log_slope,
) -> Float[Array, "..."]:
    """Log density of `a = tanh(u)`: `log N(u; mean, std) - sum_A log(1 - tanh(u)^2)`.

    Args:
      pre_tanh: `[..., A]` the sample `u`.
      mean: `[..., A]` of its Gaussian.
      log_std: `[..., A]` of its Gaussian.
      log_slope: one of `LOG_SLOPES`.

    Returns:
      `[...]`.
    """
    slope = jnp.sum(log_slope(pre_tanh), axis=-1)
    return gaussian_log_prob(pre_tanh, mean, log_std) - slope


class ValueHead(NamedTuple):
    """How a critic's outputs are a value, and how they are fitted to one.

    Attributes:
      size: F, of the outputs.
      value: outputs `[..., F]` to values `[...]`.
      loss: outputs `[..., F]` and targets `[...]`, which carry no gradient, to losses `[...]`.
    """

    size: int
    value: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]


def squared_head() -> ValueHead:
    """One output, the value itself, and its squared error."""
    return ValueHead(1, lambda outputs: outputs[..., 0], lambda outputs, targets: (outputs[..., 0] - targets) ** 2)


def categorical_head(bins: int, limit: float, smoothing: float = 0.75) -> ValueHead:
    """Logits of values at the centres of F bins of equal width over `[-limit, limit]`; the value is their mean.

    The loss is the cross-entropy to a Gaussian around the target, of `smoothing` bin widths and cut to the bins.

    Args:
      bins: F.
      limit: of the values; targets beyond it count as if they lay on it.
      smoothing: standard deviation in bin widths.

    Source: Farebrother et al. (2024), "Stop Regressing", HL-Gauss (0.75 bin widths).
    """
    edges = jnp.linspace(-limit, limit, bins + 1)
    centres, sigma = 0.5 * (edges[1:] + edges[:-1]), smoothing * 2.0 * limit / bins

    def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        distance = (jnp.expand_dims(edges, range(targets.ndim)) - jnp.clip(targets, -limit, limit)[..., None]) / sigma
        mass = jnp.diff(jax.scipy.stats.norm.cdf(distance), axis=-1)
        mass = mass / jnp.sum(mass, axis=-1, keepdims=True)
        return -jnp.sum(mass * jax.nn.log_softmax(outputs), axis=-1)

    return ValueHead(bins, lambda outputs: jax.nn.softmax(outputs) @ centres, loss)


def q_targets(
    rewards: Float[Array, " *b"],
    terminated: Shaped[Array, " *b"],
    next_values: Float[Array, " *b"],
    discount: float | jax.Array,
    reward_scale: float | jax.Array,
) -> Float[Array, " *b"]:
    """`y = reward_scale r + (1 - terminated) discount V_target(s', z)`, all `[...]`; a time limit is no termination."""
    return reward_scale * rewards + (1.0 - terminated) * discount * next_values


def critic_loss(outputs: Float[Array, "Q=2 *b F"], targets: Float[Array, " *b"], head: ValueHead) -> Float[Array, ""]:
    """`mean loss(Q_1, y) + mean loss(Q_2, y)` of outputs `[2, ..., F]` and targets `[...]`, which carry no gradient."""
    return outputs.shape[0] * jnp.mean(head.loss(outputs, jax.lax.stop_gradient(targets)[None]))


def soft_value(
    min_q: Float[Array, " *b"], log_prob: Float[Array, " *b"], temperature: float | jax.Array
) -> Float[Array, " *b"]:
    """`min Q - temperature log pi`, all `[...]`: an unbiased sample of a state's value."""
    return min_q - temperature * log_prob


def value_loss(outputs: Float[Array, "*b F"], targets: Float[Array, " *b"], head: ValueHead) -> Float[Array, ""]:
    """`mean loss(V, y)` of outputs `[..., F]` and soft values `[...]`, which carry no gradient."""
    return jnp.mean(head.loss(outputs, jax.lax.stop_gradient(targets)))


def actor_loss(
    log_prob: Float[Array, " *b"],
    min_q: Float[Array, " *b"],
    mean: Float[Array, "*b A"],
    log_std: Float[Array, "*b A"],
    pre_tanh: Float[Array, "*b A"],
    weights: tuple[float | jax.Array, float | jax.Array, float | jax.Array],
    temperature: float | jax.Array = 1.0,
) -> Float[Array, ""]:
    """`mean(temperature log pi - min Q) + w_1 mean mean^2 + w_2 mean log_std^2 + w_3 mean sum_A u^2`.

    Args:
      log_prob: `[...]` of the reparameterised, squashed sample.
      min_q: `[...]` the smaller Q at it.
      mean: `[..., A]` of the Gaussian before the squashing.
      log_std: `[..., A]`.
      pre_tanh: `[..., A]` the sample u before the squashing.
      weights: `(w_1, w_2, w_3)`.
      temperature: of the entropy.
    """
    mean_weight, log_std_weight, pre_tanh_weight = weights
    loss = jnp.mean(temperature * log_prob - min_q)
    loss += mean_weight * jnp.mean(mean**2) + log_std_weight * jnp.mean(log_std**2)
    return loss + pre_tanh_weight * jnp.mean(jnp.sum(pre_tanh**2, axis=-1))
