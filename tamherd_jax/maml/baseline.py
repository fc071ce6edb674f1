"""The linear feature baseline of Duan et al., fitted afresh to every batch of every task."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

from tamherd_jax.maml._checks import check_equal_shapes, check_rank

RIDGE = 1e-5
"""Penalty on the square of every coefficient, the constant's included, in the features' own units."""

OBS_BOUND = 10.0
"""Observations are clipped to plus or minus this bound."""

_TIME_UNIT = 100.0  # steps
_SOLVES = 3  # the last two refine
_SMALLEST_EXPONENT = -20  # columns below 2^-20 are scaled no further: the penalty outweighs them a thousand times


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

    Float32 results equal the formula evaluated in float64 to about 1e-7 of the largest return, although `Phi^T Phi` is
    singular in float32 for the states of a falling body. Three measures achieve it. Powers of centred variables span the same
    space as powers of the variables and are far from collinear; the penalty is carried over exactly. Two shifted Cholesky
    factorisations give an inverse that is good enough for iterative refinement. Each residual is computed to nearly twice
    the working precision. There are only matrix products and factorisations of `2 O + 4` rows, so batches run well on a GPU.

    Args:
      obs: `[R, T, O]` of one task's batch.
      returns: `[R, T]` discounted returns to go.
      valid: `[R, T]`; observations and returns of invalid steps are ignored, finite or not.

    Returns:
      `[R, T]` values, 0 where not valid.

    Raises:
      ValueError: an argument has another rank, or the shapes do not go together.

    Source: garage `LinearFeatureBaseline`; shifted Cholesky QR of Fukaya et al. (2020); error-free matrix products of Ozaki et
    al. (2012).
    """
    check_rank("obs", obs, 3)
    check_equal_shapes(returns=returns, valid=valid, obs_of_one_feature=obs[..., 0])
    mask = valid.reshape(-1) > 0
    target = jnp.where(mask, returns.reshape(-1), 0.0)
    with jax.default_matmul_precision("highest"):
        fitted = _fitted_values(_centred_design(obs, mask), target)
    return jnp.where(mask, fitted, 0.0).reshape(valid.shape)


class _Pair(NamedTuple):
    """The unevaluated sum `high + low`, which carries about twice the working precision."""

    high: jax.Array
    low: jax.Array


class _Design(NamedTuple):
    """Ridge regression in another basis: `|y - X c|^2 + RIDGE |P c|^2`, where `P c` are coefficients of the features.

    Attributes:
      columns: X `[n, F]`, entries within [-1, 1], zero in invalid rows.
      penalty: P `[F, F]`.
    """

    columns: _Pair
    penalty: jax.Array


def _centred_design(obs: jax.Array, mask: jax.Array) -> _Design:
    """Powers of the centred observations and time, which span the same space as `linear_features`.

    With `x = u + m`: `x b1 + x^2 b2 + x^3 b3 = u (b1 + 2 m b2 + 3 m^2 b3) + u^2 (b2 + 3 m b3) + u^3 b3 + constant`. A constant
    is subtracted from every column too, so that all are orthogonal to the column of ones.
    """
    rows = mask.size
    time = jnp.tile(jnp.arange(obs.shape[1], dtype=obs.dtype), obs.shape[0])[:, None]
    base = jnp.concatenate([jnp.clip(obs, -OBS_BOUND, OBS_BOUND).reshape(rows, -1), time], axis=1)
    base = jnp.where(mask[:, None], base, 0.0)
    mean = _centre(base, mask)
    first = _difference(_Pair(base, jnp.zeros_like(base)), mean)
    second = _product(first, first)
    third = _product(_last(second), _last(first))
    offsets = [_centre(power.high, mask) for power in (second, third)]
    powers = [first, _difference(second, offsets[0]), _difference(third, offsets[1])]
    columns = _Pair(*(jnp.concatenate([*parts, jnp.ones((rows, 1), obs.dtype)], 1) for parts in zip(*powers, strict=True)))
    columns = columns._replace(low=columns.low.at[:, -1].set(0.0))
    columns = _Pair(*(jnp.where(mask[:, None], part, 0.0) for part in columns))
    scale = _power_of_two(jnp.max(jnp.abs(columns.high), axis=0))
    penalty = _feature_coefficients(mean, *offsets)
    return _Design(_Pair(*(part / scale[None] for part in columns)), penalty / scale[None])


