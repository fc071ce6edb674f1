"""Tasks as Gymnasium environments: import this module, then `gymnasium.make("tamherd_jax/ML2-walker-backward-v1")`.

`gymnasium.make_vec` of the same names steps a batch of environments in one compiled call. Needs the package gymnasium
(`pip install 'tamherd-jax[gymnasium]'`).
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tamherd_jax.envs.locomotion import make_environment
from tamherd_jax.envs.tasks import TASK_SETS, TaskSet, get_task_set
from tamherd_jax.types import PyTree, TaskEnv

HORIZON = 200
"""Default time limit of a registered environment, steps."""

Step = tuple[np.ndarray, Any, Any, Any, dict[str, Any]]


class TaskEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """One task as a `gymnasium.Env`: observations are unbounded, actions from -1 to 1.

    An episode that its task ends is terminated; time limits are a wrapper's. `reset(seed=...)` makes everything after it
    reproducible.

    Args:
      env: The environment of all tasks.
      task: One task, a tree of arrays.
    """

    def __init__(self, env: TaskEnv, task: PyTree):
        self.metadata = {"render_modes": []}
        self.observation_space, self.action_space = spaces(env)
        self._reset = jax.jit(lambda key: env.reset(key, task))
        self._step = jax.jit(env.step)
        self._state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observation `[O]` of a fresh episode."""
        super().reset(seed=seed, options=options)
        self._state = self._reset(jax.random.key(int(self.np_random.integers(2**32))))
        return np.asarray(self._state.obs), {}

    def step(self, action: np.ndarray) -> Step:
        """Return observation `[O]`, reward, whether the episode was terminated or truncated, and nothing more."""
        self._state = self._step(self._state, jnp.asarray(action, jnp.float32))
        truncated = bool(self._state.info.get("truncation", 0.0) > 0)
        terminated = bool(self._state.done > 0) and not truncated
        return np.asarray(self._state.obs), float(self._state.reward), terminated, truncated, {}


class TaskVectorEnvironment(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of environments of one task as a `gymnasium.vector.VectorEnv`, each step one compiled call.

    An environment whose episode ended, by its task or after `horizon` steps, is reset by the next step, whose action it ignores
    (`AutoresetMode.NEXT_STEP`).

    Args:
      env: The environment of all tasks.
      task: One task, a tree of arrays.
      num_envs: B, environments.
      horizon: Time limit of an episode, steps.
    """

    def __init__(self, env: TaskEnv, task: PyTree, num_envs: int = 1, horizon: int = HORIZON):
        self.num_envs, self.horizon = num_envs, horizon
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.single_observation_space, self.single_action_space = spaces(env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._reset = jax.jit(jax.vmap(lambda key: env.reset(key, task)))
        self._step = jax.jit(functools.partial(_step_or_reset, env, task))
        self._state: Any = None
        self._age = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observations `[B, O]` of fresh episodes."""
        super().reset(seed=seed, options=options)
        self._state = self._reset(self._keys())
        self._age, self._over = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, bool)
        return np.asarray(self._state.obs), {}

    def step(self, actions: np.ndarray) -> Step:
        """Return observations `[B, O]`, rewards, terminated and truncated `[B]`, and nothing more."""
        self._state = self._step(self._state, jnp.asarray(actions, jnp.float32), self._keys(), self._over)
        self._age = np.where(self._over, 0, self._age + 1)
        done = np.asarray(self._state.done) > 0
        limit = np.asarray(self._state.info.get("truncation", np.zeros(self.num_envs))) > 0
        terminated = done & ~limit
        truncated = (limit | (self._age >= self.horizon)) & ~terminated
        self._over = terminated | truncated
        return np.asarray(self._state.obs), np.asarray(self._state.reward, np.float64), terminated, truncated, {}

    def _keys(self) -> jax.Array:
        return jax.random.split(jax.random.key(int(self.np_random.integers(2**32))), self.num_envs)


def _step_or_reset(env: TaskEnv, task: PyTree, state: Any, actions: jax.Array, keys: jax.Array, over: jax.Array) -> Any:
    """Return the states after a step, fresh ones where an episode is over."""
    fresh, after = jax.vmap(lambda key: env.reset(key, task))(keys), jax.vmap(env.step)(state, actions)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(pick, fresh, after)


def spaces(env: TaskEnv) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Return the spaces of observations and actions of an environment."""
    observations = gymnasium.spaces.Box(-np.inf, np.inf, (env.observation_size,), np.float32)
    return observations, gymnasium.spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)


def environment_id(task_set: TaskSet, task: str) -> str:
    """Return the name by which Gymnasium makes a task, such as `tamherd_jax/ML2-walker-backward-v1`."""
    return f"tamherd_jax/{task_set.name}-{task}-v{task_set.version}"


def make_task(tasks: str, task: str, physics: str = "auto") -> TaskEnvironment:
    """Return one task of a named task set as a `gymnasium.Env`; the time limit is the registered one's."""
    return TaskEnvironment(*_env_and_task(tasks, task, physics))


def make_task_vector(
    tasks: str, task: str, physics: str = "auto", num_envs: int = 1, max_episode_steps: int = HORIZON
) -> TaskVectorEnvironment:
    """Return a batch of one task of a named task set as a `VectorEnv`."""
    return TaskVectorEnvironment(*_env_and_task(tasks, task, physics), num_envs, max_episode_steps)


def _env_and_task(tasks: str, task: str, physics: str) -> tuple[TaskEnv, PyTree]:
    task_set = get_task_set(tasks)
    index = task_set.index(task)
    return make_environment(task_set, physics), jax.tree.map(lambda leaf: leaf[index], task_set.tasks)


def register_tasks() -> None:
    """Make every task of every task set known to Gymnasium; importing this module does."""
    for name in TASK_SETS:
        task_set = get_task_set(name)
        for task in task_set.task_names:
            gymnasium.register(
                environment_id(task_set, task),
                entry_point=f"{__name__}:make_task",
                vector_entry_point=f"{__name__}:make_task_vector",
                max_episode_steps=HORIZON,
                kwargs={"tasks": name, "task": task},
            )


register_tasks()
