"""Fisher information matrices of a parametric density, and inner products between them, without forming one.

A weighted Fisher matrix is `F = sum_t w_t g_t g_t^T` with scores `g_t = grad_theta log p(y_t | x_t)`. It has d x d entries,
but `<F_i, F_j>_F = sum_ts w_it w_js (g_it . g_js)^2`, so anything that needs only inner products (distances, means,
principal coordinates) never needs the matrix. For layers `y = W x + b` a score's block is `delta x^T`, hence
`g . g' = sum_l (delta_l . delta'_l)(x_l . x'_l + 1) + ...` and even the d numbers of a score need not exist.

Nothing here knows of environments, policies or herds. Axes: N matrices, n samples in each, d parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Params = Any

# Samples in a block of the kernel: a CPU wants its blocks in cache, a GPU wants large matrix products (measured).
BLOCK_ROWS = {"cpu": 512}
BLOCK_ROWS_ELSEWHERE = 2048


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


def score_gradients(log_prob: Callable[..., jax.Array], params: Params, *samples: Any) -> Params:
    """Per-sample scores `grad_theta log p`, as a pytree like `params` with a leading sample axis n.

    Args:
      log_prob: `log_prob(params, *one_sample) -> []`.
      params: any pytree of arrays.
      *samples: arguments of `log_prob` after the first, leaves `[n, ...]`.
    """
    return jax.vmap(jax.grad(log_prob), in_axes=(None, *(0 for _ in samples)))(params, *samples)


def diagonal_fisher(log_prob: Callable[..., jax.Array], params: Params, weights: jax.Array, *samples: Any) -> Params:
    """Diagonal `sum_t w_t g_t^2` of the weighted Fisher matrix, a pytree like `params`; weights `[n]`."""
    scores = score_gradients(log_prob, params, *samples)
    return jax.tree.map(lambda g: jnp.tensordot(weights, g**2, axes=1, precision="highest"), scores)


def flatten_samples(tree: Any, batch_ndim: int = 1) -> jax.Array:
    """Leaves `[*batch, ...]` of a pytree side by side, `[*batch, d]`."""
    leaves = [leaf.reshape(*leaf.shape[:batch_ndim], -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=-1)


# Inner products of Fisher matrices -----------------------------------------------------------------------------------


def fisher_gram(
    scores_a: Any,
    weights_a: jax.Array,
    scores_b: Any = None,
    weights_b: jax.Array | None = None,
    *,
    block_rows: int | None = None,
) -> jax.Array:
    """Gram `G_ij = <F_i, F_j>_F = sum_ts w_it w_js (g_it . g_js)^2` of weighted Fisher matrices.

    Args:
      scores_a: per-sample scores, leaves `[Na, n, ...]`.
      weights_a: `[Na, n]`, of either sign; 0 removes a sample (its score must still be finite).
      scores_b: the same for the columns, leaves `[Nb, m, ...]`; left out, the rows themselves, for half the work.
      weights_b: `[Nb, m]`.
      block_rows: the kernel is evaluated on blocks of about this many samples squared; None chooses for the backend.

    Returns:
      `[Na, Nb]`, or a symmetric `[Na, Na]`.
    """
    flat_a = flatten_samples(scores_a, 2)
    flat_b = None if scores_b is None else flatten_samples(scores_b, 2)
    return _blocked_gram(_dot, flat_a, weights_a, flat_b, weights_b, block_rows)


def factor_gram(
    factors_a: ScoreFactors,
    weights_a: jax.Array,
    factors_b: ScoreFactors | None = None,
    weights_b: jax.Array | None = None,
    *,
    block_rows: int | None = None,
) -> jax.Array:
    """`fisher_gram` for factorised scores: leaves `[Na, n, ...]` and `[Nb, m, ...]`, no per-sample gradient is formed."""
    return _blocked_gram(factor_kernel, factors_a, weights_a, factors_b, weights_b, block_rows)


def gram_norms(factors: ScoreFactors, weights: jax.Array, *, block_rows: int | None = None) -> jax.Array:
    """The Gram's diagonal alone, `[N]` squared Frobenius norms of the N matrices."""

    def one(task: tuple[ScoreFactors, jax.Array]) -> jax.Array:
        rows, task_weights = jax.tree.map(lambda leaf: leaf[None], task)
        return factor_gram(rows, task_weights, block_rows=block_rows)[0, 0]

    return jax.lax.map(one, (factors, weights))


