"""Vector code of elementwise functions against JAX: operations, loops, batching, widths, and hosts that have none."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tamherd_jax import simd
from tamherd_jax.physics.planar import PlanarPhysics, SolverOptions

pytestmark = pytest.mark.skipif(simd.availability() is not None, reason=str(simd.availability()))

SPECIAL = np.array([0, 1, -1, 0.5, -2.5, 3.5, 1e-3, 1e30, np.inf, -np.inf, np.nan], np.float32)


def _floats(count=500, low=-4.0, high=4.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, count), jnp.float32)


def _agree(function, *arguments, rtol=3e-7, atol=3e-7):
    """Vector code of one element's function equals the same function under `vmap`."""
    found = jax.jit(lambda *x: simd.batched_call(function, *x))(*arguments)
    wanted = jax.jit(jax.vmap(function))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, wanted)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), found, wanted)


ONE = {
    "neg": jnp.negative,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "reciprocal of a square": lambda x: x**-2,
    "to the zeroth": lambda x: x**0,
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x) + 0.1),
    "sin": jnp.sin,
    "cos": jnp.cos,
    "exp": jnp.exp,
    "log": lambda x: jnp.log(jnp.abs(x) + 1e-3),
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "is finite": lambda x: jnp.where(jnp.isfinite(x), 1.0, 0.0),
    "clamp": lambda x: jnp.clip(x, -1.5, 2.0),
    "to int and back": lambda x: x.astype(jnp.int32).astype(jnp.float32),
    "int result": lambda x: x.astype(jnp.int32) * 3 - 1,
    "constants only": lambda x: 0 * jnp.zeros(2) + jnp.sin(jnp.arange(2.0)),
}
TWO = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "pow": lambda x, y: jnp.power(jnp.abs(x), y),
    "comparisons": lambda x, y: sum(
        jnp.where(c, 2.0**i, 0.0) for i, c in enumerate([x < y, x <= y, x > y, x >= y, x == y, x != y])
    ),
    "logic": lambda x, y: jnp.where(~((x < 0) & (y < 0)) ^ ((x > 1) | (y > 1)), x, y),
    "int logic": lambda x, y: ((x * 9).astype(jnp.int32) & 12) | (y * 9).astype(jnp.int32) ^ 5,
}


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_number(name):
    _agree(ONE[name], _floats())


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_numbers(name):
    x = _floats()
    _agree(TWO[name], x, jnp.where(jnp.arange(500) % 5 == 0, x, _floats(seed=1)))


@pytest.mark.parametrize(
    "name", ["neg", "abs", "sign", "floor", "exp", "sin", "tanh", "logistic", "is finite", "to int and back"]
)
def test_infinities_and_nan_of_one_number(name):
    _agree(ONE[name], jnp.asarray(SPECIAL[:-4] if name == "sin" else SPECIAL))


@pytest.mark.parametrize("name", ["add", "mul", "div", "max", "min", "pow", "comparisons"])
def test_infinities_and_nan_of_two_numbers(name):
    x, y = map(np.ravel, np.meshgrid(SPECIAL, SPECIAL))
    _agree(TWO[name], jnp.asarray(x), jnp.asarray(y))


@pytest.mark.parametrize(
    ("function", "reference", "low", "high", "relative", "absolute"),
    [
        (jnp.sin, np.sin, -3e4, 3e4, 0, 1e-7),
        (jnp.cos, np.cos, -3e4, 3e4, 0, 1e-7),
        (jnp.exp, np.exp, -87, 88.7, 2e-7, 0),
        (jnp.log, np.log, 1e-37, 1e4, 2e-7, 3e-7),
        (jnp.tanh, np.tanh, -10, 10, 2e-7, 0),
    ],
)
def test_elementary_functions_against_double_precision(function, reference, low, high, relative, absolute):
    x = _floats(100_000, low, high)
    np.testing.assert_allclose(
        simd.batched_call(function, x), reference(np.asarray(x, np.float64)), rtol=relative, atol=absolute
    )


