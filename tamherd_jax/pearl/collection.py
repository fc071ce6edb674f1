"""Episodes of PEARL: each on a latent of its own, from the prior or from a belief inferred from a context."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tamherd_jax.distributions import sample_gaussian
from tamherd_jax.envs.episodes import AutoresetSteps, collect_autoreset_steps, collect_episode
from tamherd_jax.pearl import replay
from tamherd_jax.pearl.config import PEARLConfig
from tamherd_jax.pearl.replay import Transition
from tamherd_jax.pearl.update import ContextualSAC, Networks
from tamherd_jax.types import Episodes, Params, PyTree, TaskEnv

BELIEFS_PER_ENVIRONMENT = 8
"""Beliefs inferred ahead for an environment's episodes, each from its own context; beyond, they come round again."""


@struct.dataclass
class PEARLPolicy:
    """A policy adapted to one task: actor parameters and the latent `[Z]` it acts on."""

    actor: Params
    latent: jax.Array


class Collector:
    """Collects the episodes of one learner's actor; what they hold is said in `PEARL`.

    Args:
      env: a `TaskEnv` of actions within [-1, 1].
      sac: the networks.
      config: settings.
    """

    def __init__(self, env: TaskEnv, sac: ContextualSAC, config: PEARLConfig):
        self._squashed, self._sac, self.config = _Squashed(env), sac, config

    def distribution(self, policy: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation `[..., A]` of the Gaussian before the squashing.

        Args:
          policy: a `PEARLPolicy`, or actor parameters alone.
          obs: `[..., O]`, or with the latent appended, `[..., O + Z]`, for actor parameters alone.
        """
        if isinstance(policy, PEARLPolicy):
            policy, obs = policy.actor, _append(obs, policy.latent)
        return self._sac.gaussian(policy, obs)

    def observed(self, episodes: Episodes) -> Episodes:
        """What the environment saw and did: observations without the latent, actions squashed."""
        size = self._squashed.observation_size
        return dataclasses.replace(
            episodes, obs=episodes.obs[..., :size], next_obs=episodes.next_obs[..., :size], actions=jnp.tanh(episodes.actions)
        )

    def example(self) -> Transition:
        """A transition of zeros, for its shapes."""
        obs, scalar = jnp.zeros(self._squashed.observation_size), jnp.zeros(())
        return Transition(obs, jnp.zeros(self._squashed.action_size), scalar, obs, scalar)

    def draw_latent(self, key: jax.Array, mean: Float[Array, " Z"], var: Float[Array, " Z"]) -> Float[Array, " Z"]:
        """Return a sample `[Z]` of a latent of that mean and variance."""
        return self._sac.latent(mean, var, jax.random.normal(key, mean.shape, mean.dtype))

    def _prior(self, *shape: int) -> tuple[jax.Array, jax.Array]:
        """Mean and variance `[*shape, Z]` of the belief before any experience."""
        return jnp.zeros((*shape, self.config.latent_size)), jnp.ones((*shape, self.config.latent_size))

    def explore(self, key: jax.Array, actor: Params, task: PyTree, episodes: int, deterministic: bool) -> Episodes:
        """Episodes `[E, T, ...]` of one task, each on a latent from the prior; see the class for what they hold."""

        def episode(key: jax.Array) -> Episodes:
            latent_key, key = jax.random.split(key)
            policy = PEARLPolicy(actor, self.draw_latent(latent_key, *self._prior()))

            def act(obs: jax.Array, k: jax.Array) -> jax.Array:
                mean, log_std = self.distribution(policy, obs)
                return mean if deterministic else sample_gaussian(k, mean, log_std)

            steps = collect_episode(self._squashed, act, task, key, self.config.horizon)
            return dataclasses.replace(
                steps, obs=_append(steps.obs, policy.latent), next_obs=_append(steps.next_obs, policy.latent)
            )

        return jax.vmap(episode)(jax.random.split(key, episodes))

    def both_phases(self, key: jax.Array, params: Networks, task: PyTree) -> tuple[AutoresetSteps, AutoresetSteps]:
        """Both phases of one sampled task, steps `[prior_steps / T, T, ...]` and `[posterior_steps / T, T, ...]`."""
        prior_key, context_key, posterior_key = jax.random.split(key, 3)
        prior = self.collect_prior(prior_key, params.actor, task, self.config.prior_steps // self.config.horizon)
        environments = self.config.posterior_steps // self.config.horizon
        mean, var = self._beliefs(context_key, params.encoder, prior, environments * BELIEFS_PER_ENVIRONMENT)
        later = jax.tree.map(lambda leaf: leaf.reshape(environments, BELIEFS_PER_ENVIRONMENT, -1), (mean, var))
        # Each environment's first episode acts on its own belief, but the phase's very first on the prior, as oyster's does.
        first = jax.tree.map(lambda prior, x: x[:, 0].at[0].set(prior), self._prior(), later)
        return prior, self._collect(posterior_key, params.actor, task, first, later)

    def _beliefs(self, key: jax.Array, encoder: Params, prior: AutoresetSteps, count: int) -> tuple[jax.Array, jax.Array]:
        """`count` beliefs `[count, Z]` about a task, each from its own context sampled from the prior phase."""
        steps, valid = replay.to_transitions(self.observed(prior))
        ring = replay.init(self.example(), 1, valid.size)
        ring = replay.add(ring, steps, jnp.zeros(valid.size, jnp.int32), valid)

        def belief(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            context = replay.sample(ring, key, jnp.zeros((), jnp.int32), self.config.context_size)
            return self._sac.belief(encoder, context)

        return jax.vmap(belief)(jax.random.split(key, count))

    def collect_prior(self, key: jax.Array, actor: Params, task: PyTree, environments: int) -> AutoresetSteps:
        """Steps `[B, T, ...]` of B environments of one task whose episodes all act on the prior."""
        return self._collect(key, actor, task, self._prior(environments), self._prior(environments, 1))

    def _collect(self, key: jax.Array, actor: Params, task: PyTree, first: PyTree, later: PyTree) -> AutoresetSteps:
        """Steps `[B, T, ...]` of one task with stochastic actions, every episode on a fresh latent.

        `first` is mean and variance `[B, Z]` of the belief that each environment's first episode acts on, `later` `[B, P, Z]`
        of those of the episodes after it, in turn.
        """

        def steps(key: jax.Array, first: PyTree, later: PyTree) -> AutoresetSteps:
            latent_key, key = jax.random.split(key)

            def renew(k: jax.Array, episode: jax.Array) -> jax.Array:
                return self.draw_latent(k, *(leaf[(episode - 1) % leaf.shape[0]] for leaf in later))

            def act(latent: jax.Array, obs: jax.Array, k: jax.Array) -> jax.Array:
                return sample_gaussian(k, *self.distribution(PEARLPolicy(actor, latent), obs))

            start = self.draw_latent(latent_key, *first)
            return collect_autoreset_steps(
                self._squashed, act, start, renew, task, key, self.config.horizon, self.config.horizon
            )

        return jax.vmap(steps)(jax.random.split(key, first[0].shape[0]), first, later)


class _Squashed:
    """An environment whose actions are squashed by tanh on the way in."""

    def __init__(self, env: TaskEnv):
        self._env = env

    def reset(self, rng: jax.Array, task: PyTree) -> PyTree:
        return self._env.reset(rng, task)

    def step(self, state: PyTree, action: jax.Array) -> PyTree:
        return self._env.step(state, jnp.tanh(action))

    @property
    def observation_size(self) -> int:
        return self._env.observation_size

    @property
    def action_size(self) -> int:
        return self._env.action_size

    @property
    def backend(self) -> str:
        return self._env.backend


def _append(obs: Float[Array, "*b O"], latent: Float[Array, " Z"]) -> Float[Array, "*b P"]:
    """`[..., O]` and `[Z]` to `[..., O + Z]`."""
    return jnp.concatenate([obs, jnp.broadcast_to(latent, (*obs.shape[:-1], latent.shape[-1]))], axis=-1)
