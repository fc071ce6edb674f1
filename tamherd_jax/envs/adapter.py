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
from tamherd_jax.types import PyTree, TaskEnv


class TaskedEnv(Env):
    """A Brax environment whose task is data: say what a task changes, the rest is the environment's.

    Once `done`, a state stays unchanged, with reward 0. A state that stops being finite ends its episode: the last finite
    state is kept and `metrics["nonfinite"]` is 1; a state that is not finite at reset is over at once. A time limit of the
    environment's own, `info["truncation"]` as Brax's `EpisodeWrapper` has it, ends an episode without terminating it.

    Args:
      env: any `brax.envs.Env` of array observations and continuous actions, not wrapped in automatic resets. Its states need
        `obs`, `reward` and `done`, so that MuJoCo Playground's do as well.
      reward: `(task, before, action, after) -> []`, the reward of a step (direction, target velocity, distance to a goal); the
        environment's own reward by default. `before` and `after` are the environment's states.
      system: `(task, sys) -> sys`, the physical system of a task (masses, gears), for environments with Brax's `sys`.
      start: `(task, state) -> state`, what a task changes in a fresh state, such as where a goal lies.
      default_task: task of a `reset` that names none.
      expected_action_scale: actions are clipped to [-1, 1] after division by it.

    Raises:
      ValueError: the action space is discrete, observations are not one array, `reward` or `done` is not a scalar, or `step`
        returns a tree of another structure than `reset`.
    """

    def __init__(
        self,
        env: Env,
        reward: Callable[[PyTree, State, jax.Array, State], jax.Array] | None = None,
        system: Callable[[PyTree, Any], Any] | None = None,
        start: Callable[[PyTree, State], State] | None = None,
        default_task: PyTree = None,
        expected_action_scale: float = 1.0,
    ):
        _check_actions(env)
        self._env, self._reward, self._system, self._start = env, reward, system, start
        self._default_task, self._scale = default_task, float(expected_action_scale)

    def reset(self, rng: jax.Array, task: PyTree = None) -> State:
        """Return a fresh initial state of a task; `rng` is consumed."""
        task = jax.tree.map(jnp.asarray, self._default_task if task is None else task)
        inner = self._of(task).reset(rng)
        inner = inner if self._start is None else self._start(task, inner)
        self._check_state(inner)
        zero = jnp.zeros((), inner.obs.dtype)
        bad = jnp.where(jnp.all(jnp.isfinite(inner.obs)), zero, 1.0)
        return _outer(inner, task, reward=zero, done=bad, truncation=zero, nonfinite=bad)

    def step(self, state: State, action: jax.Array) -> State:
        """Return the state after one action `[A]`; the same state, with reward 0, where `state.done` is 1 already."""
        task, over = state.info["task"], state.done > 0
        before = _inner(state)
        action = jnp.clip(action / self._scale, -1.0, 1.0)
        after = self._of(task).step(_inner(state), action)  # a copy, as Brax writes into dictionaries
        self._check_state(after)
        self._check_structure(before, after)
        reward = after.reward if self._reward is None else self._reward(task, before, action, after)
        _check_scalar(self._env, "reward", reward)
        finite = jnp.all(jnp.isfinite(after.obs)) & jnp.isfinite(reward) & jnp.all(jnp.isfinite(action))
        keep = over | ~finite
        kept = jax.tree.map(lambda new, old: jnp.where(keep, old, jnp.asarray(new, old.dtype)), after, before)
        dtype = state.reward.dtype
        truncation = jnp.where(keep, state.info["truncation"], _truncation(after, state.done))
        return _outer(
            kept,
            task,
            reward=jnp.where(keep, 0.0, reward).astype(dtype),
            done=jnp.where(keep, 1.0, after.done).astype(dtype),
            truncation=truncation.astype(dtype),
            nonfinite=jnp.where(over | finite, 0.0, 1.0).astype(dtype),
        )

    def _check_state(self, state: PyTree) -> None:
        """Refuse a state without `obs`, `reward` or `done`, or with one of another shape than they must have."""
        name = type(self._env).__name__
        missing = [field for field in ("obs", "reward", "done") if not hasattr(state, field)]
        if missing:
            raise ValueError(f"states of {name} have no {missing[0]}: an environment's state needs obs, reward and done")
        if not hasattr(state.obs, "shape"):
            raise ValueError(f"observations of {name} are no array but a {type(state.obs).__name__}")
        for field in ("reward", "done"):
            _check_scalar(self._env, field, getattr(state, field))

    def _check_structure(self, before: Any, after: Any) -> None:
        """Refuse a step that adds to the state or takes from it: a loop over steps carries one structure."""
        structures: list[Any] = [jax.tree.structure(state) for state in (before, after)]
        if structures[0] == structures[1]:
            return
        name = type(self._env).__name__
        for field in ("info", "metrics"):
            old, new = (set(getattr(state, field, None) or {}) for state in (before, after))
            if old != new:
                verb, keys = ("adds", new - old) if new - old else ("drops", old - new)
                listed = ", ".join(repr(key) for key in sorted(keys, key=str))
                raise ValueError(f"step of {name} {verb} the {field} key {listed}: reset and step must have the same keys")
        raise ValueError(f"step of {name} returns a state of another structure than reset")

    def _of(self, task: PyTree) -> Env:
        """The environment with the system of a task."""
        if self._system is None:
            return self._env
        env = copy.copy(self._env)
        env.sys = self._system(task, self._env.sys)
        return env

    @functools.cached_property
    def observation_size(self) -> int:
        """O, length of an observation, found without running the environment."""
        state: PyTree = jax.eval_shape(self._env.reset, jax.random.key(0))
        self._check_state(state)
        return int(state.obs.shape[-1])

    @property
    def action_size(self) -> int:
        """A, length of an action."""
        return self._env.action_size

    @property
    def backend(self) -> str:
        """Name of the environment and of its physics backend."""
        return f"{type(self._env).__name__.lower()}-{getattr(self._env, 'backend', 'none')}"


