"""PEARL's networks and one gradient step on them: who is trained by which loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Shaped

from tamherd_jax.networks import ContextEncoder, LatentCritic, TanhGaussianPolicy
from tamherd_jax.pearl.config import PEARLConfig
from tamherd_jax.pearl.losses import (
    LOG_SLOPES,
    actor_loss,
    categorical_head,
    critic_loss,
    q_targets,
    soft_value,
    squared_head,
    squashed_log_prob,
    value_loss,
)
from tamherd_jax.pearl.posterior import kl_from_prior, latent_from_noise, product_of_gaussians
from tamherd_jax.pearl.replay import Transition
from tamherd_jax.types import Params, PyTree


@struct.dataclass
class Networks:
    """Something for each network, parameters or an optimiser's state. Critic leaves are `[2, ...]`, the two Q; no V is None."""

    encoder: Params
    critic: Params
    value: PyTree
    actor: Params


@struct.dataclass
class TrainState:
    """What gradient steps carry on: parameters, the slowly following copy of V's or Q's, and an Adam state per network."""

    params: Networks
    target_value: PyTree
    optimizers: Networks


@struct.dataclass
class ReplayBatch:
    """What a gradient step sees, everything random included. M tasks of C context and B further transitions each.

    Attributes:
      context: leaves `[M, C, ...]`, from the encoder buffer.
      transitions: leaves `[M, B, ...]`, from the full buffer.
      latent_noise: `[M, Z]` standard normal.
      action_noise: `[M, B, A]` standard normal.
      next_noise: `[M, B, A]` standard normal, of the actions in the next states; None where V values these.
      reward_unit: `[]` what rewards are divided by.
    """

    context: Transition
    transitions: Transition
    latent_noise: jax.Array
    action_noise: jax.Array
    next_noise: jax.Array | None = None
    reward_unit: jax.Array | float = 1.0


