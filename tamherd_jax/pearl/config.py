"""Settings of PEARL."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tamherd_jax.validation import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
    check_fields,
    traceable,
)


@traceable
@dataclasses.dataclass(frozen=True)
class PEARLConfig:
    """Settings of PEARL; the defaults are the paper's Table 4, and what it leaves out is oyster's.

    A configuration is a pytree whose leaves are its floats, so that one program trains many settings::

        settings = jax.tree.map(lambda *leaves: jnp.array(leaves), *configs)  # configs alike in all that is no leaf
        jax.vmap(lambda c, key: PEARL(env, meta_batch_size, tasks, c).init(key))(settings, keys)

    Attributes:
      horizon: T, steps of an episode.
      discount: gamma.
      latent_size: Z, of the task's latent.
      encoder_sizes: hidden layers of the context encoder.
      hidden_sizes: hidden layers of Q, V and the policy.
      learning_rate: of every network's Adam.
      target_rate: tau, `target <- (1 - tau) target + tau network` after each gradient step.
      kl_weight: of the information bottleneck.
      reward_scale: of rewards in the Q targets; contexts carry the reward itself.
      reward_unit: what rewards in the Q targets are divided by before they are scaled: `"one"`, or `"magnitude"`, the mean
        absolute reward of all transitions in replay at the start of an epoch, so that one scale fits every task and stage of
        training (Fujimoto et al. 2025, MR.Q).
      temperature: weight of the policy's entropy, 1 in oyster, which scales rewards instead.
      critic_norm: `"none"`, or `"layer"`, layer normalisation before every activation of Q and V, not of the policy (Hiraoka
        et al. 2022, DroQ; Ball et al. 2023, RLPD).
      critic_loss: `"squared"` error, or `"categorical"`, cross-entropy to the target smeared over `value_bins` values
        within `value_limit` of 0 (Farebrother et al. 2024, HL-Gauss).
      value_bins, value_limit: of the categorical loss.
      bootstrap: what values the next state: `"value"`, a slow copy of V, or `"q"`, the smaller of slow copies of both Q at a
        fresh action less its entropy term, without any V (Haarnoja et al. 2018, "SAC and applications").
      squash: the correction of the policy's log density: `"exact"`, or `"clipped"` with oyster's 1e-6.
      policy_delay: gradient steps of encoder and Q for each one of the policy (and V, and its copy); Fujimoto et al. 2018, TD3.
      mean_weight, log_std_weight, pre_tanh_weight: regularisers of the policy's mean (before the squashing), log standard
        deviation and sample (before the squashing).
      initial_steps: transitions of each task before the first epoch, acting on the prior.
      prior_steps: transitions of each task draw acting on the prior, for both buffers.
      posterior_steps: transitions of each task draw acting on the belief, for the full buffer alone.
      gradient_steps: of an epoch.
      meta_batch_size: M, tasks of a gradient step.
      batch_size: transitions of each of them.
      context_size: transitions that a belief is inferred from in training.
      context_window: latest prior-phase transitions of each task that these are drawn from; 0 for those of the task's latest
        draw alone, as oyster has it: 2 episodes, if `prior_steps` are 2 horizons.
      context_episodes: episodes of the window, chosen at random, that each context is drawn from; 0 for all of them, as oyster
        has it. A test explores few episodes, and they may all run the same way.
      replay_capacity: transitions of each task in the full buffer. An epoch adds `prior_steps + posterior_steps` for every
        draw of the task, so a short run needs far less than oyster's million.
      deterministic_exploration: whether the exploration episodes of `adapt` take the mean action, as oyster's do.
      use_context: False holds the latent at 0 everywhere: soft actor-critic on the mixture of tasks, for comparison.
      matmul_precision: of all networks: `"highest"` float32, `"tensorfloat32"`, `"bfloat16"` (JAX's names).
    """

    horizon: PositiveInt = 200
    discount: UnitFloat = 0.99
    latent_size: PositiveInt = 5
    encoder_sizes: tuple[PositiveInt, ...] = (200, 200, 200)
    hidden_sizes: tuple[PositiveInt, ...] = (300, 300, 300)
    learning_rate: NonNegativeFloat = 3e-4
    target_rate: UnitFloat = 0.005
    kl_weight: NonNegativeFloat = 0.1
    reward_scale: NonNegativeFloat = 5.0
    reward_unit: Literal["one", "magnitude"] = "one"
    temperature: NonNegativeFloat = 1.0
    critic_norm: Literal["none", "layer"] = "none"
    critic_loss: Literal["squared", "categorical"] = "squared"
    value_bins: PositiveInt = 101
    value_limit: PositiveFloat = 200.0
    bootstrap: Literal["value", "q"] = "value"
    squash: Literal["exact", "clipped"] = "clipped"
    policy_delay: PositiveInt = 1
    mean_weight: NonNegativeFloat = 1e-3
    log_std_weight: NonNegativeFloat = 1e-3
    pre_tanh_weight: NonNegativeFloat = 0.0
    initial_steps: PositiveInt = 2000
    prior_steps: PositiveInt = 1000
    posterior_steps: PositiveInt = 1000
    gradient_steps: PositiveInt = 2000
    meta_batch_size: PositiveInt = 4
    batch_size: PositiveInt = 256
    context_size: PositiveInt = 256
    context_window: NonNegativeInt = 0
    context_episodes: NonNegativeInt = 0
    replay_capacity: PositiveInt = 1_000_000
    deterministic_exploration: bool = True
    use_context: bool = True
    matmul_precision: Literal["highest", "tensorfloat32", "bfloat16"] = "highest"

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
          ValueError: naming the first field at fault.
        """
        check_fields(self)
        for name, episodes in (("initial_steps", 1), ("prior_steps", 1), ("posterior_steps", 2)):
            steps = getattr(self, name)
            if steps < episodes * self.horizon or steps % self.horizon:
                rule = f"a multiple of the horizon {self.horizon}, at least {episodes} of it"
                raise ValueError(f"{name.replace('_', ' ')} must be {rule}, not {steps}")
        if self.context_window % self.horizon:
            raise ValueError(f"context window must be a multiple of the horizon {self.horizon}, not {self.context_window}")
        if self.gradient_steps % self.policy_delay:
            rule = f"a multiple of the policy delay {self.policy_delay}"
            raise ValueError(f"gradient steps must be {rule}, not {self.gradient_steps}")
        if self.replay_capacity < self.encoder_capacity:
            raise ValueError(f"replay capacity must be at least {self.encoder_capacity}, not {self.replay_capacity}")

    @property
    def encoder_capacity(self) -> int:
        """Transitions of each task in the encoder buffer; without `context_window` each draw of the task empties it."""
        return self.context_window or max(self.initial_steps, self.prior_steps)
