"""A reward for telling tasks apart, on which a probe may be trained (the paper's Discussion).

The mutual information between the task n and what a step of it shows, x = (s, s', r), is at least `E[log q(n|x)] + log N` for
any classifier q (Barber and Agakov 2003), so `log q(n|x) + log N` rewards a policy for behaviour that gives its task away, as
VIC (Gregor et al. 2016) and DIAYN (Eysenbach et al. 2019) reward skills. Theirs is a network trained alongside; q here is a
linear discriminant in closed form, fitted to the batch that it rewards, so that a learner has no further state.

Axes: M tasks drawn, R episodes, T steps, B samples, F features, N tasks.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from tamherd_jax.types import Episodes

RIDGE = 1e-3
"""Added to the variances within tasks, in units of each feature's total variance."""


def information_reward(episodes: Episodes, task: jax.Array, tasks: int, weight: float = 1.0) -> Float[Array, "M R T"]:
    """Compute `r + beta clip(log q(n | s, s', r) + log N', -log N', log N')`, N' the number of sampled tasks.

    The reward is among the features because tasks may differ in nothing else. Clipped, a step that looks like another task's
    costs no more than a telling one earns.

    Args:
      episodes: of M task draws, leaves `[M, R, T, ...]`, finite.
      task: `[M]` which of the N tasks each draw is of.
      tasks: N.
      weight: beta.

    Returns:
      `[M, R, T]`, 0 where not valid.
    """
    chex.assert_rank([episodes.rewards, task], [3, 1])
    shape, size = episodes.valid.shape, episodes.valid.size
    features = jnp.concatenate([episodes.obs, episodes.next_obs, episodes.rewards[..., None]], -1).reshape(size, -1)
    label = jnp.repeat(task, size // task.size)
    valid = episodes.valid.ravel()
    log_posterior = linear_discriminant(jnp.where(valid[:, None] > 0, features, 0.0), label, valid, tasks)
    drawn = jnp.sum(jnp.any(task[:, None] == jnp.arange(tasks)[None], 0))
    log_count = jnp.log(drawn.astype(features.dtype))
    gain = jnp.take_along_axis(log_posterior, label[:, None], 1)[:, 0] + log_count
    return (episodes.rewards + weight * jnp.clip(gain, -log_count, log_count).reshape(shape)) * episodes.valid


def linear_discriminant(
    features: Float[Array, "B F"], label: Integer[Array, " B"], weights: Float[Array, " B"], classes: int
) -> Float[Array, "B N"]:
    """Compute the log posterior `[B, N]` of Fisher's linear discriminant, fitted to the samples that it is asked about.

    Gaussian classes of equal prior with means m_n and one covariance C: `log q(n|x) = x C^-1 m_n - m_n C^-1 m_n / 2 - log Z`.
    Features are standardised first and C gets `RIDGE` on its diagonal, so that one that never changes does no harm.

    Args:
      features: `[B, F]`.
      label: `[B]` the class of each sample.
      weights: `[B]` at least 0; a sample of weight 0 is not fitted to.
      classes: N. One without samples has probability 0.

    Source: Hastie, Tibshirani and Friedman (2009), section 4.3.
    """
    chex.assert_rank([features, label, weights], [2, 1, 1])
    with jax.default_matmul_precision("highest"):
        total = jnp.maximum(weights.sum(), 1.0)
        centred = features - (weights @ features / total)[None]
        largest = jnp.max(jnp.abs(centred) * (weights > 0)[:, None], axis=0)
        centred = centred / jnp.where(largest > 0, largest, 1.0)[None]  # squares of any unit stay in float32's range
        scale = jnp.sqrt(weights @ centred**2 / total)
        x = centred / jnp.where(scale > 0, scale, 1.0)[None]
        member = jax.nn.one_hot(label, classes, dtype=x.dtype) * weights[:, None]
        counts = member.sum(0)
        means = member.T @ x / jnp.maximum(counts, 1.0)[:, None]
        within = x - means[label]
        covariance = (within.T * weights[None]) @ within / total + RIDGE * jnp.eye(x.shape[1], dtype=x.dtype)
        directions = jax.scipy.linalg.solve(covariance, means.T, assume_a="pos")  # [F, N]
        scores = x @ directions - jnp.sum(means.T * directions, 0)[None] / 2
    return jax.nn.log_softmax(jnp.where(counts[None] > 0, scores, -jnp.inf), axis=-1)