def test_power_against_double_precision():
    x, y = jnp.exp(_floats(100_000, -5, 5)), _floats(100_000, -12, 12, 1)
    wanted = np.asarray(x, np.float64) ** np.asarray(y, np.float64)
    np.testing.assert_allclose(simd.batched_call(jnp.power, x, y), wanted, rtol=4e-7)
    assert np.isnan(simd.batched_call(jnp.power, jnp.float32([-1.0]), jnp.float32([2.5])))[0]


def test_an_angle_without_digits_is_nan():
    assert np.isnan(simd.batched_call(jnp.sin, jnp.float32([3e5, np.inf]))).all()


REARRANGED = {
    "reshape and transpose": lambda x: x.reshape(3, 4).T.reshape(2, 6),
    "slices": lambda x: x[1:9:3] + x[-3:],
    "reverse": lambda x: x[::-1],
    "concatenate and stack": lambda x: jnp.stack([jnp.concatenate([x[:2], x[5:9]]), x[6:]]),
    "broadcast": lambda x: x[:3, None] * x[None, 4:8] + jnp.arange(4.0),
    "split": lambda x: sum(jnp.split(x, 3)),
    "constant indices": lambda x: x[jnp.array([3, 0, 11])],
    "sums": lambda x: x.reshape(3, 4).sum(0) + x.reshape(4, 3).max(1) - x.min() * jnp.prod(x[:3]),
    "any and all": lambda x: jnp.where(jnp.any(x > 3) | jnp.all(x > -3), x, -x),
    "matrix product": lambda x: x.reshape(2, 6) @ x.reshape(6, 2),
    "batched matrix product": lambda x: jnp.einsum("bij,bkj->bik", x.reshape(2, 3, 2), x.reshape(2, 3, 2)),
    "several results": lambda x: (x[0], x[1:3], (x > 0).astype(jnp.int32)),
}


@pytest.mark.parametrize("name", REARRANGED)
def test_rearranging_numbers(name):
    _agree(REARRANGED[name], _floats(12 * 37).reshape(37, 12), rtol=2e-6, atol=2e-6)


CONTROL = {
    "while": lambda x: lax.while_loop(lambda c: c[0] < jnp.abs(x) * 5, lambda c: (c[0] + 1, c[1] * 0.5 + c[0]), (x * 0, x)),
    "nested while": lambda x: lax.while_loop(
        lambda c: c[0] < 3 + x, lambda c: (c[0] + 1, lax.while_loop(lambda d: d < c[0] * x, lambda d: d + 1, c[1])), (x * 0, x)
    ),
    "fori": lambda x: lax.fori_loop(0, 7, lambda i, c: c * 0.9 + i, x),
    "scan over arrays": lambda x: lax.scan(lambda c, a: (c + a * x, c), x, jnp.arange(5.0)),
    "scan in reverse": lambda x: lax.scan(lambda c, a: (c + a * x, c), x, jnp.arange(5.0), reverse=True),
    "cond": lambda x: lax.cond(x > 0, lambda: (x * 2, 1), lambda: (x - 1, 0)),
    "switch": lambda x: lax.switch(x.astype(jnp.int32), [lambda: x, lambda: x * 2, lambda: x * 3]),
    "inner jit": lambda x: jax.jit(jnp.sin)(x) + jax.nn.relu(x),
    "gradient": jax.grad(lambda x: jnp.sin(x) * x**2),
}


@pytest.mark.parametrize("name", CONTROL)
def test_loops_and_branches(name):
    _agree(CONTROL[name], _floats(333), rtol=2e-6, atol=2e-6)


def test_shared_rows_are_read_by_clipped_index():
    table = _floats(5 * 3).reshape(5, 3)
    index = jnp.asarray([0, 4, 2, -7, 99, 3], jnp.int32)
    found = jax.jit(lambda t, i: simd.batched_call(_dot_with_row, i, i.astype(jnp.float32), shared=(t,)))(table, index)
    np.testing.assert_allclose(found, (table[np.clip(index, 0, 4)] * index[:, None]).sum(1), rtol=1e-6)


