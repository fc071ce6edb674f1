"""PEARL's networks and one gradient step on them: who is trained by which loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tamherd_jax.networks import ContextEncoder, LatentCritic, TanhGaussianPolicy
from tamherd_jax.pearl.config import PEARLConfig
from tamherd_jax.pearl.losses import actor_loss, critic_loss, q_targets, squashed_log_prob, value_loss
from tamherd_jax.pearl.posterior import kl_from_prior, latent_from_noise, product_of_gaussians
from tamherd_jax.pearl.replay import Transition


@struct.dataclass
class Networks:
    """Something for each network: parameters, or an optimiser's state. Critic leaves are `[2, ...]`, the two Q."""

    encoder: Any
    critic: Any
    value: Any
    actor: Any


@struct.dataclass
class TrainState:
    """What gradient steps carry on: parameters, the slowly following copy of V's, and an Adam state per network."""

    params: Networks
    target_value: Any
    optimizers: Networks


@struct.dataclass
class Batch:
    """What a gradient step sees, everything random included. M tasks of C context and B further transitions each.

    Attributes:
      context: leaves `[M, C, ...]`, from the encoder buffer.
      transitions: leaves `[M, B, ...]`, from the full buffer.
      latent_noise: `[M, Z]` standard normal.
      action_noise: `[M, B, A]` standard normal.
    """

    context: Transition
    transitions: Transition
    latent_noise: jax.Array
    action_noise: jax.Array


