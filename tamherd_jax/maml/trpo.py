"""The trust-region step: conjugate gradient direction, largest step within the KL budget, backtracking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from tamherd_jax.maml._checks import check_scalar
from tamherd_jax.maml.kernels import Params, conjugate_gradient, gauss_newton


@dataclasses.dataclass(frozen=True)
class TRPOConfig:
    """Settings of the trust-region step (garage's defaults, spec 1.5).

    Attributes:
      max_kl: delta, the bound on the mean KL divergence of one step.
      final_max_kl: where delta ends if it decays; None keeps it.
      decay_begin: steps before delta decays.
      decay_steps: steps over which it does, by a constant factor a step.
      cg_iterations: steps of conjugate gradient.
      cg_damping: added to the curvature's diagonal.
      cg_tolerance: squared residual at which conjugate gradient stops.
      backtrack_ratio: factor between the line search's trials.
      max_backtracks: number of trials.
    """

    max_kl: float = 0.01
    final_max_kl: float | None = None
    decay_begin: int = 0
    decay_steps: int = 1
    cg_iterations: int = 10
    cg_damping: float = 1e-5
    cg_tolerance: float = 1e-10
    backtrack_ratio: float = 0.8
    max_backtracks: int = 15

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
          ValueError: naming the first field at fault.
        """
        if not self.max_kl > 0:
            raise ValueError(f"max_kl must be positive, not {self.max_kl}")
        if self.final_max_kl is not None and not 0 < self.final_max_kl <= self.max_kl:
            raise ValueError(f"final_max_kl must be positive and at most max_kl ({self.max_kl}), not {self.final_max_kl}")
        if not 0 < self.backtrack_ratio < 1:
            raise ValueError(f"backtrack_ratio must be between 0 and 1, not {self.backtrack_ratio}")
        for name in ("cg_iterations", "max_backtracks", "decay_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("cg_damping", "cg_tolerance", "decay_begin"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")

    def max_kl_at(self, step: jax.Array | int) -> jax.Array | float:
        """Delta of the step after `step` steps: `max_kl (final_max_kl / max_kl)^clip((step - begin) / steps, 0, 1)`.

        A Python float where delta does not decay.
        """
        if self.final_max_kl is None:
            return self.max_kl
        schedule = optax.exponential_decay(
            self.max_kl,
            self.decay_steps,
            self.final_max_kl / self.max_kl,
            transition_begin=self.decay_begin,
            end_value=self.final_max_kl,
        )
        return schedule(step)


@struct.dataclass
class TRPOInfo:
    """What a step did: losses before and after, KL, whether it was accepted and after how many backtracks (all `[]`)."""

    loss_before: jax.Array
    loss_after: jax.Array
    kl: jax.Array
    accepted: jax.Array
    backtracks: jax.Array


def trpo_step(
    outputs: Callable[[Params], Any],
    loss: Callable[[Any, Any], jax.Array],
    kl: Callable[[Any, Any], jax.Array],
    metric: Callable[[Any, Any], Any],
    params: Params,
    config: TRPOConfig = TRPOConfig(),
    step: jax.Array | int = 0,
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

    Returns:
      New parameters and a `TRPOInfo`. A non-finite direction becomes zero, entry by entry, and a trial that is not finite
      is never accepted. The line search is a `while`: forward-mode derivatives go through it, reverse-mode ones do not.

    Raises:
      ValueError: `loss` or `kl` is not a scalar, or `metric` returns what is not like the outputs.

    Source: Schulman et al. (2015) appendix C; garage `conjugate_gradient_optimizer.py` (spec 1.5).
    """
    flat, unravel = ravel_pytree(params)
    old, pullback, product = gauss_newton(outputs, params, metric)
    for name, function in (("loss", loss), ("kl", kl)):
        check_scalar(f"the value of {name}", jax.eval_shape(function, old, old))
    loss_before, loss_gradient = jax.value_and_grad(loss, argnums=1)(old, old)
    gradient = ravel_pytree(pullback(loss_gradient))[0]

    def damped(vector: jax.Array) -> jax.Array:
        return ravel_pytree(product(unravel(vector)))[0] + config.cg_damping * vector

    direction = conjugate_gradient(damped, gradient, config.cg_iterations, config.cg_tolerance)
    direction = jnp.where(jnp.isfinite(direction), direction, 0.0)
    max_kl = config.max_kl_at(step)
    size = jnp.sqrt(2.0 * max_kl / (jnp.vdot(direction, damped(direction)) + 1e-8))
    full_step = jnp.where(jnp.isfinite(size), size, 1.0) * direction

    def trial(backtracks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        candidate = outputs(unravel(flat - config.backtrack_ratio**backtracks * full_step))
        value, divergence = loss(old, candidate), kl(old, candidate)
        return value, divergence, (value < loss_before) & (divergence <= max_kl)

    return _backtrack(trial, flat, full_step, unravel, loss_before, config)


def _backtrack(trial, flat, full_step, unravel, loss_before, config) -> tuple[Params, TRPOInfo]:
    """Line search: the first accepted trial of at most `max_backtracks`."""

    def rejected(carry):
        backtracks, _, _, accepted = carry
        return ~accepted & (backtracks + 1 < config.max_backtracks)

    def shorten(carry):
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
