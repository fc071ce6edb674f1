"""Fisher information matrices of a parametric density, and inner products between them, without forming one.

A weighted Fisher matrix is `F = sum_t w_t g_t g_t^T` with scores `g_t = grad_theta log p(y_t | x_t)`. It has d x d entries,
but `<F_i, F_j>_F = sum_ts w_it w_js (g_it . g_js)^2`, so anything that needs only inner products (distances, means,
principal coordinates) never needs the matrix. For layers `y = W x + b` a score's block is `delta x^T`, hence
`g . g' = sum_l (delta_l . delta'_l)(x_l . x'_l + 1) + ...` and even the d numbers of a score need not exist.

Nothing here knows of environments, policies or herds. Axes: N matrices, n samples in each, d parameters.
"""

from __future__ import annotations

import functools
import itertools
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
# Entries of all matrices held at a time where blocks of them are formed (measured on a CPU: 2^25 took a fifth longer).
BLOCK_ENTRIES = 2**23


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
    return _blocked_gram(lambda a, b: _dot(a, b) ** 2, flat_a, weights_a, flat_b, weights_b, block_rows)


def factor_gram(
    factors_a: ScoreFactors,
    weights_a: jax.Array,
    factors_b: ScoreFactors | None = None,
    weights_b: jax.Array | None = None,
    *,
    block_rows: int | None = None,
) -> jax.Array:
    """`fisher_gram` for factorised scores: leaves `[Na, n, ...]` and `[Nb, m, ...]`, no per-sample gradient is formed."""
    return _blocked_gram(lambda a, b: factor_kernel(a, b) ** 2, factors_a, weights_a, factors_b, weights_b, block_rows)


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
    """Gram of a kernel, squared already, from blocks of about `size` samples, one pair of blocks in memory at a time."""
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
    """`[Ga, Gb]` sums of `w w' k` over the samples of each pair of tasks in two blocks."""
    (rows_a, weights_a), (rows_b, weights_b) = a, b
    squares = kernel(rows_a, rows_b).reshape(-1, *weights_b.shape)
    partial = (squares * weights_b).sum(-1).reshape(*weights_a.shape, -1)
    return jnp.einsum("gt,gth->gh", weights_a, partial, precision="highest")


# Inner products of rows that share their inputs --------------------------------------------------------------------------


def jacobian_gram(
    a: JacobianFactors,
    weights_a: jax.Array,
    b: JacobianFactors | None = None,
    weights_b: jax.Array | None = None,
    *,
    moments: bool | None = None,
) -> jax.Array:
    """Gram `<F_i, F_j>_F` of `F_i = sum_t w_it G_it^T G_it`, exact, in the cheaper of two ways.

    By pairs of inputs it costs `n m (sum_l in_l + B^2 sum_l out_l)` products. By moments it is linear in the number of inputs:
    a block of F is `sum_t w_t (D_l^T D_m)_t (x) (x_l x_m^T)_t`, a matrix product over t of which only as much is held as fits,
    and where l = m either factor is symmetric, so that about an eighth of F's `d^2` entries is computed a layer.

    Args:
      a: leaves `[Na, n, ...]`.
      weights_a: `[Na, n]`, of either sign; 0 removes an input (its rows must still be finite).
      b, weights_b: the same for the columns, `[Nb, m, ...]`; left out, the rows themselves, for half the work.
      moments: which way; None takes the one of fewer products.

    Returns:
      `[Na, Nb]`, or a symmetric `[Na, Na]`.
    """
    chex.assert_rank([weights_a] if weights_b is None else [weights_a, weights_b], 2)
    if moments is None:
        moments = _moments_are_cheaper(a, weights_a.size, None if weights_b is None else weights_b.size)
    if moments:
        return _moment_gram(a, weights_a, b, weights_b)
    return _blocked_gram(_squared_products, a, weights_a, b, weights_b, None)


def group_rows(factors: ScoreFactors, rows: int) -> JacobianFactors:
    """Factors `[n B, ...]` of which each B = `rows` in a row have the same input, as `[n, B, ...]`."""
    deltas, rest = jax.tree.map(lambda leaf: leaf.reshape(-1, rows, leaf.shape[-1]), (factors.deltas, factors.rest))
    return JacobianFactors(tuple(x[::rows] for x in factors.inputs), deltas, rest)


def _moments_are_cheaper(factors: JacobianFactors, inputs: int, others: int | None) -> bool:
    """Whether there are fewer products by moments than by pairs, of so many inputs with others or among themselves."""
    shapes = [(x.shape[-1], delta.shape[-1]) for x, delta in _layers(factors)]
    pairs = inputs**2 / 2 if others is None else inputs * others
    entries = 0
    for (i, (in_i, out_i)), (j, (in_j, out_j)) in itertools.combinations_with_replacement(enumerate(shapes), 2):
        entries += _entries(in_i, in_j, i == j) * _entries(out_i, out_j, i == j)
    by_pairs = pairs * sum(wide + factors.rest.shape[-2] ** 2 * out for wide, out in shapes)
    return (inputs + (others or 0)) * entries < by_pairs


