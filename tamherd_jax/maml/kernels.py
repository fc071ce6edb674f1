"""Reusable kernels of gradient-based meta-learning: pure functions of pytrees, no knowledge of environments.

Parameters are any pytree: of Flax Linen, of Flax NNX (its split state), an Equinox module, lists and dictionaries of arrays.
Leaves that are not floating-point arrays (counters, random keys, an Equinox module's activation functions) stay as they are.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamherd_jax.maml._checks import check_same_tree, check_scalar, check_task_axis
from tamherd_jax.types import Params, PyTree

"""Pytree of arrays."""

Loss = Callable[..., jax.Array]
"""`(params, *data) -> []`, of one task."""

UNROLLED = 8
"""Inner steps up to this number are written out in the compiled program; more become a loop in it."""


def adapt(
    loss: Loss,
    params: Params,
    *data: PyTree,
    step_size: Any = 0.1,
    steps: int = 1,
    first_order: bool = False,
    mask: PyTree = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Params:
    """Inner loop of MAML: `theta_{k+1} = theta_k - alpha * grad loss(theta_k, data)`.

    Differentiable in `params`, `data` and `step_size`, with the second-order term `I - alpha H` unless `first_order`.

    Args:
      loss: `(params, *data) -> []`, of one task: the mean over that task's own data.
      params: where adaptation starts.
      *data: the task's data, any pytrees.
      step_size: alpha, a scalar, or a tree of the structure of `params` or of its upper part whose leaves broadcast to the
        parameters below them: one step size a layer, or one a parameter. May be traced, so it can be learned (Meta-SGD).
      steps: static number of steps on the same data.
      first_order: treat the inner gradient as a constant, so that `d theta' / d theta = I`.
      mask: static; a tree of Booleans of the structure of `params` or of its upper part, or a function from `params` to one.
        Parameters under False are not adapted (ANIL, CAVIA). All are by default.
      optimizer: an optax transformation that takes the place of `step_size`, its state fresh at the first step. Where an entry
        of the gradient is exactly 0, its derivatives are taken at 1e-12 instead, so that those of roots and norms (Adam,
        clipping) are finite. Adam's slope there is `1 / eps`; `eps_root` makes it smaller.

    Returns:
      Adapted parameters, the structure and dtypes of `params`.

    Raises:
      ValueError: the loss is not a scalar, `steps` is negative, or `step_size` or `mask` do not fit `params`.

    Source: Finn et al. (2017) eq. 1; Li et al. (2017), Meta-SGD; Raghu et al. (2020), ANIL; garage `DifferentiableSGD`.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, not {steps}")
    theta, merge = _select(params, mask)
    update = _sgd(_step_sizes(step_size, params, mask)) if optimizer is None else _optax(optimizer)

    def value(theta: PyTree) -> jax.Array:
        result = loss(merge(theta), *data)
        check_scalar("the value of loss", result)
        return result

    def step(carry: PyTree) -> PyTree:
        gradient = jax.grad(value)(carry[0])
        return update(jax.lax.stop_gradient(gradient) if first_order else gradient, *carry)

    carry = theta, None if optimizer is None else optimizer.init(theta)
    if steps > UNROLLED:
        carry, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, None, length=steps)
    else:
        for _ in range(steps):
            carry = step(carry)
    return merge(carry[0])


