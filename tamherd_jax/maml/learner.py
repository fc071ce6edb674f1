"""MAML-TRPO as a `MetaLearner`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Integer

from tamherd_jax.distributions import gaussian_entropy, gaussian_kl, gaussian_log_prob, sample_gaussian
from tamherd_jax.envs.episodes import collect_episodes
from tamherd_jax.envs.tasks import mean_by_task, systematic_resample, take_tasks
from tamherd_jax.maml.adapted_policies import AdaptedPolicies
from tamherd_jax.maml.advantages import (
    AdvantageScale,
    discounted_returns,
    generalized_advantages,
    masked_mean,
    normalize_advantages,
)
from tamherd_jax.maml.baseline import linear_baseline
from tamherd_jax.maml.kernels import UNROLLED, adapt
from tamherd_jax.maml.over_tasks import map_tasks
from tamherd_jax.maml.trpo import TRPOConfig, trpo_step
from tamherd_jax.networks import MIN_LOG_STD, GaussianPolicy, ValueNetwork, perceptron_weights
from tamherd_jax.types import Episodes, EpochMetrics, Params, PyTree, TaskEnv
from tamherd_jax.validation import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    UnitFloat,
    check_fields,
    is_traced,
    traceable,
)


@traceable
@dataclasses.dataclass(frozen=True)
class MAMLConfig:
    """Settings of MAML-TRPO.

    The numbers default to those of the paper's Table 3. Four choices do not: advantages are divided by their standard deviation
    (garage, which the paper builds on: by their variance), the outer loss is the importance-weighted surrogate (garage: the
    log-likelihood), the baseline is fitted (the paper: a value network, which garage never trains), and every action dimension
    has its own log standard deviation (garage in 2020: one for all). `advantage_scale="variance"`, `outer_loss="likelihood"`,
    `baseline="frozen"` and `shared_log_std=True` are garage's.

    A pytree whose leaves are the `float` fields and those of `trpo`: they may be traced, or mapped over by `vmap`.

    Attributes:
      episodes_per_task: R, before and again after adaptation.
      horizon: T, environment steps of an episode.
      discount: gamma.
      gae_lambda: lambda of the generalised advantages.
      inner_step_size: alpha of the inner gradient step.
      inner_steps: Number of inner steps on the same batch; 0 for plain TRPO on all tasks.
      first_order: Drop the second-order term of the meta-gradient.
      inner_loss: `"likelihood"`, garage's `log pi A`, or `"ratio"`, ProMP's LVC: `A pi / pi_old`, where pi_old took the
        actions. Both have the same first step. Only the derivative of the ratio's step accounts for the effect of theta on
        which episodes are sampled (Rothfuss et al. 2019).
      baseline: `"linear"` features fitted per task and batch, or `"frozen"`, garage's value network that is never trained.
      advantage_scale: Divide centred advantages by their `"std"`, by their `"variance"` as garage does, or not (`"none"`).
      outer_loss: `"ratio"`, the importance-weighted surrogate (ProMP), or `"likelihood"`, garage's log-likelihood loss. Their
        gradients agree at theta; the values that the line search compares differ.
      entropy_coefficient: Weight of the adapted policies' entropy (nats) in the outer objective (garage's `policy_ent_coeff`
        with `entropy_method="regularized"`); 0 in the paper.
      entropy_decay_steps: Epochs over which that weight falls linearly to 0; None keeps it constant.
      trpo: Settings of the outer step.
      hidden_sizes: Widths of the policy's hidden layers.
      shared_log_std: One log standard deviation for all action dimensions.
      init_log_std: Initial log standard deviation.

    Raises:
      ValueError: Naming the first field at fault.
    """

    episodes_per_task: PositiveInt = 10
    horizon: PositiveInt = 100
    discount: UnitFloat = 0.99
    gae_lambda: UnitFloat = 1.0
    inner_step_size: NonNegativeFloat = 0.1
    inner_steps: NonNegativeInt = 1
    first_order: bool = False
    inner_loss: Literal["likelihood", "ratio"] = "likelihood"
    baseline: Literal["linear", "frozen"] = "linear"
    advantage_scale: AdvantageScale = "std"
    outer_loss: Literal["ratio", "likelihood"] = "ratio"
    entropy_coefficient: NonNegativeFloat = 0.0
    entropy_decay_steps: PositiveInt | None = None
    trpo: TRPOConfig = TRPOConfig()
    hidden_sizes: tuple[PositiveInt, ...] = (64, 64)
    shared_log_std: bool = False
    init_log_std: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether the outer objective has an entropy term: the coefficient is traced, or not zero."""
        return is_traced(self.entropy_coefficient) or bool(np.any(np.asarray(self.entropy_coefficient) != 0))

    def entropy_coefficient_at(self, epoch: jax.Array | int) -> jax.Array | float:
        """Return the entropy weight of an epoch, `c (1 - min(epoch / entropy_decay_steps, 1))`.

        Args:
          epoch: `[]` number of epochs before this one.

        Returns:
          `[]`; `entropy_coefficient` itself where it does not decay.
        """
        if self.entropy_decay_steps is None:
            return self.entropy_coefficient
        return self.entropy_coefficient * (1.0 - jnp.clip(epoch / self.entropy_decay_steps, 0.0, 1.0))


