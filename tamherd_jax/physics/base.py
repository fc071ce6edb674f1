"""State of a body as physics backends exchange it."""

import jax
import jax.numpy as jnp

from tamherd_jax.types import Physics, PhysicsState

__all__ = ["Physics", "PhysicsState", "init_state"]


def init_state(q: jax.Array, qd: jax.Array) -> PhysicsState:
    """Return the state at positions `q` `[Q]` and velocities `qd` `[Q]`, without a solver guess."""
    return PhysicsState(q=q, qd=qd, warmstart=jnp.zeros_like(q))
