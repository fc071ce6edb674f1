"""Returns, advantages and their normalisation on episodes that may end early."""

from typing import Literal

import jax
import jax.numpy as jnp

from tamherd_jax.maml._checks import check_equal_shapes, check_rank

AdvantageScale = Literal["std", "variance", "none"]


def discounted_returns(rewards: jax.Array, discount: float) -> jax.Array:
    """Compute returns to go `G_t = r_t + gamma G_{t+1}`, `G_T = 0`.

    Args:
      rewards: `[T]`, 0 after the end of the episode.
      discount: gamma.

    Returns:
      `[T]`.

    Raises:
      ValueError: `rewards` has another rank.

    Source: Sutton and Barto (2018) eq. 3.9.
    """
    check_rank("rewards", rewards, 1)

    def backward(following: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        current = reward + discount * following
        return current, current

    return jax.lax.scan(backward, jnp.zeros_like(rewards[0]), rewards, reverse=True)[1]


def generalized_advantages(rewards: jax.Array, values: jax.Array, valid: jax.Array, discount: float, lam: float) -> jax.Array:
    """Compute generalised advantages `A_t = delta_t + gamma lambda A_{t+1}`, `delta_t = r_t + gamma V_{t+1} - V_t`.

    Values beyond the end of an episode, a time limit's included, count as zero; with lambda 1 this is `G_t - V_t`.

    Args:
      rewards, values: `[T]`; ignored in invalid steps, finite or not.
      valid: `[T]`, 1 while the episode runs.
      discount: gamma.
      lam: lambda.

    Returns:
      `[T]`, 0 where not valid.

    Raises:
      ValueError: an argument has another rank, or their shapes differ.

    Source: Schulman et al. (2016) eq. 16; garage `compute_advantages`.
    """
    check_rank("rewards", rewards, 1)
    check_equal_shapes(rewards=rewards, values=values, valid=valid)
    rewards, values = (jnp.where(valid > 0, x, 0.0) for x in (rewards, values))  # 0 times a NaN of the padding is NaN
    following = jnp.append(values[1:], jnp.zeros_like(values[:1]))
    return discounted_returns(jnp.where(valid > 0, rewards + discount * following - values, 0.0), discount * lam)


def masked_mean(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the mean of `x` over the entries whose `valid` is 1, over all axes, `[]`; 0 if there are none.

    Raises:
      ValueError: the shapes of `x` and `valid` differ.
    """
    check_equal_shapes(x=x, valid=valid)
    return jnp.sum(jnp.where(valid > 0, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1.0)


def normalize_advantages(advantages: jax.Array, valid: jax.Array, scale: AdvantageScale = "std") -> jax.Array:
    """Centre advantages over the valid steps of one task's batch, then divide.

    `"std"`: `(A - mean) / (std + 1e-8)`. `"variance"`: `(A - mean) / (var + 1e-8)` with the unbiased variance, what garage and
    its descendants do, which shrinks the inner step as returns grow. `"none"`: centre only.

    Args:
      advantages, valid: equal shapes, `[R, T]`.
      scale: which.

    Returns:
      The shape of `advantages`, 0 where not valid.

    Raises:
      ValueError: for another `scale`, or if the shapes differ.

    Source: garage `vpg.py::_compute_advantage`.
    """
    if scale not in ("std", "variance", "none"):
        raise ValueError(f"advantage scale must be std, variance or none, not {scale!r}")
    check_equal_shapes(advantages=advantages, valid=valid)
    centred = jnp.where(valid > 0, advantages - masked_mean(advantages, valid), 0.0)
    if scale == "none":
        return centred
    variance = jnp.sum(centred**2) / jnp.maximum(jnp.sum(valid) - 1.0, 1.0)
    return centred / ((jnp.sqrt(variance) if scale == "std" else variance) + 1e-8)
