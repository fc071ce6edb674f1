"""A point on the plane that must find a goal it does not see: the smallest task set that needs a belief."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tamherd_jax.envs import TaskSet

SPEED = 0.15
PAY = 10.0


@struct.dataclass
class GoalState:
    """As much of Brax's `State` as the collectors use."""

    position: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, jax.Array]
    info: dict[str, Any]


class GoalMass:
    """`x' = x + 0.15 clip(a, -1, 1)`, reward `10 (|x - goal| - |x' - goal|)`, observation x; the task is the goal `[2]`.

    Reaching a goal at distance 1 returns 10; the return is bounded by that.

    Args:
      fence: distance from the origin beyond which an episode terminates.
      poison: coordinate x[0] beyond which the state turns to NaN.
    """

    backend = "none"
    observation_size = 2
    action_size = 2

    def __init__(self, fence: float = jnp.inf, poison: float = jnp.inf):
        self._fence, self._poison = fence, poison

    def reset(self, rng: jax.Array, task: jax.Array) -> GoalState:
        position = 0.05 * jax.random.normal(rng, (2,))
        zero = jnp.zeros(())
        return GoalState(position, position, zero, zero, {"nonfinite": zero}, {"task": task})

    def step(self, state: GoalState, action: jax.Array) -> GoalState:
        moved = state.position + SPEED * jnp.clip(action, -1.0, 1.0)
        moved = jnp.where(moved[0] > self._poison, jnp.nan, moved)
        over = state.done > 0
        position = jnp.where(over, state.position, moved)
        goal = state.info["task"]
        progress = jnp.linalg.norm(state.position - goal) - jnp.linalg.norm(position - goal)
        reward = jnp.where(over, 0.0, PAY * progress)
        done = jnp.where(over | (jnp.linalg.norm(position) > self._fence), 1.0, 0.0)
        return state.replace(position=position, obs=position, reward=reward, done=done)


def half_circle(goals: int) -> jax.Array:
    """`[goals, 2]` goals on the upper half of the unit circle."""
    angle = jnp.linspace(0.0, jnp.pi, goals)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def goal_tasks() -> TaskSet:
    """Four goals around the origin; the modes are the upper and the lower two."""
    goals = np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]], np.float32) / np.sqrt(np.float32(2))
    names = ("up-right", "up-left", "down-right", "down-left")
    return TaskSet("Goals", 1, names, goals, ("up", "down"), np.array([0, 0, 1, 1], np.int32))
