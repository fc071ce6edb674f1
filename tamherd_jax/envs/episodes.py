"""Collecting episodes, one by one or one after another: the only loops over time steps in the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tamherd_jax.types import Episodes, MetaLearner, PyTree, TaskEnv


def collect_episode(
    env: TaskEnv, act: Callable[[jax.Array, jax.Array], jax.Array], task: PyTree, key: jax.Array, length: int
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
    return collect_recurrent_episode(env, lambda carry, obs, k: (act(obs, k), carry), (), task, key, length)[0]


def collect_recurrent_episode(
    env: TaskEnv,
    act: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]],
    carry: PyTree,
    task: PyTree,
    key: jax.Array,
    length: int,
) -> tuple[Episodes, PyTree]:
    """Collect one episode of a policy with hidden state; other arguments as in `collect_episode`.

    Args:
      act: `(carry, obs [O], key) -> (action [A], carry)`.
      carry: the policy's hidden state at the start.

    Returns:
      `Episodes` with leaves `[T, ...]`, and the hidden states that the actions were taken in, leaves `[T, ...]`.
    """
    reset_key, action_key = jax.random.split(key)

    def step(scanned: tuple[PyTree, PyTree], step_key: jax.Array) -> tuple[tuple[PyTree, PyTree], PyTree]:
        state, carry = scanned
        action, next_carry = act(carry, state.obs, step_key)
        after = env.step(state, action)
        # A policy that ignores observations acts on a non-finite one as well, which the step need not show.
        finite = _is_finite(after, action) & jnp.all(jnp.isfinite(state.obs))
        diverged = jnp.where(finite, 0.0, 1.0).astype(after.done.dtype)
        valid = (1.0 - state.done) * (1.0 - diverged)
        terminated = (1.0 - state.done) * after.done * (1.0 - _truncated(after))
        reward = jnp.where(valid > 0, after.reward, 0.0)
        # Non-finite numbers in padding would reach gradients through 0 * nan.
        action = jnp.where(valid > 0, action, 0.0)
        obs, next_obs = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (state.obs, after.obs))
        return (after, next_carry), ((obs, action, reward, next_obs, terminated, valid, diverged), carry)

    start = env.reset(reset_key, task), carry
    _, (record, carries) = jax.lax.scan(step, start, jax.random.split(action_key, length))
    obs, actions, rewards, next_obs, terminated, valid, diverged = record
    return Episodes(obs, actions, rewards, next_obs, terminated, valid, nonfinite=jnp.max(diverged)), carries


def collect_episodes(
    env: TaskEnv, act: Callable[[jax.Array, jax.Array], jax.Array], task: PyTree, key: jax.Array, episodes: int, length: int
) -> Episodes:
    """`episodes` independent episodes of one task: leaves `[R, T, ...]`. Arguments as in `collect_episode`."""
    return jax.vmap(lambda k: collect_episode(env, act, task, k, length))(jax.random.split(key, episodes))


def collect_policy_episodes(learner: MetaLearner, policy: PyTree, task: PyTree, key: jax.Array, episodes: int) -> Episodes:
    """Collect independent episodes of a learner's adapted policy, each from `initial_carry`: leaves `[R, T, ...]`.

    Args:
      learner: gives environment, horizon and actions.
      policy: as `learner.adapt` returned it.
      task: one task.
      key: consumed.
      episodes: R, static.
    """

    def act(carry: PyTree, obs: jax.Array, k: jax.Array) -> tuple[jax.Array, PyTree]:
        return learner.act(policy, carry, obs, k)

    def episode(k: jax.Array) -> Episodes:
        return collect_recurrent_episode(learner.env, act, learner.initial_carry(policy), task, k, learner.horizon)[0]

    return jax.vmap(episode)(jax.random.split(key, episodes))


@struct.dataclass
class AutoresetSteps(Episodes):
    """T steps of an environment in which one episode follows another, every step valid unless it diverged.

    As `Episodes`, but `nonfinite` counts diverged episodes, and `terminated` marks each step that ended one.

    Attributes:
      episode: `[..., T]` int32 number of the step's episode in its environment, from 0.
    """

    episode: jax.Array

    @property
    def returns(self) -> jax.Array:
        """`[...]` undiscounted return of each environment's first episode, whole if T is at least the time limit."""
        return jnp.sum(jnp.where(self.episode == 0, self.rewards, 0.0), axis=-1)


def collect_autoreset_steps(
    env: TaskEnv,
    act: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
    first: PyTree,
    renew: Callable[[jax.Array, jax.Array], PyTree],
    task: PyTree,
    key: jax.Array,
    length: int,
    horizon: int,
) -> AutoresetSteps:
    """T steps of one task, with a fresh reset after every termination, divergence or time limit; `vmap` for more environments.

    Args:
      env: the environment.
      act: `(context, obs [O], key) -> action [A]`.
      first: context (any pytree) of the first episode, such as PEARL's latent.
      renew: `(key, number of the episode) -> context` of a later one.
      task: one task, as the environment's `reset` takes it.
      key: consumed.
      length: T, static.
      horizon: steps after which an episode is cut; that is no termination.

    Returns:
      `AutoresetSteps` with leaves `[T, ...]`.
    """
    reset_key, scan_key = jax.random.split(key)

    def step(carry: PyTree, step_key: jax.Array) -> tuple[PyTree, PyTree]:
        state, context, age, episode = carry
        action_key, fresh_key, renew_key = jax.random.split(step_key, 3)
        action = act(context, state.obs, action_key)
        after = env.step(state, action)
        finite = _is_finite(after, action)
        terminated = after.done * (1.0 - _truncated(after))
        record = _masked(finite, (state.obs, action, after.reward, after.obs, terminated))
        over = (after.done > 0) | ~finite | (age + 1 >= horizon)
        fresh = env.reset(fresh_key, task), renew(renew_key, episode + 1), jnp.zeros_like(age), episode + 1
        carry = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, (after, context, age + 1, episode))
        return carry, (record, finite.astype(after.reward.dtype), episode)

    carry = env.reset(reset_key, task), first, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    _, (record, valid, episode) = jax.lax.scan(step, carry, jax.random.split(scan_key, length))
    obs, actions, rewards, next_obs, terminated = record
    return AutoresetSteps(obs, actions, rewards, next_obs, terminated, valid, jnp.sum(1.0 - valid), episode)


def _truncated(after: PyTree) -> jax.Array:
    """1 where a time limit of the environment's own ended the episode; Brax's `EpisodeWrapper` says so in `info`."""
    return after.info.get("truncation", jnp.zeros_like(after.done))


def _is_finite(after: PyTree, action: jax.Array) -> jax.Array:
    """Whether a step ended in a finite state, by the environment's own word and by what can be seen of it."""
    finite = jnp.all(jnp.isfinite(action)) & jnp.all(jnp.isfinite(after.obs)) & jnp.isfinite(after.reward)
    return finite & (after.metrics.get("nonfinite", jnp.zeros_like(after.done)) == 0)


def _masked(finite: jax.Array, record: Any) -> Any:
    """Zeros in place of a step that is not finite: 0 * nan would still reach a gradient."""
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.zeros_like(leaf)), record)