def _entries(first: int, second: int, symmetric: bool) -> int:
    return first * (first + 1) // 2 if symmetric else first * second


def _layers(factors: JacobianFactors) -> list[tuple[jax.Array, jax.Array]]:
    """Inputs and deltas of each layer; the rest is one whose input is 1."""
    constant = jnp.ones((*factors.rest.shape[:-2], 1), factors.rest.dtype)
    rest = [(constant, factors.rest)] if factors.rest.shape[-1] else []
    return [*zip(factors.inputs, factors.deltas, strict=True), *rest]


def _squared_products(a: JacobianFactors, b: JacobianFactors) -> jax.Array:
    """`|G_t G_s^T|_F^2` `[n, m]`, one pair of rows after the other so that n x m is all that is held."""
    layers = list(zip(_layers(a), _layers(b), strict=True))
    inputs = [_dot(x_a, x_b) for (x_a, _), (x_b, _) in layers]

    def add(total: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        deltas = [_dot(d_a[:, row[0]], d_b[:, row[1]]) for (_, d_a), (_, d_b) in layers]
        return total + sum(x * delta for x, delta in zip(inputs, deltas, strict=True)) ** 2, None

    rows = a.rest.shape[-2], b.rest.shape[-2]
    start = jnp.zeros((a.rest.shape[0], b.rest.shape[0]), a.rest.dtype)
    return jax.lax.scan(add, start, tuple(jnp.asarray(i) for i in np.indices(rows).reshape(2, -1)))[0]


def _moment_gram(a: JacobianFactors, weights_a: jax.Array, b: JacobianFactors | None, weights_b: Any) -> jax.Array:
    """The Gram as a sum over pairs of layers of the inner products of the matrices' blocks."""
    sides = [(_layers(a), weights_a)] if b is None else [(_layers(a), weights_a), (_layers(b), weights_b)]
    pairs = itertools.combinations_with_replacement(range(len(sides[0][0])), 2)
    gram: Any = sum(_block_gram([(layers[i], layers[j], weights) for layers, weights in sides], i == j) for i, j in pairs)
    return (gram + gram.T) / 2 if b is None else gram


def _block_gram(sides: list[tuple[Any, Any, jax.Array]], symmetric: bool) -> jax.Array:
    """Inner products of one block of the matrices (two if it lies off the diagonal), some of its rows at a time."""
    # Samples last, so that what is picked out are whole vectors of them; an input is one row of its own.
    samples_last = functools.partial(jax.tree.map, lambda leaf: jnp.moveaxis(leaf, 1, -1))
    sides = [(*(samples_last((x[:, :, None], delta)) for x, delta in layers), weights) for *layers, weights in sides]
    (x_1, d_1), (x_2, d_2), _ = sides[0]
    columns, rows = (_index_pairs(u.shape[2], v.shape[2], symmetric) for u, v in ((x_1, x_2), (d_1, d_2)))
    tasks = sum(weights.shape[0] for *_, weights in sides)
    count = min(max(BLOCK_ENTRIES // (tasks * columns[0].size), 1), rows[0].size)
    chunks = -(-rows[0].size // count)
    padded = [jnp.asarray(np.pad(part, (0, chunks * count - part.size)).reshape(chunks, count)) for part in rows]

    def add(gram: jax.Array, some: list[jax.Array]) -> tuple[jax.Array, None]:
        def block(task: Any) -> jax.Array:
            (x_1, d_1), (x_2, d_2), weights = task
            return _dot(_products(d_1, d_2, some) * weights[None], _products(x_1, x_2, columns))

        flat = [jax.lax.map(block, side).reshape(side[2].shape[0], -1) for side in sides]
        return gram + _dot(flat[0], flat[-1]), None

    start = jnp.zeros((sides[0][2].shape[0], sides[-1][2].shape[0]), d_1.dtype)
    return jax.lax.scan(add, start, padded)[0] * (1 if symmetric else 2)


def _products(u: jax.Array, v: jax.Array, pairs: Any) -> jax.Array:
    """`scale sum_k u_k[o] v_k[p]` `[pairs, n]` at every sample, of u `[B, O, n]` and v `[B, P, n]`, for pairs (o, p)."""
    o, p, scale = pairs
    # Not `jnp.sum`, with which XLA would write all B products to memory first (measured: nine times the time).
    total = sum(u[k][o] * v[k][p] for k in range(u.shape[0]))
    return total * jnp.asarray(scale, u.dtype)[:, None]


def _index_pairs(first: int, second: int, symmetric: bool) -> list[np.ndarray]:
    """Indices (o, p) of a matrix's entries, and the scale of each in a sum of squares; of a symmetric one those on one side."""
    o, p = np.triu_indices(first) if symmetric else np.indices((first, second)).reshape(2, -1)
    return [o, p, np.where(o == p, 1.0, np.sqrt(2.0)) if symmetric else np.ones(o.size)]


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
