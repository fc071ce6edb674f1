"""The smallest meta-learner whose policy has memory, and a task that needs one: a cue shown once, asked for ever after."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tamherd_jax.distributions import gaussian_log_prob, sample_gaussian
from tamherd_jax.envs import TaskSet
from tamherd_jax.envs._brax import Env, State
from tamherd_jax.envs.episodes import collect_recurrent_episode
from tamherd_jax.envs.tasks import mean_by_task, systematic_resample, take_tasks
from tamherd_jax.types import EpochMetrics

LOG_STD = jnp.log(0.3) * jnp.ones(1)


class Recall(Env):
    """The first observation is a cue of +1 or -1, later ones are 0; the reward of a step is `-(a - sign cue)^2`.

    The task is the sign. A policy without memory cannot do better than `a = 0`, which is -1 a step after the first.
    """

    observation_size = 1
    action_size = 1
    backend = "none"

    def reset(self, rng, task):
        cue, zero = jax.random.rademacher(rng, (1,), jnp.float32), jnp.zeros(())
        return State(pipeline_state=cue, obs=cue, reward=zero, done=zero, metrics={}, info={"task": task})

    def step(self, state, action):
        error = action[0] - state.info["task"] * state.pipeline_state[0]
        return state.replace(obs=jnp.zeros(1), reward=-(error**2))


def recall_tasks():
    """Repeat the cue, and repeat its opposite: two modes."""
    signs = np.array([1.0, -1.0], np.float32)
    return TaskSet("Recall", 1, ("repeat", "oppose"), signs, ("repeat", "oppose"), np.array([0, 1], np.int32))


@struct.dataclass
class Weights:
    """Memory `h' = keep h + write obs`, action mean `read h'`."""

    keep: jax.Array
    write: jax.Array
    read: jax.Array


@dataclasses.dataclass(frozen=True)
class RecurrentLearner:
    """REINFORCE on a policy with one unit of memory, which starts each episode at zero; adapts by nothing.

    Episodes carry the memory that each action was taken in beside the observation, as `MetaLearner` asks, so that
    `distribution` evaluates any step by itself.
    """

    env: Env
    horizon: int = 6
    episodes: int = 64
    step_size: float = 0.02

    @property
    def steps_per_epoch(self):
        return 2 * self.episodes * self.horizon

    def init(self, key):
        del key
        return Weights(jnp.asarray(0.5), jnp.asarray(0.5), jnp.asarray(0.1))

    def initial_carry(self, policy):
        del policy
        return jnp.zeros(1)

    def act(self, policy, carry, obs, key):
        carry = policy.keep * carry + policy.write * obs
        return sample_gaussian(key, policy.read * carry, LOG_STD), carry

    def distribution(self, policy, obs):
        seen, memory = obs[..., :1], obs[..., 1:]
        mean = policy.read * (policy.keep * memory + policy.write * seen)
        return mean, jnp.broadcast_to(LOG_STD, mean.shape)

    def probe(self, key, state, task, episodes):
        return state, self._collect(key, state, task, episodes)

    def adapt(self, key, state, task, episodes):
        return state, self._collect(key, state, task, episodes)

    def _collect(self, key, policy, task, episodes):
        def act(carry, obs, k):
            return self.act(policy, carry, obs, k)

        def episode(k):
            steps, memory = collect_recurrent_episode(self.env, act, self.initial_carry(policy), task, k, self.horizon)
            return dataclasses.replace(steps, obs=jnp.concatenate([steps.obs, memory], axis=-1))

        return jax.vmap(episode)(jax.random.split(key, episodes))

    def train_epoch(self, key, state, tasks, weights):
        draw_key, collect_key = jax.random.split(key)
        index = systematic_resample(draw_key, weights, 2)
        episodes = jax.vmap(lambda k, task: self._collect(k, state, task, self.episodes))(
            jax.random.split(collect_key, 2), take_tasks(tasks, index)
        )
        togo = jnp.cumsum(episodes.rewards[..., ::-1], axis=-1)[..., ::-1]
        advantage = togo - togo.mean(axis=1, keepdims=True)

        def loss(policy):
            """Through time: the memory is computed again from the observations."""

            def replayed(obs, actions, advantage):
                def step(carry, x):
                    seen, action, weight = x
                    carry = policy.keep * carry + policy.write * seen
                    return carry, gaussian_log_prob(action, policy.read * carry, LOG_STD) * weight

                return jax.lax.scan(step, self.initial_carry(policy), (obs[:, :1], actions, advantage))[1].mean()

            return -jax.vmap(jax.vmap(replayed))(episodes.obs, episodes.actions, advantage).mean()

        gradient = jax.grad(loss)(state)
        state = jax.tree.map(lambda p, g: p - self.step_size * jnp.clip(g, -3.0, 3.0), state, gradient)
        returns = mean_by_task(index, episodes.returns.mean(axis=1), weights.size)
        steps = jnp.asarray(float(self.steps_per_epoch))
        return state, EpochMetrics(returns, returns, steps, jnp.zeros(()), {})