class ContextualSAC:
    """Soft actor-critic conditioned on a latent that a context encoder infers (oyster `rlkit/torch/sac/sac.py`; spec 2.1).

    Args:
      observation_size: O.
      action_size: A.
      config: settings.
    """

    def __init__(self, observation_size: int, action_size: int, config: PEARLConfig):
        self._sizes, self.config = (observation_size, action_size, config.latent_size), config
        self._encoder: Any = ContextEncoder(config.latent_size, config.encoder_sizes)
        self._scalar: Any = LatentCritic(config.hidden_sizes)
        self._actor: Any = TanhGaussianPolicy(action_size, config.hidden_sizes)
        self._adam = optax.adam(config.learning_rate)

    def init(self, key: jax.Array) -> TrainState:
        """Fresh parameters; the target starts equal to V."""
        obs, action, latent = (jnp.zeros(size) for size in self._sizes)
        keys = jax.random.split(key, 4)
        params = Networks(
            encoder=self._encoder.init(keys[0], obs, action, jnp.zeros(())),
            critic=jax.vmap(lambda k: self._scalar.init(k, obs, action, latent))(jax.random.split(keys[1])),
            value=self._scalar.init(keys[2], obs, latent),
            actor=self._actor.init(keys[3], jnp.concatenate([obs, latent])),
        )
        optimizers = Networks(*(self._adam.init(getattr(params, name)) for name in ("encoder", "critic", "value", "actor")))
        return TrainState(params, jax.tree.map(jnp.copy, params.value), optimizers)

    def belief(self, encoder: Any, context: Transition, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Posterior mean and variance `[Z]` of one task's latent given transitions `[C, ...]` of which `valid` `[C]` count."""
        with jax.default_matmul_precision(self.config.matmul_precision):
            mean, var = self._encoder.apply(encoder, context.obs, context.action, context.reward)
        return product_of_gaussians(mean, var, valid)

    def latent(self, mean: jax.Array, var: jax.Array, noise: jax.Array) -> jax.Array:
        """Latent drawn from a belief, `[..., Z]` each; 0 for a learner that uses no context."""
        z = latent_from_noise(mean, var, noise)
        return z if self.config.use_context else jnp.zeros_like(z)

    def gaussian(self, actor: Any, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pre-squashing mean and log standard deviation `[..., A]` at observations with the latent appended `[..., O + Z]`."""
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self._actor.apply(actor, obs)

    def q_values(self, critic: Any, obs: jax.Array, action: jax.Array, latent: jax.Array) -> jax.Array:
        """`[2, ...]` both Q at `[..., O]`, `[..., A]`, `[..., Z]`."""
        return jax.vmap(self._scalar.apply, in_axes=(0, None, None, None))(critic, obs, action, latent)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One gradient step of every network.

        Encoder and Q follow the Q loss and the information bottleneck; V and the policy see the latent as a constant. The
        policy, and V's target, are judged by the Q just updated.

        Args:
          state: of one learner.
          batch: its meta-batch.

        Returns:
          The next state and the losses by name, `[]` each.
        """
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self._step(state, batch)

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        params, opt = state.params, state.optimizers
        q_gradient = jax.grad(self.critic_objective, argnums=(0, 1), has_aux=True)
        (d_encoder, d_critic), (latent, q_info) = q_gradient(params.encoder, params.critic, state.target_value, batch)
        encoder, opt_encoder = self._descend(params.encoder, d_encoder, opt.encoder)
        critic, opt_critic = self._descend(params.critic, d_critic, opt.critic)
        d_actor, (min_q, log_prob, actor_info) = jax.grad(self.actor_objective, has_aux=True)(
            params.actor, critic, latent, batch
        )
        v_info, d_value = jax.value_and_grad(self.value_objective)(params.value, min_q, log_prob, latent, batch)
        value, opt_value = self._descend(params.value, d_value, opt.value)
        actor, opt_actor = self._descend(params.actor, d_actor, opt.actor)
        target = optax.incremental_update(value, state.target_value, self.config.target_rate)
        state = TrainState(
            Networks(encoder, critic, value, actor), target, Networks(opt_encoder, opt_critic, opt_value, opt_actor)
        )
        return state, {**q_info, **actor_info, "value_loss": v_info}

    def critic_objective(self, encoder: Any, critic: Any, target_value: Any, batch: Batch) -> tuple[jax.Array, Any]:
        """`critic_loss + kl_weight sum_tasks KL(q(z | c) || N(0, I))`, differentiated in encoder and critic.

        Returns:
          The objective `[]`, and (the latents as constants `[M, B, Z]`, losses by name).
        """
        data, c = batch.transitions, self.config
        mean, var = jax.vmap(self.belief, in_axes=(None, 0))(encoder, batch.context)
        latent = self._spread(self.latent(mean, var, batch.latent_noise), data)
        constant = jax.lax.stop_gradient(latent)
        next_values = self._scalar.apply(target_value, data.next_obs, constant)
        targets = q_targets(data.reward, data.terminated, next_values, c.discount, c.reward_scale)
        q_values = self.q_values(critic, data.obs, data.action, latent)
        loss, kl = critic_loss(q_values, targets), jnp.sum(kl_from_prior(mean, var))
        info = {"critic_loss": loss, "kl": kl / mean.shape[0], "mean_q": jnp.mean(q_values)}
        return loss + c.kl_weight * kl, (constant, info)

    def actor_objective(self, actor: Any, critic: Any, latent: jax.Array, batch: Batch) -> tuple[jax.Array, Any]:
        """`actor_loss` of a fresh reparameterised action, differentiated in the actor.

        Returns:
          The objective `[]`, and (min Q and log probability `[M, B]`, losses by name).
        """
        obs, c = batch.transitions.obs, self.config
        mean, log_std = self.gaussian(actor, jnp.concatenate([obs, latent], axis=-1))
        pre_tanh = mean + jnp.exp(log_std) * batch.action_noise
        log_prob = squashed_log_prob(pre_tanh, mean, log_std)
        min_q = jnp.min(self.q_values(critic, obs, jnp.tanh(pre_tanh), latent), axis=0)
        weights = (c.mean_weight, c.log_std_weight, c.pre_tanh_weight)
        loss = actor_loss(log_prob, min_q, mean, log_std, pre_tanh, weights)
        return loss, (min_q, log_prob, {"actor_loss": loss, "entropy": -jnp.mean(log_prob)})

    def value_objective(self, value: Any, min_q: jax.Array, log_prob: jax.Array, latent: jax.Array, batch: Batch) -> jax.Array:
        """`value_loss` `[]`, differentiated in V."""
        return value_loss(self._scalar.apply(value, batch.transitions.obs, latent), min_q, log_prob)

    def _spread(self, latent: jax.Array, data: Transition) -> jax.Array:
        """`[M, Z]` to `[M, B, Z]`: every transition of a task shares its latent."""
        return jnp.broadcast_to(latent[:, None], (*data.reward.shape, latent.shape[-1]))

    def _descend(self, params: Any, gradient: Any, optimizer: Any) -> tuple[Any, Any]:
        """One network's Adam step."""
        updates, optimizer = self._adam.update(gradient, optimizer, params)
        return optax.apply_updates(params, updates), optimizer
