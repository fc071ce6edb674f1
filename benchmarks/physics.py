"""Physics steps by backend and batch: random controls drawn inside the loop, cheetahs and walkers mixed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Mode, Program
from tamherd_jax.physics import FRAME_SKIP, Physics, PhysicsState, get_physics, init_state
from tamherd_jax.physics.bodies import BODIES, NQ, NU, NV
from tamherd_jax.physics.planar import PlanarPhysics

SUBSTEPS = sum(FRAME_SKIP) / len(FRAME_SKIP)


def backend(name: str) -> Physics:
    """A backend, or one of the planar physics' two forms."""
    form = {"planar, XLA": "xla", "planar, Pallas": "pallas"}.get(name)
    return get_physics(name) if form is None else PlanarPhysics(form)


def rollout(name: str, lanes: int, length: int) -> Program:
    """`length` environment steps of `lanes` bodies."""
    physics, body = backend(name), jnp.arange(lanes, dtype=jnp.int32) % len(BODIES)
    noise = jnp.asarray([0.1, 0.005])[body][:, None]
    q = noise * jax.random.uniform(jax.random.key(1), (lanes, NQ), minval=-1.0)
    start = jax.vmap(init_state)(q, noise * jax.random.normal(jax.random.key(2), (lanes, NV)))

    def run(start: PhysicsState, key: jax.Array) -> PhysicsState:
        def advance(state: PhysicsState, key: jax.Array) -> tuple[PhysicsState, None]:
            control = jnp.clip(jax.random.normal(key, (lanes, NU)), -1, 1)
            return jax.vmap(physics.step)(body, state, control), None

        return jax.lax.scan(advance, start, jax.random.split(key, length))[0]

    return Program(run, (start, jax.random.key(0)))


def cases(mode: Mode) -> list[Case]:
    """Every backend at the batches that it is used with."""
    lanes = {
        "mujoco": mode.pick((2,), (256, 2048), (32, 256, 2048), (1024,)),
        "planar, XLA": mode.pick((2,), (2048,), (256, 2048, 8192), (256, 2048, 8192, 32768)),
        "planar, Pallas": mode.pick((), (), (), (256, 2048, 8192, 32768)),
        "mjx": mode.pick((), (), (), (2048, 8192)),
    }
    length = mode.pick(2, 10, 10, 100)

    def case(name: str, count: int) -> Case:
        steps = min(length, 10) if name in ("mujoco", "mjx") else length
        job = functools.partial(rollout, name, count, steps)
        return Case(f"{name}, {count:,} lanes", job, "physics step", count * steps * SUBSTEPS, series=name, size=count)

    return [case(name, count) for name, sizes in lanes.items() for count in sizes]
