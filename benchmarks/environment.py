"""Environment steps with the 64-64 Gaussian policy acting: resets, observations, rewards and terminations included."""

from __future__ import annotations

import functools
from typing import Any

import jax

from benchmarks.cases import Case, Mode, Program
from tamherd_jax.envs import Locomotion, collect_episodes, ml2
from tamherd_jax.maml import MAML


def episodes(physics: str, per_task: int, length: int) -> Program:
    """`per_task` episodes of each of ML2's four tasks under an untrained policy."""
    env = Locomotion(physics, 10.0)
    learner, tasks = MAML(env, 4), ml2().tasks
    state = jax.jit(learner.init)(jax.random.key(0))

    def collect(key: jax.Array, params: Any) -> Any:
        def of_task(key: jax.Array, task: Any) -> Any:
            return collect_episodes(env, lambda obs, k: learner.act(params, (), obs, k)[0], task, key, per_task, length)

        return jax.vmap(of_task)(jax.random.split(key, 4), tasks)

    return Program(collect, (jax.random.key(1), state.params))


def cases(mode: Mode) -> list[Case]:
    """Return a case for each backend and number of simultaneous episodes."""
    per_task = {
        "planar": mode.pick((1,), (50,), (8, 50, 512, 2048), (64, 512, 4096, 16384)),
        "mujoco": mode.pick((1,), (50,), (8, 50, 512), (256,)),
    }
    length = mode.pick(3, 20, 50, 100)

    def case(name: str, count: int) -> Case:
        job = functools.partial(episodes, name, count, length)
        label = f"{name}, {4 * count:,} episodes at once"
        return Case(label, job, "environment step", lambda out: float(out.valid.sum()), series=name, size=4 * count)

    return [case(name, count) for name, counts in per_task.items() for count in counts]
