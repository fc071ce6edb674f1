"""Every program that an accelerator runs lowers for NVIDIA GPUs and TPUs, on a machine without either and without plug-ins."""

import sys

import jax
import pytest
from jax.experimental import pallas
from jax.sharding import PartitionSpec

from benchmarks.programs import SMALL, epoch, physics_step, programs
from benchmarks.targets import asks_which_gpu, lowering_for
from tamherd_jax.physics.planar import body_table, kernel

TRITON = "__gpu$xla.gpu.triton"
PROGRAMS = programs(SMALL)
WITHOUT_PHYSICS = ("Gram", "XLA form")


def lower(platform, program):
    with lowering_for(platform):
        return jax.jit(program.fn).trace(*program.args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers(platform, name):
    text = lower(platform, PROGRAMS[name]())
    has_kernel = platform == "cuda" and not any(part in name for part in WITHOUT_PHYSICS)
    assert (TRITON in text) == has_kernel


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("algorithm", ["maml", "pearl"])
@pytest.mark.parametrize("route", ["pmap", "shard_map"])
def test_lowers_mapped_over_devices(route, algorithm, platform):
    """As `map_learners` deals learners to devices."""
    program = epoch(algorithm, 1, SMALL)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), program.args)
    if route == "pmap" and platform == "cuda" and asks_which_gpu():
        pytest.skip("pmap takes real devices only: `shard_map` stands for it")
    with lowering_for(platform) as mesh:
        text = jax.jit(mapped(program.fn, route, mesh)).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert (TRITON in text) == (platform == "cuda")


def mapped(fn, route, mesh):
    if route == "pmap":
        per_device = jax.pmap(fn, devices=jax.devices()[:1])
        return lambda *args: per_device(*args)

    def local(*args):
        return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))

    return jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"), check_vma=False)


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_the_kernel_loads_and_stores_once(integrator, literal):
    """Triton's compilation walks the whole kernel for every load and store."""
    program = physics_step(100, integrator, "pallas-interpret", literal)
    loads, stores = memory_operations(jax.make_jaxpr(program.fn)(*program.args).jaxpr)
    constants = sum(leaf.shape[1] if leaf.ndim == 3 else 1 for leaf in jax.tree.leaves(body_table()))
    tiles = 0 if literal else 2 * -(-constants // kernel.TILE)  # before the physics steps, and in each
    assert stores == 1
    assert loads <= 1 + tiles


def memory_operations(jaxpr):
    """Numbers of reads and writes of references in a jaxpr and all within."""
    loads = stores = 0
    for equation in jaxpr.eqns:
        loads += equation.primitive.name == "get"
        stores += equation.primitive.name == "swap"
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                more = memory_operations(inner)
                loads, stores = loads + more[0], stores + more[1]
    return loads, stores


class TestFallback:
    def test_a_cpu_never_traces_the_kernel(self, monkeypatch):
        monkeypatch.setattr(kernel, "pallas_step", None)
        program = physics_step(4)
        jax.jit(program.fn).trace(*program.args).lower()

    def test_without_triton_the_xla_form_and_one_warning(self, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
        monkeypatch.delattr(pallas, "triton", raising=False)
        program = physics_step(5)
        for _ in range(2):
            assert TRITON not in lower("cuda", program)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "slower XLA form on cuda" in caplog.text