def _dot_with_row(table, index, x):
    return jnp.sum(jnp.take(table, index, axis=0, mode="clip") * x)


def _iterate(x, y):
    return lax.while_loop(lambda c: jnp.abs(c) > 1e-2, lambda c: c * 0.7 * jnp.cos(c) + y * 1e-4, x) + x * y


class TestBatching:
    @pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 1000])
    def test_any_batch_size_gives_the_same_bits(self, size):
        x, y = _floats(1000), _floats(1000, seed=1)
        whole = simd.batched_call(_iterate, x, y)
        np.testing.assert_array_equal(simd.batched_call(_iterate, x[:size], y[:size]), whole[:size])

    def test_vmap_of_any_depth_is_one_call(self):
        x, y = _floats(240).reshape(4, 5, 12), _floats(12, seed=1)
        nested = jax.vmap(jax.vmap(lambda a, b: simd.batched_call(_iterate, a, b), (0, None)), (0, None))
        np.testing.assert_array_equal(nested(x, y), jax.vmap(jax.vmap(lambda a: simd.batched_call(_iterate, a, y)))(x))
        wanted = simd.batched_call(_iterate, x.reshape(-1), jnp.tile(y, 20)).reshape(4, 5, 12)
        np.testing.assert_array_equal(nested(x, y), wanted)
        assert jax.jit(nested).lower(x, y).as_text().count("stablehlo.custom_call @tamherd_simd") == 1

    def test_neighbours_do_not_matter_not_even_nan(self):
        x, y = np.array(_floats(200)), np.array(_floats(200, seed=1))
        wanted = np.asarray(simd.batched_call(_iterate, x, y))
        order = np.random.default_rng(0).permutation(200)
        np.testing.assert_array_equal(simd.batched_call(_iterate, x[order], y[order]), wanted[order])
        x[7], y[50] = np.nan, np.nan
        found = np.asarray(simd.batched_call(_iterate, x, y))
        assert np.isnan(found[[7, 50]]).all()
        others = np.setdiff1d(np.arange(200), [7, 50])
        np.testing.assert_array_equal(found[others], wanted[others])

    def test_every_width_gives_the_same_bits(self):
        if "+fma" not in simd.host().features and "aarch64" not in os.uname().machine:
            pytest.skip("the processor has no fused multiply-add")
        x, y = _floats(100), _floats(100, seed=1)
        wanted = simd.batched_call(_iterate, x, y)
        for width in (4, 8, 16):
            np.testing.assert_array_equal(simd.batched_call(_iterate, x, y, width=width), wanted)

    def test_in_a_scan_and_in_double_precision_mode(self, float64):
        x = _floats(64)
        step = jax.jit(lambda x: lax.scan(lambda c, _: (simd.batched_call(_iterate, c, x), None), x, None, length=50)[0])
        assert step(x).dtype == jnp.float32
        wanted = x
        for _ in range(50):
            wanted = simd.batched_call(_iterate, wanted, x)
        np.testing.assert_array_equal(step(x), wanted)


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "word"),
        [
            (jnp.log1p, "'log1p'"),
            (lambda x: jnp.sort(jnp.stack([x, -x])), "'sort'"),
            (lambda x: jnp.take(jnp.stack([x, -x]), x.astype(jnp.int32), mode="clip"), "computed index"),
            (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
            (lambda x: x > 0, "not bool"),
            (lambda x: (x * 8).astype(jnp.int32) // 3, "int32"),
            (lambda x: lax.scan(lambda c, a: (c + a, None), x, jnp.arange(100.0))[0], "at most 64 steps"),
        ],
    )
    def test_what_vector_code_cannot_do_is_named(self, function, word):
        with pytest.raises(NotImplementedError, match=word) as refusal:
            simd.batched_call(function, _floats(8))
        assert "\n" not in str(refusal.value)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"common leading batch axis; their sizes are \[3, 4\]"):
            simd.batched_call(jnp.add, jnp.zeros(3), jnp.zeros(4))
        with pytest.raises(ValueError, match="common leading batch axis"):
            simd.batched_call(lambda: jnp.zeros(2))
        huge = jax.ShapeDtypeStruct((2**29, 9), jnp.float32)
        with pytest.raises(ValueError, match="32-bit addresses"):
            jax.eval_shape(lambda x: simd.batched_call(jnp.sum, x), huge)