def factor_kernel(a: ScoreFactors, b: ScoreFactors) -> jax.Array:
    """Scalar products `[n, m]` of every score of `a` with every score of `b`: `sum_l (delta.delta')(x.x') + rest.rest'`."""
    kernel = _dot(a.rest, b.rest)
    for x_a, x_b, delta_a, delta_b in zip(a.inputs, b.inputs, a.deltas, b.deltas, strict=True):
        kernel = kernel + _dot(delta_a, delta_b) * _dot(x_a, x_b)
    return kernel


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b.T, precision="highest")


class _Blocks(NamedTuple):
    rows: Any  # leaves [B, G * c, ...]
    weights: jax.Array  # [B, G, c]
    chunks: int  # blocks that a task was cut into (then G = 1)


def _blocked_gram(
    kernel: Callable, rows_a: Any, weights_a: jax.Array, rows_b: Any, weights_b: Any, size: int | None
) -> jax.Array:
    """Gram of a squared kernel from blocks of about `size` samples, one pair of blocks in memory at a time."""
    symmetric = rows_b is None
    chex.assert_rank([weights_a] if symmetric else [weights_a, weights_b], 2)
    size = size or BLOCK_ROWS.get(jax.default_backend(), BLOCK_ROWS_ELSEWHERE)
    a = _split(rows_a, weights_a, size)
    b = a if symmetric else _split(rows_b, weights_b, size)
    blocks_a, blocks_b = a.weights.shape[0], b.weights.shape[0]
    grid = np.triu_indices(blocks_a) if symmetric else np.indices((blocks_a, blocks_b)).reshape(2, -1)
    i, j = (jnp.asarray(index) for index in grid)

    def pair(index: tuple[jax.Array, jax.Array]) -> jax.Array:
        block_a = jax.tree.map(lambda leaf: leaf[index[0]], (a.rows, a.weights))
        block_b = jax.tree.map(lambda leaf: leaf[index[1]], (b.rows, b.weights))
        return _block_sum(kernel, block_a, block_b)

    sums = jax.lax.map(pair, (i, j))
    gram = jnp.zeros((blocks_a, blocks_b, *sums.shape[1:]), sums.dtype).at[i, j].set(sums)
    if symmetric:
        gram = gram.at[j, i].set(sums.mT)
    # [Ba, Bb, Ga, Gb] -> [tasks, chunks, tasks, chunks], of which one of the two is trivial on each side.
    gram = gram.swapaxes(1, 2).reshape(-1, a.chunks, blocks_b * sums.shape[2] // b.chunks, b.chunks).sum((1, 3))
    gram = gram[: weights_a.shape[0], : (weights_a if symmetric else weights_b).shape[0]]
    return (gram + gram.T) / 2 if symmetric else gram


def _split(rows: Any, weights: jax.Array, size: int) -> _Blocks:
    """Cut long tasks into chunks, or put short ones together, so that a block has about `size` rows; pads with weight 0."""
    tasks, samples = weights.shape
    chunks = -(-samples // size)
    group = 1 if chunks > 1 else min(max(size // samples, 1), tasks)
    length = -(-samples // chunks)
    extra_tasks, extra_samples = -tasks % group, length * chunks - samples
    blocks = (tasks + extra_tasks) * chunks // group

    def cut(leaf: jax.Array) -> jax.Array:
        widths = [(0, extra_tasks), (0, extra_samples)] + [(0, 0)] * (leaf.ndim - 2)
        return jnp.pad(leaf, widths).reshape(blocks, group * length, *leaf.shape[2:])

    return _Blocks(jax.tree.map(cut, rows), cut(weights).reshape(-1, group, length), chunks)


def _block_sum(kernel: Callable, a: tuple[Any, jax.Array], b: tuple[Any, jax.Array]) -> jax.Array:
    """`[Ga, Gb]` sums of `w w' k^2` over the samples of each pair of tasks in two blocks."""
    (rows_a, weights_a), (rows_b, weights_b) = a, b
    squares = kernel(rows_a, rows_b) ** 2
    squares = squares.reshape(-1, *weights_b.shape)
    partial = (squares * weights_b).sum(-1).reshape(*weights_a.shape, -1)
    return jnp.einsum("gt,gth->gh", weights_a, partial, precision="highest")


# Factorised scores of Linen models -----------------------------------------------------------------------------------


class _Layer(NamedTuple):
    kernel: int  # position among the leaves of params
    bias: int | None
    width: int


def score_factors(log_prob: Callable[..., jax.Array], params: Params, *samples: Any) -> ScoreFactors:
    """Scores of n samples with every `nn.Dense` layer's block in factors.

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

    def one(*sample: Any) -> ScoreFactors:
        perturbed, at_zero = _perturbed(log_prob, params, layers, sample)
        (deltas, rest), inputs = jax.grad(perturbed, has_aux=True)(at_zero)
        return ScoreFactors(inputs, tuple(deltas), _flat(rest, dtype))

    return jax.vmap(one)(*samples)


def gaussian_factors(apply: Callable, params: Params, obs: jax.Array) -> tuple[ScoreFactors, ScoreFactors]:
    """Pseudo-scores whose outer products sum to the expected Fisher matrix of a diagonal Gaussian at every input.

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
    """Whether an output of `function` can depend on `x`, by following `x` through the traced operations (never on values)."""
    jaxpr = jax.make_jaxpr(function)(x).jaxpr
    tainted = {id(var) for var in jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(var) in tainted for var in equation.invars):
            tainted.update(id(var) for var in equation.outvars)
    return any(id(var) in tainted for var in jaxpr.outvars)


def factor_diagonal(factors: ScoreFactors, weights: jax.Array) -> jax.Array:
    """Diagonal `sum_t w_t g_t^2`, `[d]` in the order of the factors (not of the parameters); weights `[n]`."""
    blocks = [
        jnp.einsum("t,to,ti->oi", weights, delta**2, x**2, precision="highest").ravel()
        for x, delta in zip(factors.inputs, factors.deltas, strict=True)
    ]
    return jnp.concatenate([*blocks, jnp.dot(weights, factors.rest**2, precision="highest")])


def dense_scores(factors: ScoreFactors) -> jax.Array:
    """The scores themselves, `[..., n, d]` in the order of the factors; for checks on small networks."""
    blocks = [
        jnp.einsum("...o,...i->...oi", delta, x).reshape(*x.shape[:-1], -1)
        for x, delta in zip(factors.inputs, factors.deltas, strict=True)
    ]
    return jnp.concatenate([*blocks, factors.rest], axis=-1)


def _dense_layers(function: Callable, params: Params, *sample: Any) -> list[_Layer]:
    """The dense layers that `function` calls once, on a vector, with parameters straight from `params`; traces only."""
    found: list[_Layer | None] = []
    leaves: list[Any] = []

    def record(next_fn: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if _is_dense_call(context):
            found.append(_describe(context.module, args[0], leaves))
        return next_fn(*args, **kwargs)

    def traced(params: Params, *sample: Any) -> Any:
        leaves.extend(jax.tree.leaves(params))
        return function(params, *sample)

    with nn.intercept_methods(record):
        jax.eval_shape(traced, params, *sample)
    kernels = [layer.kernel for layer in found if layer]
    return [layer for layer in found if layer and kernels.count(layer.kernel) == 1]


def _is_dense_call(context: nn.module.InterceptorContext) -> bool:
    return type(context.module) is nn.Dense and context.method_name == "__call__"


def _describe(module: nn.Module, x: jax.Array, leaves: list[Any]) -> _Layer | None:
    """Which leaves a dense layer's parameters are, or None where they are not leaves or the input is no vector."""
    position = {id(leaf): index for index, leaf in enumerate(leaves)}
    kernel: Any = module.get_variable("params", "kernel")
    bias: Any = module.get_variable("params", "bias") if module.has_variable("params", "bias") else None
    known = id(kernel) in position and (bias is None or id(bias) in position)
    if not known or jnp.ndim(x) != 1:
        return None
    return _Layer(position[id(kernel)], None if bias is None else position[id(bias)], kernel.shape[1])


def _perturbed(function: Callable, params: Params, layers: list[_Layer], sample: tuple) -> tuple[Callable, Any]:
    """`function` of (zeros added to the dense layers' outputs, the remaining leaves), with the layers' inputs beside."""
    leaves, treedef = jax.tree.flatten(params)
    owned = {index for layer in layers for index in (layer.kernel, layer.bias)}
    free = [index for index in range(len(leaves)) if index not in owned]
    dtype = jnp.result_type(*leaves)

    def perturbed(at: tuple[list[jax.Array], list[jax.Array]]) -> tuple[Any, tuple[jax.Array, ...]]:
        zeros, rest = at
        values = [*leaves]
        for index, leaf in zip(free, rest, strict=True):
            values[index] = leaf
        inputs: dict[int, jax.Array] = {}
        slot = {id(values[layer.kernel]): number for number, layer in enumerate(layers)}

        def add(next_fn: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
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
