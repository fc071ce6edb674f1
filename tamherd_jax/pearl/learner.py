"""PEARL as a `MetaLearner`: collection with and without a belief, replay, gradient steps, adaptation by inference."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Integer

from tamherd_jax.envs.episodes import AutoresetSteps
from tamherd_jax.envs.tasks import mean_by_task, systematic_resample, take_tasks
from tamherd_jax.networks import perceptron_weights
from tamherd_jax.pearl import replay
from tamherd_jax.pearl.collection import Collector, PEARLPolicy
from tamherd_jax.pearl.config import PEARLConfig
from tamherd_jax.pearl.replay import ReplayBuffer
from tamherd_jax.pearl.update import ContextualSAC, Networks, ReplayBatch, TrainState
from tamherd_jax.types import Episodes, EpochMetrics, Params, PyTree, TaskEnv

_MIN_REWARD_UNIT = 1e-6  # rewards may all be 0 at first
_MEMORY_SHARE = 0.9  # of the device; the rest is for networks, optimisers and the gradient steps


@struct.dataclass
class PEARLState:
    """What training carries on.

    Attributes:
      train: parameters and optimisers.
      full: replay of every transition, N rings of `replay_capacity`; None without it.
      encoder: replay of the latest prior-phase transitions, from which contexts are drawn; None without it.
    """

    train: TrainState
    full: PyTree
    encoder: Params


class PEARL:
    """Probabilistic embeddings for actor-critic meta-RL (Rakelly et al. 2019; oyster).

    It is a `ReplayLearner` besides: `prefill` is to be called once, before the first epoch.

    Its `Episodes` have the latent appended to observations, `[..., O + Z]`, and hold the actions before the squashing, so
    that `distribution` at an episode's observations is what its actions were drawn from; `observed` undoes both.

    Args:
      env: a `TaskEnv` of actions within [-1, 1].
      meta_batch_size: M, tasks sampled an epoch.
      tasks: N, of the task set, whichever of them a learner's weights select.
      config: settings.
    """

    def __init__(self, env: TaskEnv, meta_batch_size: int, tasks: int, config: PEARLConfig = PEARLConfig()):
        self.env, self.meta_batch_size, self.tasks, self.config = env, meta_batch_size, tasks, config
        self.horizon = config.horizon
        self._sac = ContextualSAC(env.observation_size, env.action_size, config)
        self._collector = Collector(env, self._sac, config)

    @property
    def steps_per_epoch(self) -> int:
        """`D (prior_steps + posterior_steps)`."""
        return self.meta_batch_size * (self.config.prior_steps + self.config.posterior_steps)

    @property
    def updates_per_epoch(self) -> int:
        """`gradient_steps`."""
        return self.config.gradient_steps

    @property
    def prefill_steps(self) -> int:
        """`initial_steps` of each task."""
        return self.config.initial_steps

    @property
    def replay_bytes(self) -> int:
        """Bytes of one learner's replay buffers."""
        sizes = (self.config.replay_capacity, self.config.encoder_capacity)
        example = jax.eval_shape(self._collector.example)
        return sum(replay.buffer_bytes(example, self.tasks, size) for size in sizes)

    def check_memory(self, learners: int, available: int | None = None) -> None:
        """Refuse more learners on a device than it can hold; call it before `init`.

        Args:
          learners: on one device. One copy of each is counted: donate the state to training, or an epoch holds two.
          available: bytes of the device, asked of the first one if None.

        Raises:
          ValueError: one line with the sizes and what to change.
        """
        available = replay.device_memory() if available is None else available
        if available is None:
            return
        available = int(_MEMORY_SHARE * available)
        fitting = int(self.config.replay_capacity * available / (learners * self.replay_bytes))
        fewer = "train fewer seeds at once (--seeds, --first-seed)"
        advice = f"lower replay_capacity from {self.config.replay_capacity} to {fitting}, or {fewer}"
        replay.check_memory(learners * self.replay_bytes, available, advice)

    def with_config(self, config: PEARLConfig) -> PEARL:
        """Return the same learner with other settings, whose numbers may be traced."""
        return PEARL(self.env, self.meta_batch_size, self.tasks, config)

    def init(self, key: jax.Array) -> PEARLState:
        """Fresh parameters and empty replay buffers."""
        c, example = self.config, self._collector.example()
        full = replay.init(example, self.tasks, c.replay_capacity)
        return PEARLState(self._sac.init(key), full, replay.init(example, self.tasks, c.encoder_capacity))

    def without_replay(self, state: PEARLState) -> PEARLState:
        """The state without its replay buffers, of which `probe`, `infer` and `adapt` have no need."""
        return dataclasses.replace(state, full=None, encoder=None)

    def acting(self, state: PEARLState) -> PEARLState:
        """The parameters of encoder and policy, all that `probe`, `infer` and `adapt` read."""
        nothing = Networks(None, None, None, None)
        params = dataclasses.replace(nothing, encoder=state.train.params.encoder, actor=state.train.params.actor)
        return PEARLState(TrainState(params, None, nothing), None, None)

    def prefill(
        self, key: jax.Array, state: PEARLState, tasks: PyTree, weights: Float[Array, " N"]
    ) -> tuple[PEARLState, EpochMetrics]:
        """`initial_steps` transitions of every task with a positive weight, acting on the prior, into both buffers.

        A function of its own because under `vmap` a condition inside `train_epoch` would collect them anew every epoch.
        Arguments and results as `train_epoch`; an epoch that starts unprepared trains on the tasks drawn so far.
        """
        environments, wanted = self.config.initial_steps // self.horizon, weights > 0
        collect = jax.vmap(lambda k, task: self._collector.collect_prior(k, state.train.params.actor, task, environments))
        steps = collect(jax.random.split(key, self.tasks), tasks)
        steps = dataclasses.replace(steps, valid=jnp.where(wanted[:, None, None], steps.valid, 0.0))
        index = jnp.arange(self.tasks)
        state = dataclasses.replace(
            state, full=self._add(state.full, index, steps), encoder=self._add(state.encoder, index, steps)
        )
        before = jnp.where(wanted, jnp.mean(steps.returns, axis=-1), jnp.nan)
        nonfinite = jnp.sum(jnp.where(wanted[:, None], steps.nonfinite, 0.0))
        return state, EpochMetrics(before, jnp.full_like(before, jnp.nan), jnp.sum(steps.valid), nonfinite, {})

    def copy_replay(self, state: PEARLState, other: PEARLState, weights: Float[Array, " N"]) -> PEARLState:
        """`state` with `other`'s replay of the tasks with a positive weight in `weights` `[N]`, in place of `prefill`.

        The transitions of another policy are as good: soft actor-critic is off-policy, and the contexts in the encoder buffer
        are replaced by the learner's own, at its first draw of the task or once these fill the window.
        """
        full, encoder = (replay.clear(buffer, weights <= 0) for buffer in (other.full, other.encoder))
        return dataclasses.replace(state, full=full, encoder=encoder)

    def train_epoch(
        self, key: jax.Array, state: PEARLState, tasks: PyTree, weights: Float[Array, " N"]
    ) -> tuple[PEARLState, EpochMetrics]:
        """Collect in M sampled tasks, all at once, then `gradient_steps` steps on replayed transitions.

        Draws are independent given the policy, and so are a draw's episodes but for the belief: that of its posterior phase
        comes from its own prior phase. So both phases run in parallel over draws.

        Args:
          key: consumed.
          state: of one learner; donate it, or its buffers are copied.
          tasks: leaves `[N, ...]`.
          weights: `[N]` the learner's distribution over tasks.
        """
        draw_key, collect_key, train_key = jax.random.split(key, 3)
        index = systematic_resample(draw_key, weights, self.meta_batch_size)
        collect = jax.vmap(self._collector.both_phases, in_axes=(0, None, 0))
        prior, posterior = collect(
            jax.random.split(collect_key, self.meta_batch_size), state.train.params, take_tasks(tasks, index)
        )
        state = self._remember(state, index, prior, posterior)
        train, losses = self._improve(train_key, state, weights)
        metrics = EpochMetrics(
            before=mean_by_task(index, jnp.mean(prior.returns, axis=1), self.tasks),
            after=mean_by_task(index, jnp.mean(posterior.returns[:, 1:], axis=1), self.tasks),  # the first acted on the prior
            steps=jnp.sum(prior.steps) + jnp.sum(posterior.steps),
            nonfinite=jnp.sum(prior.nonfinite) + jnp.sum(posterior.nonfinite),
            diagnostics=losses,
        )
        return dataclasses.replace(state, train=train), metrics

    def distribution(self, policy: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation `[..., A]` of the Gaussian before the squashing.

        Args:
          policy: a `PEARLPolicy`, or actor parameters alone.
          obs: `[..., O]`, or with the latent appended, `[..., O + Z]`, for actor parameters alone.
        """
        return self._collector.distribution(policy, obs)

    def initial_carry(self, policy: PEARLPolicy) -> tuple[()]:
        """Return the empty carry: the policy's memory is its latent, which an episode does not change."""
        del policy
        return ()

    def act(self, policy: PEARLPolicy, carry: tuple[()], obs: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[()]]:
        """Return the squashed mean action `[A]`, as oyster evaluates without noise; `carry` stays empty."""
        del key
        return jnp.tanh(self.distribution(policy, obs)[0]), carry

    def export(self, policy: PEARLPolicy) -> dict[str, np.ndarray]:
        """Return a policy as NumPy arrays by name, as `herd.numpy_policy.forward` takes them; it acts without noise."""
        actions = self.env.action_size
        flags = {"rectified": np.array(True), "squashed": np.array(True)}
        log_std = np.full(actions, -np.inf, np.float32)
        layers = perceptron_weights(policy.actor["params"]["mlp"], actions)
        return {**layers, **flags, "context": np.asarray(policy.latent), "log_std": log_std}

    def probe(self, key: jax.Array, state: PEARLState, task: PyTree, episodes: int) -> tuple[PyTree, Episodes]:
        """Actor parameters, and stochastic episodes of one task, each on its own latent from the prior."""
        actor = state.train.params.actor
        return actor, self._collector.explore(key, actor, task, episodes, deterministic=False)

    def infer(self, state: PEARLState, episodes: Episodes) -> tuple[Float[Array, " Z"], Float[Array, " Z"]]:
        """Posterior mean and variance `[Z]` of one task's latent given all valid steps of this learner's `episodes`."""
        return self._sac.belief(state.train.params.encoder, *replay.to_transitions(self.observed(episodes)))

    def adapt(self, key: jax.Array, state: PEARLState, task: PyTree, episodes: int) -> tuple[PEARLPolicy, Episodes]:
        """The policy on a latent drawn from the posterior after `episodes` episodes on latents from the prior, and these."""
        explore_key, latent_key = jax.random.split(key)
        actor = state.train.params.actor
        experience = self._collector.explore(explore_key, actor, task, episodes, self.config.deterministic_exploration)
        return PEARLPolicy(actor, self._collector.draw_latent(latent_key, *self.infer(state, experience))), experience

    def observed(self, episodes: Episodes) -> Episodes:
        """What the environment saw and did: observations without the latent, actions squashed."""
        return self._collector.observed(episodes)

    def _add(self, buffer: PyTree, index: Integer[Array, " D"], steps: AutoresetSteps) -> ReplayBuffer:
        """Append the steps `[D, B, T, ...]` of the tasks `index` `[D]`."""
        transitions, valid = replay.to_transitions(self.observed(steps))
        return replay.add(buffer, transitions, jnp.repeat(index, valid.size // index.size), valid)

    def _remember(self, state: PEARLState, index: jax.Array, prior: AutoresetSteps, posterior: AutoresetSteps) -> PEARLState:
        """Add both phases to the full buffer, prior ones to the encoder buffer, which without a window keeps one draw."""
        full = self._add(self._add(state.full, index, prior), index, posterior)
        if self.config.context_window:
            return dataclasses.replace(state, full=full, encoder=self._add(state.encoder, index, prior))
        drawn = jnp.any(index[None] == jnp.arange(self.tasks)[:, None], axis=1)
        last = jnp.append(index[1:] != index[:-1], True)  # `index` ascends
        prior = dataclasses.replace(prior, valid=jnp.where(last[:, None, None], prior.valid, 0.0))
        return dataclasses.replace(state, full=full, encoder=self._add(replay.clear(state.encoder, drawn), index, prior))

    def _improve(self, key: jax.Array, state: PEARLState, weights: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """An epoch's gradient steps, and the mean of each loss over them."""
        c = self.config
        weights = jnp.where(replay.filled(state.full) & replay.filled(state.encoder), weights, 0.0)
        unit = self._reward_unit(state.full, weights)

        def step(train: TrainState, keys: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            for early in keys[:-1]:
                train, _ = self._sac.step(train, self._batch(early, state, weights, unit), policy=False)
            return self._sac.step(train, self._batch(keys[-1], state, weights, unit))

        keys = jax.random.split(key, c.gradient_steps).reshape(-1, c.policy_delay)
        train, losses = jax.lax.scan(step, state.train, keys)
        return train, jax.tree.map(jnp.mean, losses)

    def _reward_unit(self, full: ReplayBuffer, weights: jax.Array) -> jax.Array | float:
        """What rewards are divided by: 1, or the mean absolute reward of what the tasks of positive weight have in replay."""
        if self.config.reward_unit == "one":
            return 1.0
        reward = full.experience.reward
        held = (jnp.arange(reward.shape[1])[None] < full.size[:, None]) & (weights > 0)[:, None]
        return jnp.sum(jnp.where(held, jnp.abs(reward), 0.0)) / jnp.maximum(jnp.sum(held), 1) + _MIN_REWARD_UNIT

    def _batch(
        self, key: jax.Array, state: PEARLState, weights: jax.Array, reward_unit: jax.Array | float = 1.0
    ) -> ReplayBatch:
        """A meta-batch of M tasks drawn with replacement in proportion to `weights` `[N]`."""
        c = self.config
        task_key, context_key, data_key, latent_key, action_key = jax.random.split(key, 5)
        index = jax.random.choice(task_key, self.tasks, (c.meta_batch_size,), p=weights)
        actions = (c.meta_batch_size, c.batch_size, self.env.action_size)

        def context(key: jax.Array, task: jax.Array) -> PyTree:
            return replay.sample_episodes(state.encoder, key, task, c.context_size, c.context_episodes, c.horizon)

        def transitions(key: jax.Array, task: jax.Array) -> PyTree:
            return replay.sample(state.full, key, task, c.batch_size)

        return ReplayBatch(
            context=jax.vmap(context)(jax.random.split(context_key, c.meta_batch_size), index),
            transitions=jax.vmap(transitions)(jax.random.split(data_key, c.meta_batch_size), index),
            latent_noise=jax.random.normal(latent_key, (c.meta_batch_size, c.latent_size)),
            action_noise=jax.random.normal(action_key, actions),
            next_noise=None if self._sac.has_value else jax.random.normal(jax.random.fold_in(action_key, 1), actions),
            reward_unit=reward_unit,
        )