def meta_loss(
    loss: Loss,
    params: Params,
    support: tuple[PyTree, ...],
    query: tuple[PyTree, ...],
    *,
    outer_loss: Loss | None = None,
    **options: Any,
) -> jax.Array:
    """Loss after adaptation, mean over M tasks: `1/M sum_m outer_loss(adapt(loss, theta, *support_m), *query_m)`.

    Args:
      loss: `(params, *data) -> []` of one task, for adaptation.
      params: theta, shared by the tasks.
      support: data that the tasks adapt to, a tuple of trees with leaves `[M, ...]`; unpacked into `loss`.
      query: data that the adapted parameters are measured on, likewise.
      outer_loss: for `query`; `loss` by default.
      **options: of `adapt`. What of them is to be learned is differentiated like `params`.

    Returns:
      `[]`.

    Raises:
      ValueError: the leaves of `support` and `query` do not share one leading axis, or as `adapt`.

    Source: Finn et al. (2017) eq. 2.
    """
    check_task_axis(support=support, query=query)
    outer = loss if outer_loss is None else outer_loss

    def one(support: tuple[PyTree, ...], query: tuple[PyTree, ...]) -> jax.Array:
        value = outer(adapt(loss, params, *support, **options), *query)
        check_scalar("the value of outer_loss", value)
        return value

    return jnp.mean(jax.vmap(one)(support, query))


def meta_gradient(
    loss: Loss,
    params: Params,
    support: tuple[PyTree, ...],
    query: tuple[PyTree, ...],
    *,
    outer_loss: Loss | None = None,
    tasks_at_once: int | None = None,
    **options: Any,
) -> tuple[jax.Array, Params]:
    """Value and gradient of `meta_loss` in `params`, over any number of tasks in bounded memory.

    Args:
      loss, params, support, query, outer_loss: as in `meta_loss`.
      tasks_at_once: static divisor of M. Memory is that of as many tasks; all at once by default. On a CPU small numbers are
        faster too: what a task needs stays in the cache.
      **options: of `adapt`.

    Returns:
      `[]`, and the gradient in the structure of `params`, None in place of leaves that are not floating-point arrays.

    Raises:
      ValueError: `tasks_at_once` does not divide M, or as `meta_loss`.
    """
    count = check_task_axis(support=support, query=query)
    size = count if tasks_at_once is None else tasks_at_once
    if size < 1 or count % size:
        raise ValueError(f"tasks_at_once must divide the number of tasks, {count}; {size} does not")
    theta, merge = _select(params, None)

    def part(data: PyTree) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(lambda theta: meta_loss(loss, merge(theta), *data, outer_loss=outer_loss, **options))(theta)

    if size == count:
        return part((support, query))
    parts = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), (support, query))
    shapes = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], parts))
    zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, _ = jax.lax.scan(lambda total, data: (jax.tree.map(jnp.add, total, part(data)), None), zero, parts)
    return jax.tree.map(lambda leaf: leaf * (size / count), total)


def hvp(f: Callable[[Params], jax.Array], params: Params, vector: Params) -> Params:
    """Hessian-vector product `grad^2 f(params) vector`, forward over reverse.

    Args:
      f: `params -> []`.
      params: where the Hessian is taken; all leaves floating-point arrays.
      vector: of the structure and shapes of `params`.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: `vector` does not fit `params`, or `f` is not a scalar.

    Source: Pearlmutter (1994).
    """
    check_same_tree("vector", vector, "params", params)
    check_scalar("the value of f", jax.eval_shape(f, params))
    return jax.jvp(jax.grad(f), (params,), (vector,))[1]


class Linearization(NamedTuple):
    """A map from parameters to outputs at one point: its value, and products with its Jacobian J and a metric G.

    Attributes:
      value: outputs at the parameters.
      pullback: `c -> J^T c`, a tree like the parameters.
      product: `v -> J^T G J v`, likewise.
    """

    value: PyTree
    pullback: Callable[[PyTree], Params]
    product: Callable[[Params], Params]


