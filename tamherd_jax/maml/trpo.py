"""The trust-region step: conjugate gradient direction, largest step within the KL budget, backtracking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.flatten_util import ravel_pytree

from tamherd_jax.maml._checks import check_scalar
from tamherd_jax.maml.kernels import Linearization, Params, gauss_newton, solve_with_residual
from tamherd_jax.types import PyTree
from tamherd_jax.validation import (
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitFloat,
    PositiveFloat,
    PositiveInt,
    check_fields,
    is_traced,
    traceable,
)


@traceable
@dataclasses.dataclass(frozen=True)
class TRPOConfig:
    """Settings of the trust-region step; the defaults are garage's.

    A pytree whose leaves are the `float` fields: they may be traced, or mapped over by `vmap`.

    Attributes:
      max_kl: delta, the bound on the mean KL divergence of one step.
      final_max_kl: Value that delta decays to; None keeps it constant.
      decay_begin: Number of steps before delta decays.
      decay_steps: Number of steps over which delta decays, by a constant factor a step.
      cg_iterations: Number of conjugate gradient iterations.
      cg_damping: Constant added to the curvature's diagonal.
      cg_tolerance: Squared residual at which conjugate gradient stops.
      backtrack_ratio: Factor between successive trials of the line search.
      max_backtracks: Number of trials.

    Raises:
      ValueError: Naming the first field at fault.
    """

    max_kl: PositiveFloat = 0.01
    final_max_kl: PositiveFloat | None = None
    decay_begin: NonNegativeInt = 0
    decay_steps: PositiveInt = 1
    cg_iterations: PositiveInt = 10
    cg_damping: NonNegativeFloat = 1e-5
    cg_tolerance: NonNegativeFloat = 1e-10
    backtrack_ratio: OpenUnitFloat = 0.8
    max_backtracks: PositiveInt = 15

    def __post_init__(self) -> None:
        check_fields(self)
        if self.final_max_kl is None or is_traced(self.final_max_kl) or is_traced(self.max_kl):
            return
        if np.any(np.asarray(self.final_max_kl) > np.asarray(self.max_kl)):
            raise ValueError(f"final_max_kl must be positive and at most max_kl ({self.max_kl}), not {self.final_max_kl}")

    def max_kl_at(self, step: jax.Array | int) -> jax.Array | float:
        """Return delta of a step: `max_kl (final_max_kl / max_kl)^clip((step - decay_begin) / decay_steps, 0, 1)`.

        Args:
          step: `[]` number of steps before this one.

        Returns:
          `[]`; `max_kl` itself where delta does not decay.
        """
        if self.final_max_kl is None:
            return self.max_kl
        progress = jnp.clip((step - self.decay_begin) / self.decay_steps, 0.0, 1.0)
        return self.max_kl * (self.final_max_kl / self.max_kl) ** progress


@struct.dataclass
class TRPOInfo:
    """What a step did: losses before and after, KL, whether it was accepted and after how many backtracks (all `[]`)."""

    loss_before: jax.Array
    loss_after: jax.Array
    kl: jax.Array
    accepted: jax.Array
    backtracks: jax.Array


def trpo_step(
    outputs: Callable[[Params], PyTree],
    loss: Callable[[PyTree, PyTree], jax.Array],
    kl: Callable[[PyTree, PyTree], jax.Array],
    metric: Callable[[PyTree, PyTree], PyTree],
    params: Params,
    config: TRPOConfig = TRPOConfig(),
    step: jax.Array | int = 0,
    linearization: Linearization | None = None,
) -> tuple[Params, TRPOInfo]:
    """One constrained step: minimise `loss(outputs_old, outputs(theta))` subject to `kl(outputs_old, outputs(theta)) <= delta`.

    `x = (F + damping I)^-1 g` by conjugate gradient, `theta_j = theta - ratio^j sqrt(2 delta / x^T (F + damping I) x) x`; the
    first trial j whose loss is lower and whose KL is within the bound is taken, else theta stays. Gradient and all
    curvature products share one linearisation of `outputs`.

    Args:
      outputs: map from parameters to the distributions' parameters, as deep as need be (MAML: through the inner step).
      loss: `(old_outputs, outputs) -> []`; differentiated in its second argument.
      kl: `(old_outputs, outputs) -> []`, zero with zero gradient at equality.
      metric: `(outputs, tangent) -> cotangent`, the Hessian of `kl` in its second argument at equality.
      params: theta.
      config: settings.
      step: `[]`, how many steps came before, for a delta that decays.
      linearization: of `outputs` at `params`, where a faster one is known than automatic differentiation's
        (`maml.adapted_policies`).

    Returns:
      New parameters and a `TRPOInfo`. A non-finite direction becomes zero, entry by entry, and a trial that is not finite
      is never accepted. The line search is a `while`: forward-mode derivatives go through it, reverse-mode ones do not.

    Raises:
      ValueError: `loss` or `kl` is not a scalar, or `metric` returns what is not like the outputs.

    Source: Schulman et al. (2015) appendix C; garage `conjugate_gradient_optimizer.py`.
    """
    flat, unravel = ravel_pytree(params)
    old, pullback, product = gauss_newton(outputs, params, metric) if linearization is None else linearization
    for name, function in (("loss", loss), ("kl", kl)):
        check_scalar(f"the value of {name}", jax.eval_shape(function, old, old))
    loss_before, loss_gradient = jax.value_and_grad(loss, argnums=1)(old, old)
    gradient = ravel_pytree(pullback(loss_gradient))[0]

    def damped(vector: jax.Array) -> jax.Array:
        return ravel_pytree(product(unravel(vector)))[0] + config.cg_damping * vector

    direction, residual = solve_with_residual(damped, gradient, config.cg_iterations, config.cg_tolerance)
    curvature = jnp.vdot(direction, gradient - residual)  # x^T A x
    direction = jnp.where(jnp.isfinite(direction), direction, 0.0)
    max_kl = config.max_kl_at(step)
    size = jnp.sqrt(2.0 * max_kl / (curvature + 1e-8))
    full_step = jnp.where(jnp.isfinite(size), size, 1.0) * direction

    def trial(backtracks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        candidate = outputs(unravel(flat - config.backtrack_ratio**backtracks * full_step))
        value, divergence = loss(old, candidate), kl(old, candidate)
        return value, divergence, (value < loss_before) & (divergence <= max_kl)

    return _backtrack(trial, flat, full_step, unravel, loss_before, config)


Trial = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Backtracks, loss, KL divergence and acceptance of one trial of the line search, `[]` each."""


