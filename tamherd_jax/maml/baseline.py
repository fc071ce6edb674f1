"""The linear feature baseline of Duan et al., fitted afresh to every batch of every task."""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from tamherd_jax.maml._checks import check_equal_shapes, check_rank
from tamherd_jax.maml.advantages import masked_mean

RIDGE = 1e-5
"""Penalty on the squared coefficients, in the features' own units."""

_FLOOR = 1e-6  # least relative penalty: what float32 needs where features are collinear


def linear_features(obs: jax.Array) -> jax.Array:
    """Features `[clip(s, -10, 10), its square, tau, tau^2, tau^3]`, `tau = t / 100`, of one episode.

    Args:
      obs: `[T, O]`.

    Returns:
      `[T, 2 O + 3]`; the constant is left to the fit.

    Raises:
      ValueError: `obs` has another rank.

    Source: Duan et al. (2016); garage `LinearFeatureBaseline`.
    """
    check_rank("obs", obs, 2)
    clipped = jnp.clip(obs, -10.0, 10.0)
    tau = jnp.arange(obs.shape[0], dtype=obs.dtype)[:, None] / 100.0
    return jnp.concatenate([clipped, clipped**2, tau, tau**2, tau**3], axis=1)


def linear_baseline(obs: jax.Array, returns: jax.Array, valid: jax.Array) -> jax.Array:
    """Least-squares prediction of returns to go: `min_b sum_valid (phi b + c - G)^2 + ridge |b|^2`.

    Solved on centred features of unit scale by Cholesky with one step of refinement: the raw normal equations are too
    ill-conditioned for float32.

    Args:
      obs: `[R, T, O]` of one task's batch.
      returns: `[R, T]` discounted returns to go.
      valid: `[R, T]`.

    Returns:
      `[R, T]` values, 0 where not valid.

    Raises:
      ValueError: an argument has another rank, or the shapes do not go together.

    Source: spec 1.3; garage `LinearFeatureBaseline` (whose ridge also covers the constant: a difference of 1e-8).
    """
    check_rank("obs", obs, 3)
    check_equal_shapes(returns=returns, valid=valid, obs_of_one_feature=obs[..., 0])
    mask = valid.reshape(-1)
    features = jax.vmap(linear_features)(obs).reshape(mask.size, -1)
    count = jnp.maximum(jnp.sum(mask), 1.0)
    mean = (mask @ features) / count
    target_mean = masked_mean(returns, valid)
    centred = (features - mean[None]) * mask[:, None]
    target = (returns.reshape(-1) - target_mean) * mask
    scale = jnp.maximum(jnp.sqrt(jnp.sum(centred**2, axis=0)), 1e-6)
    design = centred / scale[None]
    penalty = jnp.maximum(RIDGE / scale**2, _FLOOR)
    factor = jsl.cho_factor(design.T @ design + jnp.diag(penalty))
    solution = jsl.cho_solve(factor, design.T @ target)
    residual = design.T @ (target - design @ solution) - penalty * solution
    solution = solution + jsl.cho_solve(factor, residual)
    return ((design @ solution + target_mean) * mask).reshape(valid.shape)