def gauss_newton(
    outputs: Callable[[Params], PyTree], params: Params, metric: Callable[[PyTree, PyTree], PyTree]
) -> Linearization:
    """Linearise `outputs` once and return products with its Jacobian J and with `J^T G J`.

    Where the outputs parametrise distributions and G is the Fisher metric on them, `J^T G J` is the Hessian of
    `KL(outputs_old || outputs(theta))` at `theta_old` exactly, however deep the map (an inner adaptation step included),
    because the KL's gradient vanishes there.

    Args:
      outputs: map from parameters to any pytree.
      params: where it is linearised; all leaves floating-point arrays.
      metric: `(outputs, tangent) -> cotangent`, the product with G.

    Returns:
      `(outputs(params), pullback, product)`. The activations of the linearisation are computed once and shared by all calls.

    Raises:
      ValueError: on the first product, if what `metric` returns is not like the outputs.

    Source: Schraudolph (2002); Martens (2014) on Fisher and Gauss-Newton.
    """
    value, pushforward = jax.linearize(outputs, params)
    transpose = jax.linear_transpose(pushforward, params)

    def pullback(cotangent: PyTree) -> Params:
        return transpose(cotangent)[0]

    def product(vector: Params) -> Params:
        cotangent = metric(value, pushforward(vector))
        check_same_tree("what metric returns", cotangent, "the outputs", value)
        return pullback(cotangent)

    return Linearization(value, pullback, product)


def conjugate_gradient(
    product: Callable[[Params], Params], b: Params, iterations: int = 10, tolerance: float | jax.Array = 1e-10
) -> Params:
    """Approximate solution x of `A x = b` after at most `iterations` steps of conjugate gradient from x = 0.

    Args:
      product: `v -> A v` for a symmetric positive definite A.
      b: a vector, or a tree of arrays.
      iterations: static number of steps.
      tolerance: stop once the squared residual is below it.

    Returns:
      Like `b`, in its dtypes. Without a `while`, so that learners batched by `vmap` do not wait for, or disturb, each other,
      and gradients can be taken through all steps.

    Raises:
      ValueError: `product(b)` is not like `b`.

    Source: Hestenes and Stiefel (1952); garage `conjugate_gradient_optimizer.py`.
    """
    return solve_with_residual(product, b, iterations, tolerance)[0]


def solve_with_residual(
    product: Callable[[Params], Params], b: Params, iterations: int = 10, tolerance: float | jax.Array = 1e-10
) -> tuple[Params, Params]:
    """Return the solution x of `conjugate_gradient`, and its residual `b - A x`, which it knows without another product.

    Arguments, errors and source are those of `conjugate_gradient`.
    """
    b = jax.tree.map(jnp.asarray, b)
    check_same_tree("what product returns", jax.eval_shape(product, b), "b", b)

    def step(carry: tuple[PyTree, PyTree, PyTree, jax.Array], _: None) -> tuple[tuple[PyTree, PyTree, PyTree, jax.Array], None]:
        x, residual, direction, rr = carry
        active = rr > tolerance
        image = product(direction)
        alpha = jnp.where(active, rr / jnp.where(active, _dot(direction, image), 1.0), 0.0)
        x = _like(x, jax.tree.map(lambda x, d: x + alpha * d, x, direction))
        residual = _like(residual, jax.tree.map(lambda r, i: r - alpha * i, residual, image))
        rr_next = jnp.where(active, _dot(residual, residual), rr)
        beta = jnp.where(active, rr_next / jnp.where(active, rr, 1.0), 0.0)
        following = jax.tree.map(lambda r, d: jnp.where(active, r + beta * d, d), residual, direction)
        return (x, residual, _like(direction, following), rr_next), None

    start = (jax.tree.map(jnp.zeros_like, b), b, b, _dot(b, b))
    x, residual, _, _ = jax.lax.scan(step, start, None, length=iterations)[0]
    return x, residual


