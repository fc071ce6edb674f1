"""Any Brax environment as a family of tasks, and families of different bodies in one program."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tamherd_jax.envs._brax import Env, State
from tamherd_jax.envs.tasks import TaskSet
from tamherd_jax.types import TaskEnv


class TaskedEnv(Env):
    """A Brax environment whose task is data: say what a task changes, the rest is the environment's.

    Once `done`, a state stays as it is and pays nothing. A state that stops being finite ends its episode: the last sound
    state is kept and `metrics["nonfinite"]` is 1.

    Args:
      env: any `brax.envs.Env` of array observations, not wrapped in automatic resets.
      reward: `(task, before, action, after) -> []`, what a step pays (direction, target velocity, distance to a goal); the
        environment's own reward by default. `before` and `after` are the environment's states.
      system: `(task, sys) -> sys`, the physical system of a task (masses, gears), for environments with Brax's `sys`.
      start: `(task, state) -> state`, what a task changes in a fresh state, such as where a goal lies.
      default_task: what `reset` runs when not told.
      expected_action_scale: actions are clipped to [-1, 1] after division by it.

    Raises:
      ValueError: the environment's observations are not one array.
    """

    def __init__(
        self,
        env: Env,
        reward: Callable[[Any, State, jax.Array, State], jax.Array] | None = None,
        system: Callable[[Any, Any], Any] | None = None,
        start: Callable[[Any, State], State] | None = None,
        default_task: Any = None,
        expected_action_scale: float = 1.0,
    ):
        self._env, self._reward, self._system, self._start = env, reward, system, start
        self._default_task, self._scale = default_task, float(expected_action_scale)

    def reset(self, rng: jax.Array, task: Any = None) -> State:
        """Fresh initial state of a task; `rng` is consumed."""
        task = jax.tree.map(jnp.asarray, self._default_task if task is None else task)
        state = self._of(task).reset(rng)
        state = state if self._start is None else self._start(task, state)
        zero = jnp.zeros((), state.obs.dtype)
        metrics, info = {"nonfinite": zero}, {"task": task, "inner": (state.metrics, state.info)}
        return state.replace(reward=zero, done=zero, metrics=metrics, info=info)

    def step(self, state: State, action: jax.Array) -> State:
        """State after one action `[A]`; the same state, unpaid, where `state.done` is 1 already."""
        task, over = state.info["task"], state.done > 0
        before = self._inner(state)
        action = jnp.clip(action / self._scale, -1.0, 1.0)
        after = self._of(task).step(self._inner(state), action)
        reward = after.reward if self._reward is None else self._reward(task, before, action, after)
        sound = jnp.all(jnp.isfinite(after.obs)) & jnp.isfinite(reward) & jnp.all(jnp.isfinite(action))
        keep = over | ~sound
        moved = after.pipeline_state, after.obs, (after.metrics, after.info)
        stayed = before.pipeline_state, before.obs, (before.metrics, before.info)
        pipeline, obs, inner = jax.tree.map(lambda new, old: jnp.where(keep, old, jnp.asarray(new, old.dtype)), moved, stayed)
        dtype = state.reward.dtype
        return state.replace(
            pipeline_state=pipeline,
            obs=obs,
            reward=jnp.where(keep, 0.0, reward).astype(dtype),
            done=jnp.where(keep, 1.0, after.done).astype(dtype),
            metrics={"nonfinite": jnp.where(over | sound, 0.0, 1.0).astype(dtype)},
            info={"task": task, "inner": inner},
        )

    def _inner(self, state: State) -> State:
        """The environment's own state; its dictionaries are copies, as Brax writes into them."""
        metrics, info = jax.tree.map(lambda leaf: leaf, state.info["inner"])
        return state.replace(metrics=metrics, info=info)

    def _of(self, task: Any) -> Env:
        """The environment with the system of a task."""
        if self._system is None:
            return self._env
        env = copy.copy(self._env)
        env.sys = self._system(task, self._env.sys)
        return env

    @functools.cached_property
    def observation_size(self) -> int:
        """O, found without running the environment."""
        obs: Any = jax.eval_shape(self._env.reset, jax.random.key(0)).obs
        if not hasattr(obs, "shape"):
            raise ValueError(f"observations of {type(self._env).__name__} are no array but a {type(obs).__name__}")
        return int(obs.shape[-1])

    @property
    def action_size(self) -> int:
        """A."""
        return self._env.action_size

    @property
    def backend(self) -> str:
        """Name of the environment and of its physics backend."""
        return f"{type(self._env).__name__.lower()}-{self._env.backend}"


