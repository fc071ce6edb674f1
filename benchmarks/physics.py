"""Environment steps without policy, reward or reset, by backend and batch: random controls, cheetahs and walkers mixed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bodies import BODIES, FRAME_SKIP, NQ, NU, NV
from benchmarks.cases import Call, Case, Mode, Program
from benchmarks.machine import usable_cores
from tamherd_jax.physics import Physics, PhysicsState, get_physics, init_state, load_model
from tamherd_jax.physics.planar import PlanarPhysics


def backend(name: str) -> Physics:
    """A backend, or one of the forms of the planar physics."""
    form = {"planar, native": "native", "planar, XLA": "xla", "planar, Pallas": "pallas"}.get(name)
    return get_physics(name) if form is None else PlanarPhysics(form)


def rollout(name: str, environments: int, length: int) -> Program:
    """`length` environment steps of `environments` bodies."""
    physics, body = backend(name), jnp.arange(environments, dtype=jnp.int32) % len(BODIES)
    noise = jnp.asarray([0.1, 0.005])[body][:, None]
    q = noise * jax.random.uniform(jax.random.key(1), (environments, NQ), minval=-1.0)
    start = jax.vmap(init_state)(q, noise * jax.random.normal(jax.random.key(2), (environments, NV)))

    def run(start: PhysicsState, key: jax.Array) -> PhysicsState:
        def advance(state: PhysicsState, key: jax.Array) -> tuple[PhysicsState, None]:
            control = jnp.clip(jax.random.normal(key, (environments, NU)), -1, 1)
            return jax.vmap(physics.step)(body, state, control), None

        return jax.lax.scan(advance, start, jax.random.split(key, length))[0]

    return Program(run, (start, jax.random.key(0)))


def mujoco_rollout(bodies: tuple[int, ...], environments: int, length: int) -> Call:
    """MuJoCo's own batch of open-loop rollouts, a thread a core: no observation, no reward, states kept.

    Bodies of one frame skip are a rollout of their own, one after another.
    """
    import mujoco
    from mujoco import rollout

    threads = usable_cores()
    pool = rollout.Rollout(nthread=threads)
    jobs = []
    for body in bodies:
        model, count = load_model(BODIES[body]), environments // len(bodies)
        frames = length * FRAME_SKIP[body]
        actions = np.clip(np.random.default_rng(body).normal(size=(count, length, NU)), -1, 1)
        state = np.zeros((count, 1 + model.nq + model.nv))
        out, sensors = np.empty((count, frames, state.shape[1])), np.empty((count, frames, 0))
        data = [mujoco.MjData(model) for _ in range(threads)]
        control = np.repeat(actions, FRAME_SKIP[body], axis=1)
        jobs.append(
            functools.partial(
                pool.rollout,
                [model] * count,
                data,
                state,
                control,
                nstep=frames,
                state=out,
                sensordata=sensors,
                skip_checks=True,
            )
        )

    def run() -> None:
        for job in jobs:
            job()

    return Call(run, close=pool.close)


def cases(mode: Mode) -> list[Case]:
    """Every backend at the batches that it is used with."""
    both = tuple(range(len(BODIES)))
    counts = {
        "planar, native": mode.pick((2,), (200, 2048), (32, 200, 2048, 8192), ()),
        "mujoco.rollout": mode.pick((2,), (200, 2048), (32, 200, 2048, 8192), ()),
        "mujoco": mode.pick((2,), (2048,), (32, 200, 2048), (1024,)),
        "planar, XLA": mode.pick((2,), (200, 2048), (32, 200, 2048, 8192), (256, 2048, 8192, 32768)),
        "planar, Pallas": mode.pick((), (), (), (256, 2048, 8192, 32768)),
        "mjx": mode.pick((), (), (), (2048, 8192)),
    }

    def case(name: str, count: int) -> Case:
        steps = mode.pick(2, 100, 100) if name.startswith(("planar", "mujoco.")) else mode.pick(2, 10, 10)
        job = functools.partial(rollout, name, count, steps)
        if name == "mujoco.rollout":
            job = functools.partial(mujoco_rollout, both, count, steps)
        return Case(f"{name}, {count:,} environments", job, "environment step", count * steps, series=name, size=count)

    return [case(name, count) for name, sizes in counts.items() for count in sizes]