def _python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


_STEP = """
import jax, jax.numpy as jnp
from tamherd_jax.physics.planar import PlanarPhysics, SolverOptions
from tamherd_jax.physics.base import init_state
step = jax.vmap(PlanarPhysics().step)
start = jax.vmap(init_state)(jnp.zeros((64, 9)), jnp.zeros((64, 9)))
body = jnp.arange(64) % 2
"""


class TestProcesses:
    def test_several_devices_and_pmap_equal_one(self):
        """Four devices on fewer threads, each with several vectors, again and again: no deadlock, the same bits."""
        code = (
            _STEP
            + """
import numpy as np
episode = lambda b, s, u: jax.lax.scan(lambda s, _: (step(b, s, u), None), s, None, length=20)[0]
control = jax.random.uniform(jax.random.key(0), (64, 6), minval=-1.0)
one = jax.jit(episode)(body, start, control)
dealt = jax.tree.map(lambda x: x.reshape(4, 16, *x.shape[1:]), (body, start, control))
for _ in range(5):
    several = jax.pmap(episode)(*dealt)
    for x, y in zip(jax.tree.leaves(several), jax.tree.leaves(one)):
        np.testing.assert_array_equal(np.asarray(x).reshape(y.shape), y)
print(len(jax.devices()))
"""
        )
        assert _python(code, XLA_FLAGS="--xla_force_host_platform_device_count=4").stdout.split() == ["4"]

    def test_a_program_is_found_in_the_cache_by_another_process(self, tmp_path):
        code = (
            _STEP
            + """
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.block_until_ready(jax.jit(step)(body, start, jnp.zeros((64, 6))))
print(sum(event.endswith("/cache_hits") for event in hits) > 0)
"""
        )
        options = {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        _python(code, **options)
        assert "True" in _python(code, **options).stdout

    def test_without_llvmlite_the_xla_form_runs_and_says_so_once(self):
        code = "import sys; sys.modules['llvmlite'] = None\n" + _STEP
        code += "for _ in range(2):\n    traced = jax.jit(lambda s: step(body, s, jnp.zeros((64, 6)))).trace(start)\n"
        code += "print(bool(jnp.isfinite(traced.lower().compile()(start).q).all()))"
        done = _python(code)
        assert done.stdout.split() == ["True"]
        assert done.stderr.count("llvmlite cannot be loaded") == 1

    def test_the_environment_names_the_form(self):
        code = _STEP + "print('tamherd_simd' in jax.jit(step).lower(body, start, jnp.zeros((64, 6))).as_text())"
        assert _python(code).stdout.split() == ["True"]
        assert _python(code, TAMHERD_PLANAR_FORM="xla").stdout.split() == ["False"]
        refused = "try:\n    PlanarPhysics()\nexcept ValueError as error:\n    print(error)"
        code = "from tamherd_jax.physics.planar import PlanarPhysics\n" + refused
        assert "unknown form 'cuda' in TAMHERD_PLANAR_FORM" in _python(code, TAMHERD_PLANAR_FORM="cuda").stdout


def test_the_native_form_by_name_is_refused_where_there_is_none(monkeypatch):
    from tamherd_jax.simd import machine

    def nothing():
        raise simd.SimdUnavailableError("no such thing here")

    monkeypatch.setattr(machine, "host", nothing)
    physics = PlanarPhysics("native", SolverOptions(iterations=7))  # not compiled before
    with pytest.raises(simd.SimdUnavailableError, match="no such thing"):
        physics.step(jnp.int32(0), jax.tree.map(lambda x: x[0], _resting()), jnp.full(6, 0.125))


def _resting():
    from tamherd_jax.physics.base import init_state

    return jax.vmap(init_state)(jnp.zeros((1, 9)), jnp.zeros((1, 9)))
