"""Collecting episodes: the only loop over time steps in the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct


class TaskEnv(Protocol):
    """What a learner needs of an environment: Brax's interface with the task as data in `reset`.

    `step` must leave a state whose `done` is 1 as it is and pay it nothing; `metrics["nonfinite"]`, where present, flags a
    step after which the state was no longer finite.
    """

    def reset(self, rng: jax.Array, task: Any) -> Any:
        """Fresh `brax.envs.State` of a task."""
        ...

    def step(self, state: Any, action: jax.Array) -> Any:
        """State after one action `[A]`."""
        ...

    @property
    def observation_size(self) -> Any:
        """O."""
        ...

    @property
    def action_size(self) -> int:
        """A."""
        ...


@struct.dataclass
class Episodes:
    """What happened in episodes of T steps; leading axes as the caller vmapped them.

    Attributes:
      obs: `[..., T, O]` observation the action was taken on.
      actions: `[..., T, A]` the policy's own action, before the environment's scaling and clipping.
      rewards: `[..., T]`, 0 where not valid.
      next_obs: `[..., T, O]` observation after the action.
      terminated: `[..., T]` 1 on the step that ended the episode (a fall, a diverged state); a time limit is no termination.
      valid: `[..., T]` 1 while the episode had not terminated before this step, and the step stayed finite.
      nonfinite: `[...]` 1 if the episode was ended because its state stopped being finite.
    """

    obs: jax.Array
    actions: jax.Array
    rewards: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    valid: jax.Array
    nonfinite: jax.Array

    @property
    def returns(self) -> jax.Array:
        """`[...]` undiscounted return of each episode."""
        return jnp.sum(self.rewards, axis=-1)

    @property
    def steps(self) -> jax.Array:
        """`[...]` environment steps really taken in each episode."""
        return jnp.sum(self.valid, axis=-1)


def collect_episode(
    env: TaskEnv, act: Callable[[jax.Array, jax.Array], jax.Array], task: Any, key: jax.Array, length: int
) -> Episodes:
    """One episode of a task from a fresh reset; `vmap` over keys, tasks and policies for more.

    Args:
      env: the environment.
      act: `(obs [O], key) -> action [A]`.
      task: one task, as the environment's `reset` takes it.
      key: consumed.
      length: T, static. A terminated episode is padded with steps that are not valid.

    Returns:
      `Episodes` with leaves `[T, ...]`.
    """
    reset_key, action_key = jax.random.split(key)

    def step(state, step_key):
        action = act(state.obs, step_key)
        after = env.step(state, action)
        diverged = after.metrics.get("nonfinite", jnp.zeros_like(after.done))
        valid = (1.0 - state.done) * (1.0 - diverged)
        terminated = (1.0 - state.done) * after.done
        reward = jnp.where(valid > 0, after.reward, 0.0)
        action = jnp.where(valid > 0, action, 0.0)  # a non-finite action must not reach a gradient through 0 * nan
        return after, (state.obs, action, reward, after.obs, terminated, valid, diverged)

    state = env.reset(reset_key, task)
    _, record = jax.lax.scan(step, state, jax.random.split(action_key, length))
    obs, actions, rewards, next_obs, terminated, valid, diverged = record
    return Episodes(obs, actions, rewards, next_obs, terminated, valid, nonfinite=jnp.max(diverged))


def collect_episodes(
    env: TaskEnv, act: Callable[[jax.Array, jax.Array], jax.Array], task: Any, key: jax.Array, episodes: int, length: int
) -> Episodes:
    """`episodes` independent episodes of one task: leaves `[R, T, ...]`. Arguments as in `collect_episode`."""
    return jax.vmap(lambda k: collect_episode(env, act, task, k, length))(jax.random.split(key, episodes))