@struct.dataclass
class MAMLState:
    """What training carries on: policy parameters theta, the frozen value network's (used by `baseline="frozen"`), and the
    number of epochs `[]` so far (used by a KL bound or an entropy bonus that decays).
    """

    params: Params
    value_params: Params
    epochs: jax.Array


@struct.dataclass
class TaskBatch:
    """One task's episodes as the losses want them: obs `[R, T, O]`, actions `[R, T, A]`; log_prob of the actions under the
    policy that took them (None where the inner loss does not use it), advantages and valid `[R, T]`.
    """

    obs: jax.Array
    actions: jax.Array
    log_prob: jax.Array | None
    advantages: jax.Array
    valid: jax.Array


class Outcome(NamedTuple):
    """What is reported of episodes: returns, steps taken and whether they ended non-finite, each `[..., R]`."""

    returns: jax.Array
    steps: jax.Array
    nonfinite: jax.Array


Distributions: TypeAlias = tuple[jax.Array, jax.Array]
"""Means and log standard deviations of M adapted policies, `[M, B, A]` each."""


class OuterProblem(NamedTuple):
    """The arguments of `trpo_step` for an outer step over M tasks; B = R T steps of a task's query episodes.

    Attributes:
      outputs: theta to the adapted policies' `Distributions` at the query observations.
      loss, kl: `(old, new) -> []`, means over tasks of means over valid steps.
      metric: `(distributions, tangent) -> cotangent`, the Hessian of `kl` at equality.
      policies: `outputs` again, with its linearisation written out.
    """

    outputs: Callable[[Params], Distributions]
    loss: Callable[[Distributions, Distributions], jax.Array]
    kl: Callable[[Distributions, Distributions], jax.Array]
    metric: Callable[[Distributions, Distributions], Distributions]
    policies: AdaptedPolicies


