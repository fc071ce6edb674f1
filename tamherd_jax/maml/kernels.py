"""Reusable kernels of gradient-based meta-learning: pure functions of pytrees, no knowledge of environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
"""Pytree of arrays."""


def adapt(
    loss: Callable[..., jax.Array],
    params: Params,
    *data: Any,
    step_size: float | jax.Array = 0.1,
    steps: int = 1,
    first_order: bool = False,
) -> Params:
    """Inner loop of MAML: `theta_{k+1} = theta_k - alpha grad loss(theta_k, data)`.

    Differentiable in `params`, with the second-order term `I - alpha H` unless `first_order`.

    Args:
      loss: `(params, *data) -> []`, of one task: the mean over that task's own data.
      params: where adaptation starts.
      *data: the task's data, any pytrees.
      step_size: alpha, a scalar (may be traced).
      steps: static number of steps.
      first_order: treat the inner gradient as a constant, so that `d theta' / d theta = I`.

    Returns:
      Adapted parameters, the structure of `params`.

    Source: Finn et al. (2017) eq. 1; garage `DifferentiableSGD`.
    """
    for _ in range(steps):
        gradient = jax.grad(loss)(params, *data)
        if first_order:
            gradient = jax.lax.stop_gradient(gradient)
        params = jax.tree.map(lambda p, g: p - step_size * g, params, gradient)
    return params


def hvp(f: Callable[[Params], jax.Array], params: Params, vector: Params) -> Params:
    """Hessian-vector product `grad^2 f(params) vector`, forward over reverse (Pearlmutter 1994)."""
    return jax.jvp(jax.grad(f), (params,), (vector,))[1]


def gauss_newton(
    outputs: Callable[[Params], Any], params: Params, metric: Callable[[Any, Any], Any]
) -> tuple[Any, Callable[[Any], Params], Callable[[Params], Params]]:
    """Linearise `outputs` once and return products with its Jacobian J and with `J^T G J`.

    Where the outputs parametrise distributions and G is the Fisher metric on them, `J^T G J` is the Hessian of
    `KL(outputs_old || outputs(theta))` at `theta_old` exactly, however deep the map (an inner adaptation step included),
    because the KL's gradient vanishes there.

    Args:
      outputs: map from parameters to any pytree.
      params: where it is linearised.
      metric: `(outputs, tangent) -> cotangent`, the product with G.

    Returns:
      `(outputs(params), pullback, product)`: `pullback(c) = J^T c` and `product(v) = J^T G J v`. The activations of the
      linearisation are computed once and shared by all calls.

    Source: Schraudolph (2002); Martens (2014) on Fisher and Gauss-Newton.
    """
    value, pushforward = jax.linearize(outputs, params)
    transpose = jax.linear_transpose(pushforward, params)

    def pullback(cotangent: Any) -> Params:
        return transpose(cotangent)[0]

    def product(vector: Params) -> Params:
        return pullback(metric(value, pushforward(vector)))

    return value, pullback, product


def conjugate_gradient(
    product: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int = 10, tolerance: float = 1e-10
) -> jax.Array:
    """Approximate solution x of `A x = b` after at most `iterations` steps of conjugate gradient from x = 0.

    Args:
      product: `v -> A v` for a symmetric positive definite A.
      b: `[D]`.
      iterations: static number of steps.
      tolerance: stop once the squared residual is below it.

    Returns:
      `[D]`. Without a `while`, so that learners batched by `vmap` do not wait for, or disturb, each other.

    Source: Hestenes and Stiefel (1952); garage `conjugate_gradient_optimizer.py`.
    """

    def step(carry, _):
        x, residual, direction, rr = carry
        active = rr > tolerance
        image = product(direction)
        alpha = jnp.where(active, rr / jnp.where(active, jnp.vdot(direction, image), 1.0), 0.0)
        x, residual = x + alpha * direction, residual - alpha * image
        rr_next = jnp.where(active, jnp.vdot(residual, residual), rr)
        beta = jnp.where(active, rr_next / jnp.where(active, rr, 1.0), 0.0)
        return (x, residual, jnp.where(active, residual + beta * direction, direction), rr_next), None

    start = (jnp.zeros_like(b), b, b, jnp.vdot(b, b))
    return jax.lax.scan(step, start, None, length=iterations)[0][0]
