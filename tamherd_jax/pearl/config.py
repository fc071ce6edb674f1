"""Settings of PEARL."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class PEARLConfig:
    """Settings of PEARL; the defaults are the paper's Table 4 as spec 2.3 reads it, the rest is oyster's.

    Attributes:
      horizon: T, steps of an episode.
      discount: gamma.
      latent_size: Z, of the task's latent.
      encoder_sizes: hidden layers of the context encoder.
      hidden_sizes: hidden layers of Q, V and the policy.
      learning_rate: of every network's Adam.
      target_rate: tau, `V_target <- (1 - tau) V_target + tau V` after each gradient step.
      kl_weight: of the information bottleneck.
      reward_scale: of rewards in the Q targets, in place of a temperature; contexts carry the reward itself.
      mean_weight, log_std_weight, pre_tanh_weight: regularisers of the policy's mean (before the squashing), log standard
        deviation and sample (before the squashing).
      initial_steps: transitions of each task before the first epoch, acting on the prior.
      prior_steps: transitions of each task draw acting on the prior, for both buffers.
      posterior_steps: transitions of each task draw acting on the belief, for the full buffer alone.
      gradient_steps: of an epoch.
      meta_batch_size: M, tasks of a gradient step.
      batch_size: transitions of each of them.
      context_size: transitions that a belief is inferred from in training.
      replay_capacity: transitions of each task in the full buffer. An epoch adds `prior_steps + posterior_steps` for every
        draw of the task, so a short run needs far less than oyster's million.
      deterministic_exploration: whether the exploration episodes of `adapt` take the mean action, as oyster's do.
      use_context: False holds the latent at 0 everywhere: soft actor-critic on the mixture of tasks, for comparison.
      matmul_precision: of all networks: `"highest"` float32, `"tensorfloat32"`, `"bfloat16"` (JAX's names).
    """

    horizon: int = 200
    discount: float = 0.99
    latent_size: int = 5
    encoder_sizes: tuple[int, ...] = (200, 200, 200)
    hidden_sizes: tuple[int, ...] = (300, 300, 300)
    learning_rate: float = 3e-4
    target_rate: float = 0.005
    kl_weight: float = 0.1
    reward_scale: float = 5.0
    mean_weight: float = 1e-3
    log_std_weight: float = 1e-3
    pre_tanh_weight: float = 0.0
    initial_steps: int = 2000
    prior_steps: int = 1000
    posterior_steps: int = 1000
    gradient_steps: int = 2000
    meta_batch_size: int = 4
    batch_size: int = 256
    context_size: int = 256
    replay_capacity: int = 1_000_000
    deterministic_exploration: bool = True
    use_context: bool = True
    matmul_precision: Literal["highest", "tensorfloat32", "bfloat16"] = "highest"

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
          ValueError: naming the first field at fault.
        """
        for name in ("horizon", "latent_size", "gradient_steps", "meta_batch_size", "batch_size", "context_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}")
        for name, episodes in (("initial_steps", 1), ("prior_steps", 1), ("posterior_steps", 2)):
            steps = getattr(self, name)
            if steps < episodes * self.horizon or steps % self.horizon:
                rule = f"a multiple of the horizon {self.horizon}, at least {episodes} of it"
                raise ValueError(f"{name.replace('_', ' ')} must be {rule}, not {steps}")
        if self.replay_capacity < self.encoder_capacity:
            raise ValueError(f"replay capacity must be at least {self.encoder_capacity}, not {self.replay_capacity}")

    @property
    def encoder_capacity(self) -> int:
        """Transitions of each task in the encoder buffer, which every draw of the task empties."""
        return max(self.initial_steps, self.prior_steps)