def _outer(
    inner: Any, task: PyTree, *, reward: jax.Array, done: jax.Array, truncation: jax.Array, nonfinite: jax.Array
) -> State:
    """The adapter's state around the environment's; Brax's dictionaries move to `info`, another kind of state moves whole."""
    brax = isinstance(inner, State)
    return State(
        pipeline_state=inner.pipeline_state if brax else inner,
        obs=inner.obs,
        reward=reward,
        done=done,
        metrics={"nonfinite": nonfinite},
        info={"task": task, "truncation": truncation, "inner": (inner.metrics, inner.info) if brax else ()},
    )


def _inner(state: State) -> Any:
    """The environment's own state; dictionaries in it are copies."""
    inner = jax.tree.map(lambda leaf: leaf, state.info["inner"])
    if not inner:
        return jax.tree.map(lambda leaf: leaf, state.pipeline_state)
    return state.replace(metrics=inner[0], info=inner[1])


def _truncation(state: PyTree, like: jax.Array) -> jax.Array:
    """`info["truncation"]` of the environment's own state, 0 where it has none."""
    info = getattr(state, "info", None) or {}
    return jnp.asarray(info.get("truncation", 0.0), like.dtype)


def _check_scalar(env: Env, field: str, value: Any) -> None:
    if jnp.shape(value) != ():
        raise ValueError(f"{field} of {type(env).__name__} must be a scalar, not of shape {jnp.shape(value)}")


def _check_actions(env: Env) -> None:
    """Refuse a discrete action space, as Gymnasium's and Gymnax's classes describe it."""
    space: Any = getattr(env, "action_space", None)
    if callable(space) and not hasattr(space, "n"):
        try:
            space = space()
        except TypeError:
            return  # asks for parameters, which are not known here
    if hasattr(space, "n"):
        raise ValueError(f"{type(env).__name__} has a discrete action space; learners need continuous actions [A]")


@struct.dataclass
class MixedTask:
    """A task of one of K environments.

    Attributes:
      mode: `[...]` int32 in 0..K-1, which environment.
      tasks: K tasks, one of each environment; only that of `mode` matters.
    """

    mode: jax.Array | np.ndarray
    tasks: tuple[PyTree, ...]


class MixedEnv(Env):
    """K environments of different observation and action sizes as one: observations are padded with zeros, actions cut.

    A learner sees the largest sizes and is not told which environment it is in. Every batch element steps all K environments
    and keeps one, as a `lax.switch` under `vmap` would, so a step costs as much as one of each; bodies that share their tree
    of links are better written as numbers, as `Locomotion` does. A traced mode out of range makes observations NaN.

    Args:
      envs: of the K modes.

    Raises:
      ValueError: a task's mode is out of range, or it has not one task for each environment.
    """

    def __init__(self, envs: Sequence[TaskEnv]):
        self._envs = tuple(envs)

    def reset(self, rng: jax.Array, task: MixedTask) -> State:
        """Return a fresh initial state of a task; `rng` is consumed."""
        if len(task.tasks) != len(self._envs):
            raise ValueError(f"a mixed task needs {len(self._envs)} tasks, one for each environment, not {len(task.tasks)}")
        if not isinstance(task.mode, jax.core.Tracer) and not 0 <= int(task.mode) < len(self._envs):
            raise ValueError(f"mode must be 0 to {len(self._envs) - 1}, not {int(task.mode)}")
        task = jax.tree.map(jnp.asarray, task)
        states = tuple(env.reset(rng, own) for env, own in zip(self._envs, task.tasks, strict=True))
        return self._chosen(task, states)

    def step(self, state: State, action: jax.Array) -> State:
        """Return the state after one action `[A]` of the largest size."""
        pairs = zip(self._envs, state.pipeline_state, strict=True)
        states = tuple(env.step(own, action[: env.action_size]) for env, own in pairs)
        return self._chosen(state.info["task"], states)

    def _chosen(self, task: MixedTask, states: tuple[Any, ...]) -> State:
        """All states, seen through that of the task's mode."""
        known = (task.mode >= 0) & (task.mode < len(states))

        def pick(values: Sequence[Any], otherwise: float = 0.0) -> jax.Array:
            return jnp.where(known, jnp.stack([jnp.asarray(value) for value in values])[task.mode], otherwise)

        return State(
            pipeline_state=states,
            obs=pick([jnp.pad(s.obs, (0, self.observation_size - s.obs.shape[-1])) for s in states], jnp.nan),
            reward=pick([s.reward for s in states]),
            done=pick([s.done for s in states]),
            metrics={"nonfinite": pick([s.metrics.get("nonfinite", jnp.zeros_like(s.done)) for s in states])},
            info={"task": task, "truncation": pick([_truncation(s, s.done) for s in states])},
        )

    @functools.cached_property
    def observation_size(self) -> int:
        """O, length of the longest observation of all environments."""
        return max(int(env.observation_size) for env in self._envs)

    @functools.cached_property
    def action_size(self) -> int:
        """A, length of the longest action of all environments."""
        return max(int(env.action_size) for env in self._envs)

    @property
    def backend(self) -> str:
        """Names of the environments' backends."""
        return "+".join(str(getattr(env, "backend", type(env).__name__)) for env in self._envs)


def make_task_set(name: str, tasks: Mapping[str, Any], modes: Mapping[str, str] | None = None, version: int = 1) -> TaskSet:
    """Make a task set from named tasks.

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
