"""A two-mode point mass whose answer is known: what is right in one mode is wrong in the other."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tamherd_jax.envs import TaskSet
from tamherd_jax.envs._brax import Env, State


@struct.dataclass
class PointTask:
    mode: jax.Array
    gain: jax.Array


class PointMass(Env):
    """`v = sign clip(a, -1, 1)`, reward `gain v + bonus`; mode 0: sign +1, bonus 0; mode 1: sign -1, bonus 8.

    The observation is the speed, which does not tell the mode. The best return of T steps is `T (gain + bonus)`.
    """

    def reset(self, rng, task):
        position = 0.1 * jax.random.normal(rng, (1,))
        zero = jnp.zeros(())
        return State(pipeline_state=position, obs=jnp.zeros(1), reward=zero, done=zero, metrics={}, info={"task": task})

    def step(self, state, action):
        task = state.info["task"]
        velocity = jnp.where(task.mode == 0, 1.0, -1.0) * jnp.clip(action, -1.0, 1.0)
        position = state.pipeline_state + 0.1 * velocity
        reward = task.gain * velocity[0] + 8.0 * task.mode
        return state.replace(pipeline_state=position, obs=jnp.abs(velocity), reward=reward)

    observation_size = 1
    action_size = 1
    backend = "none"


def point_tasks():
    modes = np.array([0, 0, 1, 1], np.int32)
    return TaskSet(
        name="Point",
        version=1,
        task_names=("a-slow", "a-fast", "b-slow", "b-fast"),
        tasks=PointTask(mode=modes, gain=np.array([0.5, 1.0, 0.5, 1.0], np.float32)),
        mode_names=("a", "b"),
        modes=modes,
    )