def _feature_coefficients(mean: jax.Array, second: jax.Array, third: jax.Array) -> jax.Array:
    """Matrix `[F, F]` from the coefficients of the centred powers to those of `linear_features`, in the order of powers.

    Args:
      mean: `[k]` of the k = O + 1 variables, time last.
      second: `[k]` subtracted from the squares of the centred variables.
      third: `[1]` subtracted from the cube of the centred time.
    """
    k, m = mean.size, mean[-1]
    variable = np.arange(k)
    matrix = jnp.eye(2 * k + 2, dtype=mean.dtype)
    matrix = matrix.at[variable, k + variable].set(-2.0 * mean)
    matrix = matrix.at[k - 1, 2 * k].set(3.0 * m**2).at[2 * k - 1, 2 * k].set(-3.0 * m)
    # What the features contribute at the centre must be taken from the constant's coefficient.
    at_centre = jnp.concatenate([mean, mean**2 + second, m**3 + 3.0 * m * second[-1:] + third])
    matrix = matrix.at[-1, :-1].set(-at_centre @ matrix[:-1, :-1])
    unit = np.ones(2 * k + 2)
    unit[[k - 1, 2 * k - 1, 2 * k]] = _TIME_UNIT ** np.arange(1, 4)
    return matrix * jnp.asarray(unit, mean.dtype)[:, None]


def _fitted_values(design: _Design, target: jax.Array) -> jax.Array:
    """`X c` `[n]` of the minimising c, by iterative refinement with residuals of nearly twice the working precision."""
    columns, penalty = design
    rows, count = columns.high.shape
    bits = _mantissa(target.dtype)
    column_bits = (bits - _log2(rows)) // 2
    parts = _split(columns.high, column_bits, jnp.ones((), target.dtype))
    parts = parts._replace(low=parts.low + columns.low)
    root = _inverse_root(columns.high, penalty)

    def apply(c: jax.Array) -> _Pair:
        high, low = _split(c, bits - column_bits - _log2(count), _power_of_two(jnp.max(jnp.abs(c))))
        return _Pair(parts.high @ high, parts.high @ low + parts.low @ c)  # the first product has no rounding error

    def descent(residual: jax.Array, c: jax.Array) -> jax.Array:
        high, low = _split(residual, bits - column_bits - _log2(rows), _power_of_two(jnp.max(jnp.abs(residual))))
        gradient = high @ parts.high + (low @ parts.high + residual @ parts.low)
        return root @ (root.T @ (gradient - RIDGE * ((penalty @ c) @ penalty)))

    coefficients, residual = jnp.zeros(count, target.dtype), target
    for _ in range(_SOLVES):
        change = descent(residual, coefficients)
        fitted = apply(change)
        coefficients, residual = coefficients + change, (residual - fitted.high) - fitted.low
    return target - residual


def _inverse_root(columns: jax.Array, penalty: jax.Array) -> jax.Array:
    """Matrix W `[F, F]` with `W W^T` close to `(X^T X + RIDGE P^T P)^-1`: Cholesky QR, shifted, twice."""
    root = jnp.eye(columns.shape[1], dtype=columns.dtype)
    for _ in range(2):
        columns_now, penalty_now = columns @ root, penalty @ root
        gram = columns_now.T @ columns_now + RIDGE * penalty_now.T @ penalty_now
        scale = 1.0 / jnp.sqrt(jnp.diagonal(gram))
        gram = scale[:, None] * gram * scale[None]
        shift = 2.0 * gram.shape[0] * jnp.finfo(gram.dtype).eps * jnp.eye(gram.shape[0], dtype=gram.dtype)
        factor = jnp.linalg.cholesky(gram + shift)
        root = (root * scale[None]) @ jax.lax.platform_dependent(factor, cpu=_substitute, default=_invert_lower).T
    return root


