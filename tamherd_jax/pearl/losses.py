"""The losses of soft actor-critic with a state value, as PEARL uses them (oyster `rlkit/torch/sac/sac.py`; spec 2.1).

Entropy has weight 1 and rewards are scaled instead. Each is a mean over every leading axis: tasks of the meta-batch and
transitions of the batch count alike.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tamherd_jax.distributions import gaussian_log_prob

SQUASH_EPSILON = 1e-6


def squashed_log_prob(pre_tanh: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log density of `a = tanh(u)`: `log N(u; mean, std) - sum_A log(1 - tanh(u)^2 + 1e-6)`.

    Args:
      pre_tanh: `[..., A]` the sample `u`.
      mean: `[..., A]` of its Gaussian.
      log_std: `[..., A]` of its Gaussian.

    Returns:
      `[...]`.
    """
    squash = jnp.sum(jnp.log(1.0 - jnp.tanh(pre_tanh) ** 2 + SQUASH_EPSILON), axis=-1)
    return gaussian_log_prob(pre_tanh, mean, log_std) - squash


def q_targets(
    rewards: jax.Array, terminated: jax.Array, next_values: jax.Array, discount: float, reward_scale: float
) -> jax.Array:
    """`y = reward_scale r + (1 - terminated) discount V_target(s', z)`, all `[...]`; a time limit is no termination."""
    return reward_scale * rewards + (1.0 - terminated) * discount * next_values


def critic_loss(q_values: jax.Array, targets: jax.Array) -> jax.Array:
    """`mean (Q_1 - y)^2 + mean (Q_2 - y)^2` of `[2, ...]` values and `[...]` targets, which carry no gradient."""
    return q_values.shape[0] * jnp.mean((q_values - jax.lax.stop_gradient(targets)[None]) ** 2)


def value_loss(values: jax.Array, min_q: jax.Array, log_prob: jax.Array) -> jax.Array:
    """`mean (V - (min Q - log pi))^2`, all `[...]`; the target carries no gradient."""
    return jnp.mean((values - jax.lax.stop_gradient(min_q - log_prob)) ** 2)


def actor_loss(
    log_prob: jax.Array,
    min_q: jax.Array,
    mean: jax.Array,
    log_std: jax.Array,
    pre_tanh: jax.Array,
    weights: tuple[float, float, float],
) -> jax.Array:
    """`mean(log pi - min Q) + w_1 mean mean^2 + w_2 mean log_std^2 + w_3 mean sum_A u^2`.

    Args:
      log_prob: `[...]` of the reparameterised, squashed sample.
      min_q: `[...]` the smaller Q at it.
      mean: `[..., A]` of the Gaussian before the squashing.
      log_std: `[..., A]`.
      pre_tanh: `[..., A]` the sample u before the squashing.
      weights: `(w_1, w_2, w_3)`.
    """
    mean_weight, log_std_weight, pre_tanh_weight = weights
    loss = jnp.mean(log_prob - min_q)
    loss += mean_weight * jnp.mean(mean**2) + log_std_weight * jnp.mean(log_std**2)
    return loss + pre_tanh_weight * jnp.mean(jnp.sum(pre_tanh**2, axis=-1))
