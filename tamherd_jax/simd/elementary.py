"""Elementary functions as vector instructions: range reduction and a polynomial, without branches.

Coefficients are the classical float32 ones (Cephes; Moshier, Methods and Programs for Mathematical Functions, 1989). Relative
errors are below 2e-7 (`pow`: 4e-7; `sin` and `cos`: 1e-7 of the amplitude), held by tests against double precision.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tamherd_jax.simd.ir import FLOAT, INT, Builder, Value

f32, i32 = np.float32, np.int32

_HALF_PI = (1.5703125, 4.837512969970703125e-4, 7.549789415861596353e-08, -1.7151244994e-15)
"""pi/2 in parts: products of the first two with the number of quadrants are exact even without fused multiply-adds."""

_LARGEST_ANGLE = 2.0**17
"""Angles beyond lose digits in the range reduction, and become NaN instead."""

_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_LOG2 = (0.693359375, -2.12194440e-4)
_LARGEST_EXP, _SMALLEST_EXP = 88.72283935546875, -103.97208


def _polynomial(b: Builder, coefficients: Sequence[float], x: Value) -> Value:
    out: Value = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        out = b.fma(out, x, f32(coefficient))
    return out


def _quadrant(b: Builder, x: Value) -> tuple[Value, Value]:
    """Return the nearest multiple of pi/2 (its number) and the rest of an angle."""
    number = b.op("rint", b.op("mul", x, f32(2 / np.pi)))
    rest = x
    for part in _HALF_PI:
        rest = b.fma(number, f32(-part), rest)
    return b.convert(number, INT), rest


def _circular(b: Builder, x: Value, ahead: int) -> Value:
    """Return `sin(x + ahead pi/2)`."""
    number, rest = _quadrant(b, x)
    square = b.op("mul", rest, rest)
    sine = b.fma(b.op("mul", _polynomial(b, _SIN, square), square), rest, rest)
    cosine = b.fma(_polynomial(b, _COS, square), b.op("mul", square, square), b.fma(square, f32(-0.5), f32(1)))
    number = b.op("add", number, i32(ahead)) if ahead else number
    swapped = b.op("ne", b.op("and", number, i32(1)), i32(0))
    negative = b.op("ne", b.op("and", number, i32(2)), i32(0))
    value = b.select(swapped, cosine, sine)
    value = b.select(negative, b.op("neg", value), value)
    return b.select(b.op("le", b.op("abs", x), f32(_LARGEST_ANGLE)), value, f32(np.nan))


def sin(b: Builder, x: Value) -> Value:
    """Return the sine of an angle of at most 2**17 rad; NaN beyond."""
    return _circular(b, x, 0)


def cos(b: Builder, x: Value) -> Value:
    """Return the cosine of an angle of at most 2**17 rad; NaN beyond."""
    return _circular(b, x, 1)


def _scale_by_power(b: Builder, x: Value, exponent: Value) -> Value:
    """Return `x * 2**exponent` for an int32 exponent of -252 to 254, in two factors so that neither overflows."""
    half = b.shift("ashr", exponent, 1)
    for part in (half, b.op("sub", exponent, half)):
        power = b.bits(b.shift("shl", b.op("add", part, i32(127)), 23), FLOAT)
        x = b.op("mul", x, power)
    return x


def exp(b: Builder, x: Value) -> Value:
    """Return e to the power of x."""
    return _exp_of_sum(b, x, f32(0))


def _exp_of_sum(b: Builder, x: Value, low: Value) -> Value:
    """Return `exp(x + low)` for a small correction `low`."""
    inside = b.op("min", b.op("max", x, f32(_SMALLEST_EXP)), f32(_LARGEST_EXP))
    number = b.op("rint", b.op("mul", inside, f32(np.log2(np.e))))
    rest = b.fma(number, f32(-_LOG2[0]), inside)
    rest = b.op("add", b.fma(number, f32(-_LOG2[1]), rest), low)
    value = b.fma(_polynomial(b, _EXP, rest), b.op("mul", rest, rest), b.op("add", rest, f32(1)))
    value = _scale_by_power(b, value, b.convert(number, INT))
    value = b.select(b.op("gt", x, f32(_LARGEST_EXP)), f32(np.inf), value)
    return b.select(b.op("lt", x, f32(_SMALLEST_EXP)), f32(0), value)


def _split(b: Builder, x: Value) -> tuple[Value, Value]:
    """Return the exponent of a positive number as a float, and its mantissa in [sqrt(1/2), sqrt(2)) minus 1."""
    tiny = b.op("lt", x, f32(np.finfo(np.float32).tiny))
    bits = b.bits(b.select(tiny, b.op("mul", x, f32(2.0**24)), x), INT)
    exponent = b.op("sub", b.shift("ashr", bits, 23), b.select(tiny, i32(127 + 24), i32(127)))
    mantissa = b.bits(b.op("or", b.op("and", bits, i32(0x007FFFFF)), i32(0x3F800000)), FLOAT)
    large = b.op("gt", mantissa, f32(np.sqrt(2)))
    mantissa = b.select(large, b.op("mul", mantissa, f32(0.5)), mantissa)
    exponent = b.select(large, b.op("add", exponent, i32(1)), exponent)
    return b.convert(exponent, FLOAT), b.op("sub", mantissa, f32(1))


def _log_parts(b: Builder, x: Value) -> tuple[Value, Value]:
    """Return the logarithm of a positive number as a sum of a leading part and a small one."""
    exponent, m = _split(b, x)
    square = b.op("mul", m, m)
    tail = b.fma(b.op("mul", _polynomial(b, _LOG, m), m), square, b.op("mul", exponent, f32(_LOG2[1])))
    tail = b.fma(square, f32(-0.5), tail)
    high = b.fma(exponent, f32(_LOG2[0]), m)
    # What rounding took from `exponent * log 2 + m`, whose first product is exact.
    lost = b.op("sub", m, b.op("sub", high, b.op("mul", exponent, f32(_LOG2[0]))))
    return high, b.op("add", tail, lost)


def _special_log(b: Builder, x: Value, value: Value) -> Value:
    value = b.select(b.op("eq", x, f32(np.inf)), f32(np.inf), value)
    value = b.select(b.op("eq", x, f32(0)), f32(-np.inf), value)
    return b.select(b.op("ge", x, f32(0)), value, f32(np.nan))


def log(b: Builder, x: Value) -> Value:
    """Return the natural logarithm; -inf of 0 and NaN of negative numbers."""
    return _special_log(b, x, b.op("add", *_log_parts(b, x)))


def power(b: Builder, x: Value, y: Value) -> Value:
    """Return x to the power of y for x >= 0; NaN for negative x (1 where y is 0)."""
    high, low = _log_parts(b, b.vector(x))
    total = b.op("add", high, low)
    low = b.op("add", b.op("sub", high, total), low)
    product = b.op("mul", y, total)
    error = b.fma(y, low, b.fma(y, total, b.op("neg", product)))
    error = b.select(b.op("lt", b.op("abs", product), f32(200)), error, f32(0))
    value = _exp_of_sum(b, product, error)
    zero, infinite = b.op("eq", x, f32(0)), b.op("eq", x, f32(np.inf))
    positive = b.op("gt", y, f32(0))
    value = b.select(zero, b.select(positive, f32(0), f32(np.inf)), value)
    value = b.select(infinite, b.select(positive, f32(np.inf), f32(0)), value)
    value = b.select(b.op("ge", x, f32(0)), value, f32(np.nan))
    value = b.select(b.op("eq", y, y), value, f32(np.nan))
    return b.select(b.op("or", b.op("eq", y, f32(0)), b.op("eq", x, f32(1))), f32(1), value)


def tanh(b: Builder, x: Value) -> Value:
    """Return the hyperbolic tangent."""
    size = b.op("abs", x)
    square = b.op("mul", x, x)
    small = b.fma(b.op("mul", _polynomial(b, _TANH, square), square), x, x)
    tail = b.op("div", f32(2), b.op("add", exp(b, b.op("mul", b.op("min", size, f32(44)), f32(2))), f32(1)))
    large = b.op("sub", f32(1), tail)
    large = b.select(b.op("lt", x, f32(0)), b.op("neg", large), large)
    value = b.select(b.op("lt", size, f32(0.625)), small, large)
    return b.select(b.op("eq", x, x), value, f32(np.nan))


def logistic(b: Builder, x: Value) -> Value:
    """Return `1 / (1 + exp(-x))`."""
    return b.op("div", f32(1), b.op("add", exp(b, b.op("neg", x)), f32(1)))


ELEMENTARY: dict[str, Callable[..., Value]] = {
    "sin": sin,
    "cos": cos,
    "exp": exp,
    "log": log,
    "pow": power,
    "tanh": tanh,
    "logistic": logistic,
}
"""JAX primitive -> the function that emits it."""