class ContextualSAC:
    """Soft actor-critic conditioned on a latent that a context encoder infers (oyster `rlkit/torch/sac/sac.py`).

    Args:
      observation_size: O.
      action_size: A.
      config: settings.
    """

    def __init__(self, observation_size: int, action_size: int, config: PEARLConfig):
        self._sizes, self.config = (observation_size, action_size, config.latent_size), config
        heads = {"squared": squared_head, "categorical": lambda: categorical_head(config.value_bins, config.value_limit)}
        self._head = heads[config.critic_loss]()
        self._log_slope = LOG_SLOPES[config.squash]
        self._encoder: Any = ContextEncoder(config.latent_size, config.encoder_sizes)
        self._scalar: Any = LatentCritic(config.hidden_sizes, self._head.size, config.critic_norm == "layer")
        self._actor: Any = TanhGaussianPolicy(action_size, config.hidden_sizes)
        self._adam = optax.adam(config.learning_rate)

    @property
    def has_value(self) -> bool:
        """Whether there is a V."""
        return self.config.bootstrap == "value"

    def init(self, key: jax.Array) -> TrainState:
        """Fresh parameters; the target starts equal to V or Q."""
        obs, action, latent = (jnp.zeros(size) for size in self._sizes)
        keys = jax.random.split(key, 4)
        params = Networks(
            encoder=self._encoder.init(keys[0], obs, action, jnp.zeros(())),
            critic=jax.vmap(lambda k: self._scalar.init(k, obs, action, latent))(jax.random.split(keys[1])),
            value=self._scalar.init(keys[2], obs, latent) if self.has_value else None,
            actor=self._actor.init(keys[3], jnp.concatenate([obs, latent])),
        )
        optimizers = Networks(*(self._adam.init(getattr(params, name)) for name in ("encoder", "critic", "value", "actor")))
        return TrainState(params, jax.tree.map(jnp.copy, self._followed(params)), optimizers)

    def belief(
        self, encoder: Params, context: Transition, valid: Shaped[Array, " C"] | None = None
    ) -> tuple[Float[Array, " Z"], Float[Array, " Z"]]:
        """Posterior mean and variance `[Z]` of one task's latent given transitions `[C, ...]` of which `valid` `[C]` count."""
        with jax.default_matmul_precision(self.config.matmul_precision):
            mean, var = self._encoder.apply(encoder, context.obs, context.action, context.reward)
        return product_of_gaussians(mean, var, valid)

    def latent(
        self, mean: Float[Array, "*b Z"], var: Float[Array, "*b Z"], noise: Float[Array, "*b Z"]
    ) -> Float[Array, "*b Z"]:
        """Latent drawn from a belief, `[..., Z]` each; 0 for a learner that uses no context."""
        z = latent_from_noise(mean, var, noise)
        return z if self.config.use_context else jnp.zeros_like(z)

    def gaussian(self, actor: Params, obs: Float[Array, "*b F"]) -> tuple[Float[Array, "*b A"], Float[Array, "*b A"]]:
        """Pre-squashing mean and log standard deviation `[..., A]` at observations with the latent appended `[..., O + Z]`."""
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self._actor.apply(actor, obs)

    def q_values(
        self, critic: Params, obs: Float[Array, "*b O"], action: Float[Array, "*b A"], latent: Float[Array, "*b Z"]
    ) -> Float[Array, "Q=2 *b"]:
        """`[2, ...]` both Q at `[..., O]`, `[..., A]`, `[..., Z]`."""
        return self._head.value(self._q_outputs(critic, obs, action, latent))

    def step(self, state: TrainState, batch: ReplayBatch, policy: bool = True) -> tuple[TrainState, dict[str, jax.Array]]:
        """One gradient step of every network.

        Encoder and Q follow the Q loss and the information bottleneck; V and the policy see the latent as a constant. The
        policy, and V's target, are judged by the Q just updated.

        Args:
          state: of one learner.
          batch: its meta-batch.
          policy: whether policy and V move too, or encoder and Q alone.

        Returns:
          The next state and the losses by name, `[]` each.
        """
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self._step(state, batch, policy)

    def _step(self, state: TrainState, batch: ReplayBatch, policy: bool) -> tuple[TrainState, dict[str, jax.Array]]:
        params, opt = state.params, state.optimizers
        q_gradient = jax.grad(self.critic_objective, argnums=(0, 1), has_aux=True)
        (d_encoder, d_critic), (latent, info) = q_gradient(
            params.encoder, params.critic, state.target_value, params.actor, batch
        )
        encoder, opt_encoder = self._descend(params.encoder, d_encoder, opt.encoder)
        critic, opt_critic = self._descend(params.critic, d_critic, opt.critic)
        params = dataclasses.replace(params, encoder=encoder, critic=critic)
        opt = dataclasses.replace(opt, encoder=opt_encoder, critic=opt_critic)
        if policy:
            params, opt, policy_info = self._step_policy(params, opt, latent, batch)
            info |= policy_info
        target = state.target_value
        if policy or not self.has_value:
            target = optax.incremental_update(self._followed(params), target, self.config.target_rate)
        return TrainState(params, target, opt), info

    def _step_policy(
        self, params: Networks, opt: Networks, latent: jax.Array, batch: ReplayBatch
    ) -> tuple[Networks, Networks, dict[str, jax.Array]]:
        """The step of the policy, and of V where there is one."""
        actor_gradient = jax.grad(self.actor_objective, has_aux=True)
        d_actor, (min_q, log_prob, info) = actor_gradient(params.actor, params.critic, latent, batch)
        actor, opt_actor = self._descend(params.actor, d_actor, opt.actor)
        params, opt = dataclasses.replace(params, actor=actor), dataclasses.replace(opt, actor=opt_actor)
        if not self.has_value:
            return params, opt, info
        loss, d_value = jax.value_and_grad(self.value_objective)(params.value, min_q, log_prob, latent, batch)
        value, opt_value = self._descend(params.value, d_value, opt.value)
        params, opt = dataclasses.replace(params, value=value), dataclasses.replace(opt, value=opt_value)
        return params, opt, {**info, "value_loss": loss}

    def critic_objective(
        self, encoder: Params, critic: Params, target: Params, actor: Params, batch: ReplayBatch
    ) -> tuple[jax.Array, PyTree]:
        """`critic_loss + kl_weight sum_tasks KL(q(z | c) || N(0, I))`, differentiated in encoder and critic.

        Returns:
          The objective `[]`, and (the latents as constants `[M, B, Z]`, losses by name).
        """
        data, c = batch.transitions, self.config
        mean, var = jax.vmap(self.belief, in_axes=(None, 0))(encoder, batch.context)
        latent = self._spread(self.latent(mean, var, batch.latent_noise), data)
        constant = jax.lax.stop_gradient(latent)
        next_values = self._next_values(target, actor, constant, batch)
        targets = q_targets(data.reward / batch.reward_unit, data.terminated, next_values, c.discount, c.reward_scale)
        outputs = self._q_outputs(critic, data.obs, data.action, latent)
        loss, kl = critic_loss(outputs, targets, self._head), jnp.sum(kl_from_prior(mean, var))
        info = {"critic_loss": loss, "kl": kl / mean.shape[0], "mean_q": jnp.mean(self._head.value(outputs))}
        return loss + c.kl_weight * kl, (constant, info)

    def actor_objective(
        self, actor: Params, critic: Params, latent: Float[Array, "M B Z"], batch: ReplayBatch
    ) -> tuple[jax.Array, PyTree]:
        """`actor_loss` of a fresh reparameterised action, differentiated in the actor.

        Returns:
          The objective `[]`, and (min Q and log probability `[M, B]`, losses by name).
        """
        obs, c = batch.transitions.obs, self.config
        min_q, log_prob, gaussian = self._judged(actor, critic, obs, latent, batch.action_noise)
        loss = actor_loss(log_prob, min_q, *gaussian, (c.mean_weight, c.log_std_weight, c.pre_tanh_weight), c.temperature)
        return loss, (min_q, log_prob, {"actor_loss": loss, "entropy": -jnp.mean(log_prob)})

    def value_objective(
        self, value: PyTree, min_q: jax.Array, log_prob: jax.Array, latent: Float[Array, "M B Z"], batch: ReplayBatch
    ) -> jax.Array:
        """`value_loss` `[]`, differentiated in V."""
        outputs = self._scalar.apply(value, batch.transitions.obs, latent)
        return value_loss(outputs, soft_value(min_q, log_prob, self.config.temperature), self._head)

    def _judged(
        self, actor: Params, critic: Params, obs: jax.Array, latent: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        """Sample fresh actions; return min Q, log probability `[...]`, and (mean, log std, sample) before the squashing."""
        mean, log_std = self.gaussian(actor, jnp.concatenate([obs, latent], axis=-1))
        pre_tanh = mean + jnp.exp(log_std) * noise
        log_prob = squashed_log_prob(pre_tanh, mean, log_std, self._log_slope)
        min_q = jnp.min(self.q_values(critic, obs, jnp.tanh(pre_tanh), latent), axis=0)
        return min_q, log_prob, (mean, log_std, pre_tanh)

    def _next_values(
        self, target: Params, actor: Params, latent: Float[Array, "M B Z"], batch: ReplayBatch
    ) -> Float[Array, "M B"]:
        """`[M, B]` what the next states are worth to the target."""
        obs = batch.transitions.next_obs
        if self.has_value:
            return self._head.value(self._scalar.apply(target, obs, latent))
        if batch.next_noise is None:
            raise ValueError("bootstrap q draws actions in the next states and needs the batch's next_noise")
        min_q, log_prob, _ = self._judged(actor, target, obs, latent, batch.next_noise)
        return soft_value(min_q, log_prob, self.config.temperature)

    def _q_outputs(self, critic: Params, obs: jax.Array, action: jax.Array, latent: jax.Array) -> jax.Array:
        """`[2, ..., F]` of both Q."""
        return jax.vmap(self._scalar.apply, in_axes=(0, None, None, None))(critic, obs, action, latent)

    def _followed(self, params: Networks) -> PyTree:
        """The network that the target follows."""
        return params.value if self.has_value else params.critic

    def _spread(self, latent: Float[Array, "M Z"], data: Transition) -> Float[Array, "M B Z"]:
        """`[M, Z]` to `[M, B, Z]`: every transition of a task shares its latent."""
        return jnp.broadcast_to(latent[:, None], (*data.reward.shape, latent.shape[-1]))

    def _descend(self, params: Params, gradient: Any, optimizer: Any) -> tuple[Any, Any]:
        """One network's Adam step."""
        updates, optimizer = self._adam.update(gradient, optimizer, params)
        return optax.apply_updates(params, updates), optimizer
