"""Gram matrices of Fisher matrices whose rows share inputs, by pairs of inputs or by moments of the layers' blocks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tamherd_jax.fisher.gram import blocked_gram, check_columns, check_weights, dot
from tamherd_jax.fisher.scores import JacobianFactors
from tamherd_jax.types import PyTree

# Entries of all matrices held at a time where blocks of them are formed (measured on a CPU: 2^25 took a fifth longer).
BLOCK_ENTRIES = 2**23


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

    Raises:
      ValueError: weights do not have the leading axes of their factors, or the columns' factors or weights are missing.
    """
    check_columns(b, weights_b)
    check_weights("a", a, weights_a)
    check_weights("b", b, weights_b)
    if moments is None:
        moments = moments_are_cheaper(a, weights_a.size, None if weights_b is None else weights_b.size)
    if moments:
        return _moment_gram(a, weights_a, b, weights_b)
    return blocked_gram(_squared_products, a, weights_a, b, weights_b, None)


def moments_are_cheaper(factors: JacobianFactors, inputs: int, others: int | None) -> bool:
    """Return whether moments take fewer products than pairs, of `inputs` with `others` or, where None, among themselves."""
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


def _squared_products(a: JacobianFactors, b: JacobianFactors) -> Float[Array, "n m"]:
    """`|G_t G_s^T|_F^2` `[n, m]`, one pair of rows after the other so that n x m is all that is held."""
    layers = list(zip(_layers(a), _layers(b), strict=True))
    inputs = [dot(x_a, x_b) for (x_a, _), (x_b, _) in layers]

    def add(total: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        deltas = [dot(d_a[:, row[0]], d_b[:, row[1]]) for (_, d_a), (_, d_b) in layers]
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
        def block(task: PyTree) -> jax.Array:
            (x_1, d_1), (x_2, d_2), weights = task
            return dot(_products(d_1, d_2, some) * weights[None], _products(x_1, x_2, columns))

        flat = [jax.lax.map(block, side).reshape(side[2].shape[0], -1) for side in sides]
        return gram + dot(flat[0], flat[-1]), None

    start = jnp.zeros((sides[0][2].shape[0], sides[-1][2].shape[0]), d_1.dtype)
    return jax.lax.scan(add, start, padded)[0] * (1 if symmetric else 2)


def _products(u: Float[Array, "B O n"], v: Float[Array, "B P n"], pairs: Any) -> Float[Array, "pairs n"]:
    """`scale sum_k u_k[o] v_k[p]` `[pairs, n]` at every sample, of u `[B, O, n]` and v `[B, P, n]`, for pairs (o, p)."""
    o, p, scale = pairs
    # Not `jnp.sum`, with which XLA would write all B products to memory first (measured: nine times the time).
    total = sum(u[k][o] * v[k][p] for k in range(u.shape[0]))
    return total * jnp.asarray(scale, u.dtype)[:, None]


def _index_pairs(first: int, second: int, symmetric: bool) -> list[np.ndarray]:
    """Indices (o, p) of a matrix's entries, and the scale of each in a sum of squares; of a symmetric one those on one side."""
    o, p = np.triu_indices(first) if symmetric else np.indices((first, second)).reshape(2, -1)
    return [o, p, np.where(o == p, 1.0, np.sqrt(2.0)) if symmetric else np.ones(o.size)]
