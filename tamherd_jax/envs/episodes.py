"""Collecting episodes: the only loop over time steps in the library."""

from __future__ import annotations

import jax
from flax import struct


@struct.dataclass
class Episodes:
    """What happened in episodes of T steps; leading axes as the caller vmapped them.

    Attributes:
      obs: `[..., T, O]` observation the action was taken on.
      actions: `[..., T, A]` the policy's own action, before the environment's scaling and clipping.
      rewards: `[..., T]`, 0 where not valid.
      next_obs: `[..., T, O]` observation after the action.
      terminated: `[..., T]` 1 on the step that ended the episode (a fall, a diverged state); a time limit is no termination.
      valid: `[..., T]` 1 while the episode had not terminated before this step.
      nonfinite: `[...]` 1 if the episode was ended because its state stopped being finite.
    """

    obs: jax.Array
    actions: jax.Array
    rewards: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    valid: jax.Array
    nonfinite: jax.Array