class MAML:
    """Model-agnostic meta-learning with a trust-region outer step (Finn et al. 2017; garage `MAMLTRPO`).

    Args:
      env: a `TaskEnv`.
      meta_batch_size: M, tasks an epoch.
      config: settings.
      train_reward: the rewards of training in place of the environment's, `(episodes, task, N) -> [M, R, T]` of episodes
        `[M, R, T, ...]` in the tasks `[M]`; `herd.information` has one. Reported returns stay the environment's.
    """

    def __init__(
        self,
        env: TaskEnv,
        meta_batch_size: int,
        config: MAMLConfig = MAMLConfig(),
        train_reward: Callable[[Episodes, jax.Array, int], jax.Array] | None = None,
    ):
        self.env, self.meta_batch_size, self.config = env, meta_batch_size, config
        self._train_reward = train_reward
        self.horizon = config.horizon
        self._policy = GaussianPolicy(env.action_size, config.hidden_sizes, config.shared_log_std, config.init_log_std)
        self._value = ValueNetwork()

    @property
    def steps_per_epoch(self) -> int:
        """`2 M R T`: every task's episodes before and after adaptation."""
        return 2 * self.meta_batch_size * self.config.episodes_per_task * self.horizon

    def with_config(self, config: MAMLConfig) -> MAML:
        """Return the same learner with other settings, whose numbers may be traced."""
        return MAML(self.env, self.meta_batch_size, config, self._train_reward)

    def init(self, key: jax.Array) -> MAMLState:
        """Fresh parameters."""
        policy_key, value_key = jax.random.split(key)
        obs = jnp.zeros(self.env.observation_size)
        return MAMLState(
            params=self._policy.init(policy_key, obs),
            value_params=self._value.init(value_key, obs),
            epochs=jnp.zeros((), jnp.int32),
        )

    def distribution(self, policy: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation `[..., A]` of the policy at `obs` `[..., O]`."""
        outputs: PyTree = self._policy.apply(policy, obs)
        return outputs

    def initial_carry(self, policy: Params) -> tuple[()]:
        """Return the empty carry: the policy has no memory."""
        del policy
        return ()

    def act(self, policy: Params, carry: tuple[()], obs: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[()]]:
        """Sample an action `[A]`, as garage's MAML evaluates its stochastic policy; `carry` stays empty."""
        return sample_gaussian(key, *self.distribution(policy, obs)), carry

    def export(self, policy: Params) -> dict[str, np.ndarray]:
        """Return a policy as NumPy arrays by name, as `herd.numpy_policy.forward` takes them."""
        params = policy["params"]
        log_std = np.broadcast_to(np.maximum(params["log_std"], MIN_LOG_STD), (self.env.action_size,))
        flags = {"rectified": np.array(False), "squashed": np.array(False)}
        return {**perceptron_weights(params["mean"]), **flags, "context": np.zeros(0, np.float32), "log_std": log_std}

    def probe(self, key: jax.Array, state: MAMLState, task: PyTree, episodes: int) -> tuple[PyTree, Episodes]:
        """The unadapted policy and its episodes of one task."""
        return state.params, self._collect(key, state.params, task, episodes)

    def adapt(self, key: jax.Array, state: MAMLState, task: PyTree, episodes: int) -> tuple[PyTree, Episodes]:
        """The policy after the inner steps on `episodes` episodes of one task, and these."""
        experience = self._collect(key, state.params, task, episodes)
        return self._adapt(state.params, self._batch(state.params, state.value_params, experience)), experience

    def train_epoch(
        self, key: jax.Array, state: MAMLState, tasks: PyTree, weights: jax.Array
    ) -> tuple[MAMLState, EpochMetrics]:
        """Collect, adapt, collect again on M tasks, then one trust-region step of the meta-parameters.

        Args:
          key: consumed.
          state: of one learner.
          tasks: leaves `[N, ...]`.
          weights: `[N]` the learner's distribution over tasks.
        """
        draw_key, collect_key = jax.random.split(key)
        index = systematic_resample(draw_key, weights, self.meta_batch_size)
        drawn = take_tasks(tasks, index)

        def phase(policies: Params, side: tuple[jax.Array, jax.Array]) -> tuple[Params, tuple[TaskBatch, Outcome]]:
            """Episodes of every task with its own policy, and the policies that are adapted to the first side's."""
            keys, adapts = side
            episodes = jax.vmap(lambda k, p, task: self._collect(k, p, task, self.config.episodes_per_task))(
                keys, policies, drawn
            )
            rewarded = episodes
            if self._train_reward is not None:
                rewarded = dataclasses.replace(episodes, rewards=self._train_reward(episodes, index, weights.size))
            batch = map_tasks(lambda p, e: self._batch(p, state.value_params, e), policies, rewarded)
            adapt_all = functools.partial(map_tasks, functools.partial(self._adapt, state.params), batch)
            adapted = jax.lax.cond(adapts, adapt_all, lambda: policies)
            return adapted, (batch, Outcome(episodes.returns, episodes.steps, episodes.nonfinite))

        # One loop body for both sides: the physics is compiled once.
        keys = jax.random.split(collect_key, (2, self.meta_batch_size))
        start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.meta_batch_size, *leaf.shape)), state.params)
        _, sides = jax.lax.scan(phase, start, (keys, jnp.array([True, False])))
        (support, before), (query, after) = (jax.tree.map(lambda leaf, i=i: leaf[i], sides) for i in range(2))
        params, diagnostics = self._outer_step(state.params, support, query, state.epochs)
        state = dataclasses.replace(state, params=params, epochs=state.epochs + 1)
        return state, _metrics(index, weights.size, before, after, diagnostics)

    def _collect(self, key: jax.Array, params: Params, task: PyTree, episodes: int) -> Episodes:
        return collect_episodes(self.env, lambda obs, k: self.act(params, (), obs, k)[0], task, key, episodes, self.horizon)

    def _batch(self, policy: PyTree, value_params: Params, episodes: Episodes) -> TaskBatch:
        """One task's episodes `[R, T, ...]` by a policy, with advantages from the task's own baseline."""
        c = self.config
        returns = jax.vmap(lambda r: discounted_returns(r, c.discount))(episodes.rewards)
        if c.baseline == "linear":
            values = linear_baseline(episodes.obs, returns, episodes.valid)
        else:
            values = jnp.asarray(self._value.apply(value_params, episodes.obs))
        advantages = jax.vmap(generalized_advantages, in_axes=(0, 0, 0, None, None))(
            episodes.rewards, values, episodes.valid, c.discount, c.gae_lambda
        )
        advantages = normalize_advantages(advantages, episodes.valid, c.advantage_scale)
        log_prob = None
        if c.inner_loss == "ratio":
            with jax.default_matmul_precision("highest"):  # as in the loss: the ratio starts at 1
                log_prob = gaussian_log_prob(episodes.actions, *self.distribution(policy, episodes.obs))
        return TaskBatch(episodes.obs, episodes.actions, log_prob, advantages, episodes.valid)

    def _inner_loss(self, params: Params, batch: TaskBatch) -> jax.Array:
        """`-mean_valid log pi(a|s) A`, or of `A pi / pi_old`, over one task's own batch."""
        return self._output_loss(*self.distribution(params, batch.obs), batch)

    def _output_loss(self, mean: jax.Array, log_std: jax.Array, batch: TaskBatch) -> jax.Array:
        """The inner loss of a policy's outputs `[..., A]` at the batch's observations."""
        log_prob = gaussian_log_prob(batch.actions, mean, log_std)
        if self.config.inner_loss == "likelihood":
            return -masked_mean(log_prob * batch.advantages, batch.valid)
        assert batch.log_prob is not None, "a batch for the ratio has the log-probabilities of the policy that acted"
        return -masked_mean(jnp.exp(log_prob - batch.log_prob) * batch.advantages, batch.valid)

    def _adapt(self, params: Params, batch: TaskBatch) -> Params:
        c = self.config
        with jax.default_matmul_precision("highest"):
            return adapt(
                self._inner_loss, params, batch, step_size=c.inner_step_size, steps=c.inner_steps, first_order=c.first_order
            )

    def _outer_step(
        self, params: Params, support: TaskBatch, query: TaskBatch, epoch: jax.Array | int = 0
    ) -> tuple[Params, dict[str, jax.Array]]:
        """Trust-region step on the adapted policies' behaviour on the query batches (leaves `[M, R, T, ...]`)."""
        problem = self._outer_problem(support, query, epoch)
        outputs, linearization = problem.outputs, None
        if self.config.inner_steps <= UNROLLED:  # more would be too large a program
            outputs, linearization = problem.policies.outputs, problem.policies.linearize(params)
        with jax.default_matmul_precision("highest"):
            params, info = trpo_step(
                outputs, problem.loss, problem.kl, problem.metric, params, self.config.trpo, epoch, linearization
            )
        return params, {
            "loss_before": info.loss_before,
            "loss_after": info.loss_after,
            "kl": info.kl,
            "accepted": info.accepted.astype(jnp.float32),
            "backtracks": info.backtracks,
            "mean_log_std": jnp.mean(params["params"]["log_std"]),
        }

    def _outer_problem(self, support: TaskBatch, query: TaskBatch, epoch: jax.Array | int = 0) -> OuterProblem:
        """The constrained problem of the outer step, from batches `[M, R, T, ...]`."""
        c = self.config
        support, query = (jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[3:]), batch) for batch in (support, query))

        def outputs(theta: Params) -> Distributions:
            return map_tasks(lambda batch, obs: self.distribution(self._adapt(theta, batch), obs), support, query.obs)

        def per_task_mean(x: jax.Array) -> jax.Array:
            return jnp.mean(jax.vmap(masked_mean)(x, query.valid))

        def loss(old: Distributions, new: Distributions) -> jax.Array:
            weight = gaussian_log_prob(query.actions, *new)
            if c.outer_loss == "ratio":
                weight = jnp.exp(weight - gaussian_log_prob(query.actions, *old))
            objective = per_task_mean(weight * query.advantages)
            if c.has_entropy_bonus:
                objective += c.entropy_coefficient_at(epoch) * per_task_mean(gaussian_entropy(new[1]))
            return -objective

        def kl(old: Distributions, new: Distributions) -> jax.Array:
            return per_task_mean(gaussian_kl(*old, *new))

        weights = query.valid / jnp.maximum(jnp.sum(query.valid, axis=1, keepdims=True), 1.0) / self.meta_batch_size

        def metric(old: Distributions, tangent: Distributions) -> Distributions:
            return weights[..., None] * jnp.exp(-2.0 * old[1]) * tangent[0], 2.0 * weights[..., None] * tangent[1]

        policies = AdaptedPolicies(
            self._output_loss, support.obs, support, query.obs, weights, c.inner_step_size, c.inner_steps, c.first_order
        )
        return OuterProblem(outputs, loss, kl, metric, policies)


def _metrics(
    index: Integer[Array, " M"], tasks: int, before: Outcome, after: Outcome, diagnostics: dict[str, jax.Array]
) -> EpochMetrics:
    """Per-task means of an epoch over the sampled tasks, `index` `[M]`."""
    return EpochMetrics(
        before=mean_by_task(index, jnp.mean(before.returns, axis=1), tasks),
        after=mean_by_task(index, jnp.mean(after.returns, axis=1), tasks),
        steps=jnp.sum(before.steps) + jnp.sum(after.steps),
        nonfinite=jnp.sum(before.nonfinite) + jnp.sum(after.nonfinite),
        diagnostics=diagnostics,
    )
