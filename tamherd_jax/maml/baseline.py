"""The linear feature baseline of Duan et al., fitted afresh to every batch of every task."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax.lax import dot

from tamherd_jax.maml._checks import check_equal_shapes, check_rank

RIDGE = 1e-5
"""Penalty on the square of every coefficient, the constant's included, in the features' own units."""

OBS_BOUND = 10.0
"""Observations are clipped to plus or minus this bound."""

_TIME_UNIT = 100.0  # steps

_Pullback = Callable[[jax.Array], tuple[jax.Array, ...]]


def linear_features(obs: jax.Array) -> jax.Array:
    """Return the features `[clip(s, -10, 10), its square, tau, tau^2, tau^3, 1]`, `tau = t / 100`, of one episode.

    Args:
      obs: `[T, O]`.

    Returns:
      `[T, 2 O + 4]`.

    Raises:
      ValueError: `obs` has another rank.

    Source: Duan et al. (2016); garage `LinearFeatureBaseline`.
    """
    check_rank("obs", obs, 2)
    clipped = jnp.clip(obs, -OBS_BOUND, OBS_BOUND)
    tau = jnp.arange(obs.shape[0], dtype=obs.dtype)[:, None] / _TIME_UNIT
    return jnp.concatenate([clipped, clipped**2, tau, tau**2, tau**3, jnp.ones_like(tau)], axis=1)


def linear_baseline(obs: jax.Array, returns: jax.Array, valid: jax.Array) -> jax.Array:
    """Predict returns to go by ridge regression: `phi b` with `b = (Phi^T Phi + 1e-5 I)^-1 Phi^T G` over the valid steps.

    The fit is computed in float64 whatever the dtype of the arguments, since `Phi^T Phi` is singular in float32 for the
    states of a falling body. Where `jax_enable_x64` is off, only reverse-mode derivatives are defined.

    Args:
      obs: `[R, T, O]` of one task's batch.
      returns: `[R, T]` discounted returns to go.
      valid: `[R, T]`; observations and returns of invalid steps are ignored, finite or not.

    Returns:
      `[R, T]` values in the dtype of `returns`, 0 where not valid.

    Raises:
      ValueError: an argument has another rank, or the shapes do not go together.

    Source: Duan et al. (2016); garage `LinearFeatureBaseline`.
    """
    check_rank("obs", obs, 3)
    check_equal_shapes(returns=returns, valid=valid, obs_of_one_feature=obs[..., 0])
    fit = _fitted_values if jnp.result_type(float) == jnp.float64 else _fitted_values_with_float64
    return fit(obs, returns, valid)


def _fitted_values(obs: jax.Array, returns: jax.Array, valid: jax.Array) -> jax.Array:
    """The fit where float64 is enabled.

    Products are `lax.dot`: those of `jax.numpy` name their dtype, which a later `vmap` with float64 disabled would truncate.
    """
    mask = valid > 0
    features = jax.vmap(linear_features)(jnp.where(mask[..., None], obs, 0.0).astype(jnp.float64))
    design = jnp.where(mask[..., None], features, 0.0).reshape(mask.size, -1)
    target = jnp.where(mask, returns, 0.0).astype(jnp.float64).reshape(-1)
    factor = jsl.cho_factor(dot(design.T, design) + RIDGE * jnp.eye(design.shape[1]))
    first = jsl.cho_solve(factor, dot(design.T, target))
    gradient = dot(design.T, target - dot(design, first)) - RIDGE * first
    fitted = dot(design, first + jsl.cho_solve(factor, gradient))  # refined once: the condition is up to 1e12
    return fitted.reshape(mask.shape).astype(returns.dtype)


@jax.custom_vjp
def _fitted_values_with_float64(obs: jax.Array, returns: jax.Array, valid: jax.Array) -> jax.Array:
    """The fit with float64 enabled for its operations alone, forwards and backwards."""
    with jax.enable_x64(True):
        return _fitted_values(obs, returns, valid)


def _forward(obs: jax.Array, returns: jax.Array, valid: jax.Array) -> tuple[jax.Array, _Pullback]:
    with jax.enable_x64(True):
        return jax.vjp(_fitted_values, obs, returns, valid)


def _backward(pullback: _Pullback, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    with jax.enable_x64(True):
        return pullback(cotangent)


_fitted_values_with_float64.defvjp(_forward, _backward)
