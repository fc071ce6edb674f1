"""Inner products of weighted Fisher matrices, `<F_i, F_j>_F = sum_ts w_it w_js (g_it . g_js)^2`, without forming one.

A Fisher matrix has d x d entries; distances, means and principal coordinates need only inner products. Axes: N matrices, n
samples in each, d parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tamherd_jax.fisher.scores import ScoreFactors, flatten_samples
from tamherd_jax.types import PyTree

# Samples in a block of the kernel: a CPU wants its blocks in cache, a GPU wants large matrix products (measured).
BLOCK_ROWS = {"cpu": 512}
BLOCK_ROWS_ELSEWHERE = 2048

Kernel: TypeAlias = Callable[[PyTree, PyTree], jax.Array]


def fisher_gram(
    scores_a: PyTree,
    weights_a: jax.Array,
    scores_b: PyTree | None = None,
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

    Raises:
      ValueError: weights do not have the leading axes of their scores, or the columns' scores or weights are missing.
    """
    check_columns(scores_b, weights_b)
    check_weights("a", scores_a, weights_a)
    check_weights("b", scores_b, weights_b)
    flat_a = flatten_samples(scores_a, 2)
    flat_b = None if scores_b is None else flatten_samples(scores_b, 2)
    return blocked_gram(lambda a, b: dot(a, b) ** 2, flat_a, weights_a, flat_b, weights_b, block_rows)


def factor_gram(
    factors_a: ScoreFactors,
    weights_a: jax.Array,
    factors_b: ScoreFactors | None = None,
    weights_b: jax.Array | None = None,
    *,
    block_rows: int | None = None,
) -> jax.Array:
    """Compute `fisher_gram` for factorised scores, leaves `[Na, n, ...]` and `[Nb, m, ...]`; no per-sample gradient is formed.

    Raises:
      ValueError: as `fisher_gram`.
    """
    check_columns(factors_b, weights_b)
    check_weights("a", factors_a, weights_a)
    check_weights("b", factors_b, weights_b)
    return blocked_gram(lambda a, b: factor_kernel(a, b) ** 2, factors_a, weights_a, factors_b, weights_b, block_rows)


def gram_norms(factors: ScoreFactors, weights: jax.Array, *, block_rows: int | None = None) -> Float[Array, " N"]:
    """Compute the Gram's diagonal alone, `[N]` squared Frobenius norms of the N matrices.

    Raises:
      ValueError: the weights do not have the leading axes of the factors.
    """
    check_weights("a", factors, weights)

    def one(task: tuple[ScoreFactors, jax.Array]) -> jax.Array:
        rows, task_weights = jax.tree.map(lambda leaf: leaf[None], task)
        return factor_gram(rows, task_weights, block_rows=block_rows)[0, 0]

    return jax.lax.map(one, (factors, weights))


def factor_kernel(a: ScoreFactors, b: ScoreFactors) -> Float[Array, "n m"]:
    """Scalar products `[n, m]` of every score of `a` with every score of `b`: `sum_l (delta.delta')(x.x') + rest.rest'`."""
    kernel = dot(a.rest, b.rest)
    for x_a, x_b, delta_a, delta_b in zip(a.inputs, b.inputs, a.deltas, b.deltas, strict=True):
        kernel = kernel + dot(delta_a, delta_b) * dot(x_a, x_b)
    return kernel


def check_columns(rows: PyTree | None, weights: jax.Array | None) -> None:
    """Refuse the columns' scores without their weights, and their weights without scores.

    Raises:
      ValueError: one of them is missing.
    """
    if (rows is None) != (weights is None):
        given, missing = ("scores", "weights") if weights is None else ("weights", "scores")
        raise ValueError(f"columns need scores and weights: {given} b were passed without {missing} b")


def check_weights(name: str, rows: PyTree | None, weights: jax.Array | None) -> None:
    """Refuse weights `[N, n]` that do not have the two leading axes of all leaves `[N, n, ...]` of their scores.

    Raises:
      ValueError: naming the shapes.
    """
    if rows is None or weights is None:
        return
    shapes = {leaf.shape[:2] for leaf in map(jnp.asarray, jax.tree.leaves(rows))}
    if jnp.ndim(weights) != 2 or shapes != {jnp.shape(weights)}:
        found = ", ".join(map(str, sorted(shapes)))
        raise ValueError(
            f"weights {name} must be [matrices, samples] like the leading axes of scores {name}: "
            f"weights have shape {jnp.shape(weights)}, scores {found}"
        )


def dot(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Return the products `[n, m]` of rows `[n, d]` and `[m, d]` at full precision."""
    return jnp.dot(a, b.T, precision="highest")


class _Blocks(NamedTuple):
    rows: PyTree  # leaves [B, G * c, ...]
    weights: jax.Array  # [B, G, c]
    chunks: int  # blocks that a task was cut into (then G = 1)


def blocked_gram(
    kernel: Kernel,
    rows_a: PyTree,
    weights_a: jax.Array,
    rows_b: PyTree | None,
    weights_b: jax.Array | None,
    size: int | None,
) -> jax.Array:
    """Gram of a kernel, squared already, from blocks of about `size` samples, one pair of blocks in memory at a time."""
    size = size or BLOCK_ROWS.get(jax.default_backend(), BLOCK_ROWS_ELSEWHERE)
    a = _split(rows_a, weights_a, size)
    symmetric = rows_b is None or weights_b is None
    b = a if weights_b is None else _split(rows_b, weights_b, size)
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
    gram = gram[: weights_a.shape[0], : (weights_a if weights_b is None else weights_b).shape[0]]
    return (gram + gram.T) / 2 if symmetric else gram


def _split(rows: PyTree, weights: jax.Array, size: int) -> _Blocks:
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


def _block_sum(kernel: Kernel, a: tuple[PyTree, jax.Array], b: tuple[PyTree, jax.Array]) -> Float[Array, "Ga Gb"]:
    """`[Ga, Gb]` sums of `w w' k` over the samples of each pair of tasks in two blocks."""
    (rows_a, weights_a), (rows_b, weights_b) = a, b
    squares = kernel(rows_a, rows_b).reshape(-1, *weights_b.shape)
    partial = (squares * weights_b).sum(-1).reshape(*weights_a.shape, -1)
    return jnp.einsum("gt,gth->gh", weights_a, partial, precision="highest")
