"""Scores `grad_theta log p(y_t | x_t)` of samples, as trees, as vectors, or as the factors of dense layers.

For a layer `y = W x + b` a score's block is `delta x^T`, so that the d numbers of a score need not exist. Axes: n samples, d
parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tamherd_jax.types import Params, PyTree


@struct.dataclass
class ScoreFactors:
    """Scores of n samples, each dense layer's block kept as its two factors.

    `g = concat_l(vec(deltas_l inputs_l^T)), rest`; leading axes as the caller vmapped them.

    Attributes:
      inputs: per dense layer `[..., n, in_l (+1)]`, with a trailing 1 where the layer has a bias.
      deltas: per dense layer `[..., n, out_l]`, the log density's gradient at the layer's output.
      rest: `[..., n, r]`, the gradient of every other parameter, flattened.
    """

    inputs: tuple[jax.Array, ...]
    deltas: tuple[jax.Array, ...]
    rest: jax.Array


@struct.dataclass
class JacobianFactors:
    """B score-like rows for each of n inputs, in factors: `F = sum_t w_t G_t^T G_t` with G_t `[B, d]`.

    Such are the rows of an expectation over outputs (see `gaussian_factors`): they share the layers' inputs, so that
    `<F_i, F_j>_F = sum_ts w_it w_js |G_it G_js^T|_F^2` costs far less than with B n samples.

    Attributes:
      inputs: per dense layer `[..., n, in_l (+1)]`, with a trailing 1 where the layer has a bias.
      deltas: per dense layer `[..., n, B, out_l]`.
      rest: `[..., n, B, r]`.
    """

    inputs: tuple[jax.Array, ...]
    deltas: tuple[jax.Array, ...]
    rest: jax.Array


def score_gradients(log_prob: Callable[..., jax.Array], params: Params, *samples: PyTree) -> Params:
    """Compute per-sample scores `grad_theta log p`, as a pytree like `params` with a leading sample axis n.

    Args:
      log_prob: `log_prob(params, *one_sample) -> []`.
      params: any pytree of arrays.
      *samples: arguments of `log_prob` after the first, leaves `[n, ...]`.
    """
    return jax.vmap(jax.grad(log_prob), in_axes=(None, *(0 for _ in samples)))(params, *samples)


def diagonal_fisher(
    log_prob: Callable[..., jax.Array], params: Params, weights: Float[Array, " n"], *samples: PyTree
) -> Params:
    """Compute the diagonal `sum_t w_t g_t^2` of the weighted Fisher matrix, a pytree like `params`; weights `[n]`."""
    scores = score_gradients(log_prob, params, *samples)
    return jax.tree.map(lambda g: jnp.tensordot(weights, g**2, axes=1, precision="highest"), scores)


def flatten_samples(tree: PyTree, batch_ndim: int = 1) -> jax.Array:
    """Concatenate the leaves `[*batch, ...]` of a pytree, `[*batch, d]`."""
    leaves = [leaf.reshape(*leaf.shape[:batch_ndim], -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=-1)


def group_rows(factors: ScoreFactors, rows: int) -> JacobianFactors:
    """Group factors `[n B, ...]`, of which each B = `rows` consecutive ones have the same input, as `[n, B, ...]`."""
    deltas, rest = jax.tree.map(lambda leaf: leaf.reshape(-1, rows, leaf.shape[-1]), (factors.deltas, factors.rest))
    return JacobianFactors(tuple(x[::rows] for x in factors.inputs), deltas, rest)


class _Layer(NamedTuple):
    kernel: int  # position among the leaves of params
    bias: int | None
    width: int


def score_factors(log_prob: Callable[..., jax.Array], params: Params, *samples: PyTree) -> ScoreFactors:
    """Compute the scores of n samples with every `nn.Dense` layer's block in factors.

    The layer's input x is recorded, and a zero added to its output has the gradient `delta`; both by intercepting the calls
    of Linen modules, so `log_prob` may be any code that calls some. What is no such layer (or a dense layer used twice, on
    a batch or inside a lifted transformation) goes into `rest` by ordinary differentiation. A dense layer's parameters
    must not be used outside its call.

    Args:
      log_prob: `log_prob(params, *one_sample) -> []`; Linen's `apply` inside must not be wrapped in `jit`.
      params: pytree of arrays.
      *samples: arguments of `log_prob` after the first, leaves `[n, ...]`.
    """
    layers = _dense_layers(log_prob, params, *jax.tree.map(lambda leaf: leaf[0], samples))
    dtype = jnp.result_type(*jax.tree.leaves(params))

    def one(*sample: PyTree) -> ScoreFactors:
        perturbed, at_zero = _perturbed(log_prob, params, layers, sample)
        (deltas, rest), inputs = jax.grad(perturbed, has_aux=True)(at_zero)
        return ScoreFactors(inputs, tuple(deltas), _flat(rest, dtype))

    return jax.vmap(one)(*samples)


def gaussian_factors(
    apply: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]], params: Params, obs: jax.Array
) -> tuple[ScoreFactors, ScoreFactors]:
    """Compute pseudo-scores whose outer products sum to the expected Fisher matrix of a diagonal Gaussian at every input.

    `E_a[g g^T | s] = sum_k sigma_k^-2 J_k J_k^T + 2 sum_k L_k L_k^T` with `J_k`, `L_k` the gradients of the mean's and the
    log standard deviation's k-th component: odd moments vanish and `Var[((a - mu)/sigma)^2] = 2`.

    Args:
      apply: `apply(params, obs [O]) -> (mean [A], log_std [A])`.
      params: pytree of arrays.
      obs: `[n, O]`.

    Returns:
      Two sets with A pseudo-scores per input (row t * A + k). The first, `[n * A, ...]`, is the mean's. The second is the
      log standard deviation's: `[n * A, ...]`, or `[A, ...]` where it does not depend on the input, so that its weight is
      the sum of all inputs' weights.
    """
    layers = _dense_layers(apply, params, obs[0])

    def one(x: jax.Array) -> tuple[ScoreFactors, ScoreFactors]:
        perturbed, at_zero = _perturbed(apply, params, layers, (x,))
        (_, log_std), pull_back, inputs = jax.vjp(perturbed, at_zero, has_aux=True)
        scale, zero = jnp.diag(jnp.exp(-log_std)), jnp.zeros((log_std.size, log_std.size), log_std.dtype)

        def rows(cotangents: tuple[jax.Array, jax.Array]) -> ScoreFactors:
            ((deltas, rest),) = jax.vmap(lambda cotangent: pull_back(cotangent))(cotangents)
            repeated = tuple(jnp.broadcast_to(x_l, (log_std.size, *x_l.shape)) for x_l in inputs)
            return ScoreFactors(repeated, tuple(deltas), jax.vmap(lambda leaves: _flat(leaves, zero.dtype))(rest))

        return rows((scale, zero)), rows((zero, jnp.sqrt(2.0).astype(zero.dtype) * jnp.eye(log_std.size, dtype=zero.dtype)))

    mean, log_std = jax.vmap(one)(obs)
    if not depends_on_input(lambda x: apply(params, x)[1], obs[0]):
        log_std = jax.tree.map(lambda leaf: leaf[:1], log_std)
    return jax.tree.map(_merge_rows, mean), jax.tree.map(_merge_rows, log_std)


def _merge_rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], leaf.shape[2])


def depends_on_input(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> bool:
    """Return whether an output of `function` can depend on `x`, by following `x` through the operations."""
    jaxpr = jax.make_jaxpr(function)(x).jaxpr
    tainted = {id(var) for var in jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(var) in tainted for var in equation.invars):
            tainted.update(id(var) for var in equation.outvars)
    return any(id(var) in tainted for var in jaxpr.outvars)


def factor_diagonal(factors: ScoreFactors, weights: Float[Array, " n"]) -> Float[Array, " d"]:
    """Compute the diagonal `sum_t w_t g_t^2`, `[d]` in the order of the factors (not of the parameters); weights `[n]`."""
    blocks = [
        jnp.einsum("t,to,ti->oi", weights, delta**2, x**2, precision="highest").ravel()
        for x, delta in zip(factors.inputs, factors.deltas, strict=True)
    ]
    return jnp.concatenate([*blocks, jnp.dot(weights, factors.rest**2, precision="highest")])


def dense_scores(factors: ScoreFactors) -> Float[Array, "*b d"]:
    """Return the scores themselves, `[..., n, d]` in the order of the factors; for checks on small networks."""
    blocks = [
        jnp.einsum("...o,...i->...oi", delta, x).reshape(*x.shape[:-1], -1)
        for x, delta in zip(factors.inputs, factors.deltas, strict=True)
    ]
    return jnp.concatenate([*blocks, factors.rest], axis=-1)


def _dense_layers(function: Callable[..., PyTree], params: Params, *sample: PyTree) -> list[_Layer]:
    """The dense layers that `function` calls once, on a vector, with parameters straight from `params`; traces only."""
    found: list[_Layer | None] = []
    leaves: list[PyTree] = []

    def record(next_fn: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if _is_dense_call(context):
            found.append(_describe(context.module, args[0], leaves))
        return next_fn(*args, **kwargs)

    def traced(params: Params, *sample: PyTree) -> PyTree:
        leaves.extend(jax.tree.leaves(params))
        return function(params, *sample)

    with nn.intercept_methods(record):
        jax.eval_shape(traced, params, *sample)
    kernels = [layer.kernel for layer in found if layer]
    return [layer for layer in found if layer and kernels.count(layer.kernel) == 1]


def _is_dense_call(context: nn.module.InterceptorContext) -> bool:
    return type(context.module) is nn.Dense and context.method_name == "__call__"


def _describe(module: nn.Module, x: jax.Array, leaves: list[PyTree]) -> _Layer | None:
    """Which leaves a dense layer's parameters are, or None where they are not leaves or the input is no vector."""
    position = {id(leaf): index for index, leaf in enumerate(leaves)}
    kernel: Any = module.get_variable("params", "kernel")
    bias: Any = module.get_variable("params", "bias") if module.has_variable("params", "bias") else None
    known = id(kernel) in position and (bias is None or id(bias) in position)
    if not known or jnp.ndim(x) != 1:
        return None
    return _Layer(position[id(kernel)], None if bias is None else position[id(bias)], kernel.shape[1])


