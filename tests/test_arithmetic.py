"""The rewriting of products, sums and divisions that the GPU's kernel goes through, and the division it uses there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tamherd_jax.physics.planar.arithmetic import Arithmetic, with_arithmetic


class Recorder:
    """Arithmetic that keeps count while a function is traced."""

    def __init__(self):
        self.sums, self.quotients = 0, 0
        self.arithmetic = Arithmetic(self.multiply_add, self.divide)

    def multiply_add(self, a, b, c):
        assert a.shape == b.shape == c.shape
        self.sums += 1
        return lax.add(lax.mul(a, b), c)

    def divide(self, a, b):
        assert a.shape == b.shape
        self.quotients += 1
        return lax.div(a, b)


def polynomial(x, y):
    return x * y + 2.0 * x - y * y


def shared_product(x, y):
    product = x * y
    return product + x, product


def loops(x, y):
    def advance(carry):
        i, a = carry
        return i + 1, a * y + x / (1.0 + y * y)

    i, a = lax.while_loop(lambda carry: (carry[0] < 5) & (jnp.max(carry[1]) < 100.0), advance, (0, x))
    return a, jax.jit(polynomial)(a, x * i)


def integers(x, y):
    n = jnp.arange(4)
    return n * n + n, x.sum() * y.sum() + 1.0


@pytest.mark.parametrize(
    ("fn", "sums", "quotients"), [(polynomial, 2, 0), (shared_product, 0, 0), (loops, 4, 1), (integers, 0, 0)]
)
def test_the_same_numbers_with_the_operations_asked_for(fn, sums, quotients):
    x, y = jnp.linspace(0.1, 2.0, 4), jnp.linspace(1.5, -1.0, 4)
    record = Recorder()
    found = jax.jit(with_arithmetic(fn, record.arithmetic))(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, jax.jit(fn)(x, y))
    assert (record.sums, record.quotients) == (sums, quotients)


def fma(a, b, c):
    """`a b + c` of float32 numbers, rounded once but for ties of the float64 sum."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def test_the_kernels_division_is_that_of_float32():
    """The formula of `_PTX_DIVIDE`, with a reciprocal that is off by up to one unit in the last place as NVIDIA promises."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.5, 2.0, 200_000).astype(np.float32) * 2.0 ** rng.integers(-20, 20, 200_000) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    reciprocal = (np.float32(1) / b).astype(np.float32)
    reciprocal = np.nextafter(reciprocal, reciprocal + rng.choice([-1, 1], b.size)).astype(np.float32)
    one = np.ones_like(b)
    reciprocal = fma(reciprocal, fma(-b, reciprocal, one), reciprocal)
    quotient = (a * reciprocal).astype(np.float32)
    quotient = fma(fma(-b, quotient, a), reciprocal, quotient)
    wrong = quotient != a / b
    assert wrong.mean() < 1e-3
    np.testing.assert_array_max_ulp(quotient, a / b, maxulp=1)
