"""What a physics backend is: one environment step of either body, unbatched, under `vmap` of any depth."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from tamherd_jax.physics.bodies import NV


@struct.dataclass
class PhysicsState:
    """State of one body between two environment steps.

    Attributes:
      q: `[9]` positions: root x and z (m) relative to the model's rest pose, root pitch, six joint angles (rad).
      qd: `[9]` velocities (m/s, rad/s).
      warmstart: `[9]` last constrained acceleration, the solver's next guess (m/s^2, rad/s^2). Backends whose solver always
        runs to convergence leave it at zero.
    """

    q: jax.Array
    qd: jax.Array
    warmstart: jax.Array


def init_state(q: jax.Array, qd: jax.Array) -> PhysicsState:
    """State at positions `q` `[9]` and velocities `qd` `[9]`, without a solver guess."""
    return PhysicsState(q=q, qd=qd, warmstart=jnp.zeros(NV, q.dtype))


class Physics(Protocol):
    """A physics backend: moves one body by one environment step (`FRAME_SKIP[body]` physics steps of `TIMESTEP[body]` s)."""

    name: str

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """State after one environment step.

        Args:
          body: `[]` int32 index into `BODIES`; data, so a batch may mix bodies.
          state: unbatched; `vmap` this function, to any depth, for more.
          control: `[6]` motor controls, clipped to [-1, 1] by the caller.

        Returns:
          The next state. Where the dynamics diverged it holds non-finite numbers, in this lane only.
        """
        ...