def _perturbed(
    function: Callable[..., PyTree], params: Params, layers: list[_Layer], sample: tuple[PyTree, ...]
) -> tuple[Callable[[PyTree], tuple[PyTree, tuple[jax.Array, ...]]], PyTree]:
    """`function` of (zeros added to the dense layers' outputs, the remaining leaves), with the layers' inputs beside."""
    leaves, treedef = jax.tree.flatten(params)
    owned = {index for layer in layers for index in (layer.kernel, layer.bias)}
    free = [index for index in range(len(leaves)) if index not in owned]
    dtype = jnp.result_type(*leaves)

    def perturbed(at: tuple[list[jax.Array], list[jax.Array]]) -> tuple[PyTree, tuple[jax.Array, ...]]:
        zeros, rest = at
        values = [*leaves]
        for index, leaf in zip(free, rest, strict=True):
            values[index] = leaf
        inputs: dict[int, jax.Array] = {}
        slot = {id(values[layer.kernel]): number for number, layer in enumerate(layers)}

        def add(next_fn: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            y = next_fn(*args, **kwargs)
            number = slot.get(id(context.module.get_variable("params", "kernel"))) if _is_dense_call(context) else None
            if number is None:
                return y
            inputs[number] = _with_bias(args[0], layers[number].bias is not None)
            return y + zeros[number]

        with nn.intercept_methods(add):
            value = function(jax.tree.unflatten(treedef, values), *sample)
        return value, tuple(inputs[number] for number in range(len(layers)))

    return perturbed, ([jnp.zeros(layer.width, dtype) for layer in layers], [leaves[index] for index in free])


def _with_bias(x: jax.Array, bias: bool) -> jax.Array:
    return jnp.concatenate([x, jnp.ones(1, x.dtype)]) if bias else x


def _flat(leaves: list[jax.Array], dtype: jnp.dtype) -> jax.Array:
    return jnp.concatenate([jnp.zeros(0, dtype), *(leaf.ravel() for leaf in leaves)])