def _invert_lower(factor: jax.Array) -> jax.Array:
    """Inverse `[F, F]` of a lower triangular matrix."""
    return jsl.solve_triangular(factor, jnp.eye(factor.shape[0], dtype=factor.dtype), lower=True)


def _substitute(factor: jax.Array) -> jax.Array:
    """The same by forward substitution: OpenBLAS would start its threads for every small matrix, and they wait for cores."""
    identity = jnp.eye(factor.shape[0], dtype=factor.dtype)

    def add_row(i: jax.Array, inverse: jax.Array) -> jax.Array:
        return inverse.at[i].set((identity[i] - factor[i] @ inverse) / factor[i, i])

    return jax.lax.fori_loop(0, factor.shape[0], add_row, jnp.zeros_like(factor))


# Arithmetic of nearly twice the working precision ---------------------------------------------------------------------


def _difference(a: _Pair, b: jax.Array) -> _Pair:
    """`a - b` for `b` `[k]`; the rounding error goes to the low part (Knuth's two-sum)."""
    b = b[None]
    high = a.high - b
    taken = high - a.high
    low = ((a.high - (high - taken)) - (b + taken)) + a.low
    total = high + low
    return _Pair(total, (high - total) + low)


def _product(a: _Pair, b: _Pair) -> _Pair:
    """`a b`, entry by entry; the high part is the product of leading bits and exact.

    Dekker's product would fail under XLA, which may round `x y + z` once and so lose the error that the product left.
    """
    (a1, a2), (b1, b2) = _leading_bits(a.high), _leading_bits(b.high)
    return _Pair(a1 * b1, (a1 * b2 + a2 * b.high) + (a.high * b.low + a.low * b.high))


def _leading_bits(x: jax.Array) -> _Pair:
    """`x` `[n, k]` as multiples that fit half a mantissa, and the rest."""
    return _split(x, _mantissa(x.dtype) // 2 - 1, _power_of_two(jnp.max(jnp.abs(x), axis=0)))


def _split(x: jax.Array, bits: int, bound: jax.Array) -> _Pair:
    """Multiples of `bound 2^-bits`, and the rest; sums of products of such multiples are exact while they fit the mantissa."""
    unit = jnp.broadcast_to(bound * 2.0**-bits, x.shape)
    high = jnp.round(x / unit) * unit
    return _Pair(high, x - high)


def _power_of_two(x: jax.Array) -> jax.Array:
    """A power of two above x, for x up to `2^-20` the one above `2^-20`; a constant to derivatives."""
    info = jnp.finfo(x.dtype)
    unsigned = jnp.dtype(f"uint{info.bits}")
    exponent = np.array(((1 << info.nexp) - 1) << info.nmant, unsigned)
    bits = jax.lax.bitcast_convert_type(jnp.maximum(jax.lax.stop_gradient(x), 2.0**_SMALLEST_EXPONENT), unsigned)
    return 2.0 * jax.lax.bitcast_convert_type(bits & exponent, x.dtype)


def _centre(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Means `[k]` over the rows of `x` `[n, k]` that the mask selects, 0 if there are none, less their last two bits.

    XLA may compute the mean anew wherever it is used, as an unrounded product with the inverse count; all copies round alike.
    """
    mean = jnp.sum(jnp.where(mask[:, None], x, 0.0), axis=0) / jnp.maximum(jnp.sum(mask), 1)
    return _split(mean, _mantissa(x.dtype) - 2, _power_of_two(jnp.abs(mean))).high


def _last(x: _Pair) -> _Pair:
    return _Pair(x.high[:, -1:], x.low[:, -1:])


def _mantissa(dtype: jnp.dtype) -> int:
    return int(jnp.finfo(dtype).nmant) + 1


def _log2(count: int) -> int:
    return math.ceil(math.log2(max(count, 2)))