@struct.dataclass
class MixedTask:
    """A task of one of K environments.

    Attributes:
      mode: `[...]` int32, which environment.
      tasks: K tasks, one of each environment; only that of `mode` matters.
    """

    mode: Any
    tasks: tuple[Any, ...]


class MixedEnv(Env):
    """K environments of different observation and action sizes as one: observations are padded with zeros, actions cut.

    A learner sees the largest sizes and is not told which environment it is in. Every lane steps all K environments and
    keeps one, as a `lax.switch` under `vmap` would, so a step costs as much as one of each; bodies that share their tree of
    links are better written as numbers, as `Locomotion` does.

    Args:
      envs: of the K modes.
    """

    def __init__(self, envs: Sequence[TaskEnv]):
        self._envs = tuple(envs)

    def reset(self, rng: jax.Array, task: MixedTask) -> State:
        """Fresh initial state of a task; `rng` is consumed."""
        task = jax.tree.map(jnp.asarray, task)
        states = tuple(env.reset(rng, own) for env, own in zip(self._envs, task.tasks, strict=True))
        return self._chosen(task, states)

    def step(self, state: State, action: jax.Array) -> State:
        """State after one action `[A]` of the largest size."""
        pairs = zip(self._envs, state.pipeline_state, strict=True)
        states = tuple(env.step(own, action[: env.action_size]) for env, own in pairs)
        return self._chosen(state.info["task"], states)

    def _chosen(self, task: MixedTask, states: tuple[Any, ...]) -> State:
        """All states, seen through that of the task's mode."""

        def pick(values: Sequence[Any]) -> jax.Array:
            return jnp.stack([jnp.asarray(value) for value in values])[task.mode]

        return State(
            pipeline_state=states,
            obs=pick([jnp.pad(s.obs, (0, self.observation_size - s.obs.shape[-1])) for s in states]),
            reward=pick([s.reward for s in states]),
            done=pick([s.done for s in states]),
            metrics={"nonfinite": pick([s.metrics.get("nonfinite", jnp.zeros_like(s.done)) for s in states])},
            info={"task": task},
        )

    @functools.cached_property
    def observation_size(self) -> int:
        """The largest O."""
        return max(int(env.observation_size) for env in self._envs)

    @functools.cached_property
    def action_size(self) -> int:
        """The largest A."""
        return max(int(env.action_size) for env in self._envs)

    @property
    def backend(self) -> str:
        """Names of the environments' backends."""
        return "+".join(str(getattr(env, "backend", type(env).__name__)) for env in self._envs)


def make_task_set(name: str, tasks: Mapping[str, Any], modes: Mapping[str, str] | None = None, version: int = 1) -> TaskSet:
    """A task set from named tasks.

    Args:
      name, version: identify the set.
      tasks: name to task, all trees of the same structure and shapes.
      modes: name of a task to its true mode, which only the oracle and the diagnostics know; one mode for all by default.

    Raises:
      ValueError: there are no tasks, their structures or shapes differ, or a task has no mode.
    """
    if not tasks:
        raise ValueError("a task set needs at least one task")
    of_task = dict.fromkeys(tasks, name) if modes is None else modes
    missing = [task for task in tasks if task not in of_task]
    if missing:
        raise ValueError(f"modes does not name the mode of task {missing[0]!r}")
    mode_names = tuple(dict.fromkeys(of_task[task] for task in tasks))
    try:
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *tasks.values())
    except ValueError as error:
        raise ValueError(f"the tasks of {name} must be trees of the same structure and shapes: {error}") from error
    return TaskSet(
        name=name,
        version=version,
        task_names=tuple(tasks),
        tasks=stacked,
        mode_names=mode_names,
        modes=np.array([mode_names.index(of_task[task]) for task in tasks]),
    )
