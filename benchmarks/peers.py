"""Environment steps of other libraries and this one on the half-cheetah, with random actions and no policy."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bodies import BODIES, CHEETAH, FRAME_SKIP, NU
from benchmarks.cases import Call, Case, Mode, Program, Quoted
from benchmarks.machine import usable_cores
from benchmarks.physics import mujoco_rollout
from benchmarks.quoted import RLLIB
from tamherd_jax.physics import load_model, parity


def scanned(step: Callable[..., Any], start: Any, environments: int, length: int) -> Program:
    """`length` steps of a batch under `lax.scan`, actions drawn inside."""

    def rollout(state: Any, key: jax.Array) -> Any:
        def advance(state: Any, key: jax.Array) -> tuple[Any, None]:
            return step(state, jnp.clip(jax.random.normal(key, (environments, NU)), -1, 1)), None

        return jax.lax.scan(advance, state, jax.random.split(key, length))[0]

    return Program(rollout, (start, jax.random.key(0)))


def ours(physics: str, environments: int, length: int) -> Program:
    """Return this library's environment."""
    from tamherd_jax.envs import body_environment

    environment = body_environment(BODIES[CHEETAH])(physics)
    start = jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.key(0), environments))
    return scanned(jax.vmap(environment.step), start, environments, length)


def brax(backend: str, environments: int, length: int) -> Program:
    """Return Brax's environment as shipped."""
    with contextlib.redirect_stdout(io.StringIO()):
        from brax import envs

        environment = envs.get_environment("halfcheetah", backend=backend)
        start = jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.PRNGKey(0), environments))
    return scanned(jax.vmap(environment.step), start, environments, length)


def mjx(environments: int, length: int) -> Program:
    """MJX with its solver tuned to the accuracy it can reach: 4 iterations, 6 line-search steps."""
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco import mjx

        model = parity.converged(load_model("cheetah"))
        model.opt.iterations, model.opt.ls_iterations = 4, 6
        device_model, data = mjx.put_model(model), mjx.make_data(model)

    def one(data: Any, control: jax.Array) -> Any:
        data = data.replace(ctrl=control)
        return jax.lax.fori_loop(0, FRAME_SKIP[CHEETAH], lambda _, d: mjx.step(device_model, d), data)

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (environments, *jnp.shape(x))), data)
    return scanned(jax.vmap(one), start, environments, length)


def half_cheetah() -> Any:
    """Gymnasium's environment, without MuJoCo's remark on its model file."""
    import gymnasium
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)
    return gymnasium.make("HalfCheetah-v5")


def gymnasium(parallel: bool, environments: int, length: int) -> Call:
    """Gymnasium's HalfCheetah-v5 in a vector: one after the other, or a process each."""
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    makers = [half_cheetah] * environments
    vector: Any = AsyncVectorEnv(makers, context="spawn") if parallel else SyncVectorEnv(makers)
    vector.reset(seed=0)
    actions = np.clip(np.random.default_rng(0).normal(size=(length, environments, NU)), -1, 1).astype(np.float32)

    def run() -> None:
        for action in actions:
            vector.step(action)

    return Call(run, close=vector.close)


def envpool(task: str, parallel: bool, environments: int, length: int) -> Call:
    """EnvPool's own MuJoCo environments, a thread a core; asynchronous, it returns the half of them that is ready first."""
    import envpool as library

    batch = max(environments // 2, 1) if parallel else environments
    pool = library.make(task, "gymnasium", num_envs=environments, batch_size=batch, num_threads=usable_cores(), seed=0)
    calls = length * environments // batch
    actions = np.clip(np.random.default_rng(0).normal(size=(calls, batch, NU)), -1, 1)
    pool.async_reset()

    def run() -> None:
        for action in actions:
            identities = pool.recv()[-1]["env_id"]
            pool.send(action, identities)

    return Call(run, close=pool.close)


def cases(mode: Mode) -> list[Case | Quoted]:
    """Ours first; the batch is the largest that each is used with here."""
    environments, length = mode.pick(2, 1024, 1024, 8192), mode.pick(2, 10, 10, 100)
    few = mode.pick(2, 32, 32, 4096)
    envs, long = mode.pick(2, 8, 16), mode.pick(3, 100, 200)
    found: list[Case | Quoted] = []

    def add(name: str, count: int, steps: int, make: Callable[..., Any], *arguments: Any) -> None:
        job = functools.partial(make, *arguments, count, steps)
        found.append(Case(f"{name}, {count:,} at once", job, "environment step", count * steps))

    for physics in mode.pick((), ("planar", "mujoco"), ("planar", "mujoco"), ("planar",)):
        add(f"tamherd_jax Cheetah, {physics}", environments, length, ours, physics)
    add("mujoco.rollout", environments, length, mujoco_rollout, (CHEETAH,))
    if importlib.util.find_spec("envpool") is not None:
        for task in mode.pick(("HalfCheetah-v4",), *2 * (("HalfCheetah-v4", "Walker2d-v4"),)):
            for parallel in (False, True):
                name = f"EnvPool {task}, {'asynchronous' if parallel else 'synchronous'}"
                add(name, environments, length, envpool, task, parallel)
    if importlib.util.find_spec("gymnasium") is not None:
        add("gymnasium SyncVectorEnv", envs, long, gymnasium, False)
        if mode.name != "smoke":
            add("gymnasium AsyncVectorEnv", 2 * usable_cores(), long, gymnasium, True)
    if mode.name == "full":
        add("MJX, 4 + 6 solver iterations", few, length, mjx)
        for backend in ("mjx", "generalized", "positional", "spring"):
            add(f"Brax {backend}", few, length, brax, backend)
    return [*found, RLLIB]