def _backtrack(
    trial: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    flat: jax.Array,
    full_step: jax.Array,
    unravel: Callable[[jax.Array], Params],
    loss_before: jax.Array,
    config: TRPOConfig,
) -> tuple[Params, TRPOInfo]:
    """Line search: the first accepted trial of at most `max_backtracks`."""

    def rejected(carry: Trial) -> jax.Array:
        backtracks, _, _, accepted = carry
        return ~accepted & (backtracks + 1 < config.max_backtracks)

    def shorten(carry: Trial) -> Trial:
        backtracks = carry[0] + 1.0
        return (backtracks, *trial(backtracks))

    start = (-jnp.ones((), flat.dtype), loss_before, jnp.zeros_like(loss_before), jnp.array(False))
    backtracks, value, divergence, accepted = jax.lax.while_loop(rejected, shorten, start)
    step = jnp.where(accepted, config.backtrack_ratio**backtracks, 0.0)
    info = TRPOInfo(
        loss_before=loss_before,
        loss_after=jnp.where(accepted, value, loss_before),
        kl=jnp.where(accepted, divergence, 0.0),
        accepted=accepted,
        backtracks=backtracks,
    )
    # A rejected or non-finite step must leave the parameters' bits alone.
    return unravel(jnp.where(accepted, flat - step * full_step, flat)), info