def _like(template: PyTree, tree: PyTree) -> PyTree:
    """A tree in the dtypes of another: arithmetic with a scalar array of more precision must not change a loop's carry."""
    return jax.tree.map(lambda old, new: jnp.asarray(new, jnp.result_type(old)), template, tree)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    """Inner product of two trees."""
    return functools.reduce(operator.add, jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def _select(params: Params, mask: PyTree) -> tuple[Params, Callable[[Params], Params]]:
    """`params` with None in place of what a mask does not select, and a function that puts the rest back."""
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    chosen = _chosen(params, mask)

    def merge(theta: Params) -> Params:
        values = iter(jax.tree.leaves(theta))
        return structure.unflatten([next(values) if c else leaf for leaf, c in zip(leaves, chosen, strict=True)])

    return structure.unflatten([leaf if c else None for leaf, c in zip(leaves, chosen, strict=True)]), merge


def _chosen(params: Params, mask: PyTree) -> list[bool]:
    """Which leaves are adapted."""
    mask = True if mask is None else mask(params) if callable(mask) else mask
    wanted = _broadcast("mask", mask, params)
    wrong = [want for want in wanted if not isinstance(want, bool | np.bool_)]
    if wrong:
        raise ValueError(f"mask must hold True or False for each parameter, not {wrong[0]!r}")
    return [_is_float(leaf) and bool(want) for leaf, want in zip(jax.tree.leaves(params), wanted, strict=True)]


def _is_float(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float):
        return False
    return isinstance(leaf, float) or bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _step_sizes(step_size: Any, params: Params, mask: PyTree) -> list[Any]:
    """One step size for each adapted leaf."""
    sizes = _broadcast("step_size", step_size, params)
    leaves = jax.tree.leaves(params)
    kept = [(size, leaf) for size, leaf, c in zip(sizes, leaves, _chosen(params, mask), strict=True) if c]
    for size, leaf in kept:
        shape, target = np.shape(size), np.shape(leaf)
        pairs = zip(shape[::-1], target[::-1], strict=False)
        if len(shape) > len(target) or any(a not in (1, b) for a, b in pairs):
            raise ValueError(f"step_size of shape {shape} does not broadcast to parameters of shape {target}")
    return [size for size, _ in kept]


def _broadcast(name: str, prefix: Any, params: Params) -> list[Any]:
    """The entry of `prefix` for every leaf of `params`; None counts as an entry."""
    try:
        full = jax.tree.broadcast(prefix, params, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise ValueError(f"{name} must be one value, or a tree of the structure of params or of its upper part") from error
    structure: Any = jax.tree.structure(params)
    return structure.flatten_up_to(full)


def _sgd(step_sizes: list[PyTree]) -> Callable[[Params, Params, PyTree], tuple[Params, PyTree]]:
    """The update `p - alpha g`, without a state, in the dtypes of the parameters."""

    def update(gradient: Params, theta: Params, state: PyTree) -> tuple[Params, PyTree]:
        sizes = jax.tree.unflatten(jax.tree.structure(theta), step_sizes)
        return _like(theta, jax.tree.map(lambda p, g, a: p - a * g, theta, gradient, sizes)), state

    return update


def _optax(optimizer: optax.GradientTransformation) -> Callable[[Params, Params, PyTree], tuple[Params, PyTree]]:
    """The update of an optax transformation, in the dtypes of the parameters and of the state."""

    def update(gradient: Params, theta: Params, state: PyTree) -> tuple[Params, PyTree]:
        updates, after = optimizer.update(gradient, state, theta)
        return optax.apply_updates(theta, updates), _like(state, after)

    def differentiable(gradient: Params, theta: Params, state: PyTree) -> tuple[Params, PyTree]:
        exact = update(gradient, theta, state)
        beside = update(jax.tree.map(_off_zero, gradient), theta, state)
        return jax.tree.map(_value_and_derivative, exact, beside)

    return differentiable


def _off_zero(gradient: jax.Array) -> jax.Array:
    """The gradient with 1e-12 added where it is exactly 0, and its own derivative."""
    return gradient + jax.lax.stop_gradient(jnp.where(gradient == 0, 1e-12, 0.0).astype(gradient.dtype))


def _value_and_derivative(value: PyTree, derivative: PyTree) -> PyTree:
    """The first argument with the derivative of the second. What has none, such as a count, is the first.

    At a gradient of exactly 0 automatic differentiation of a norm or a root multiplies 0 by infinity; beside it all is finite.
    """
    if not _is_float(value):
        return value
    return jax.lax.stop_gradient(value) + (derivative - jax.lax.stop_gradient(derivative))
