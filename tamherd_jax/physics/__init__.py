"""Physics of the two bodies: the models, and backends that step them, one file each."""

import importlib
from collections.abc import Sequence
from typing import Any

from tamherd_jax.physics.base import Physics, PhysicsState, init_state
from tamherd_jax.physics.bodies import BODIES, FRAME_SKIP, TIMESTEP, load_model, perturbed_models

__all__ = [
    "BACKENDS",
    "BODIES",
    "FRAME_SKIP",
    "TIMESTEP",
    "Physics",
    "PhysicsState",
    "get_physics",
    "init_state",
    "load_model",
    "perturbed_models",
]

BACKENDS = {
    "mujoco": "tamherd_jax.physics.mujoco_c:MujocoPhysics",
    "planar": "tamherd_jax.physics.planar:PlanarPhysics",
    "mjx": "tamherd_jax.physics.mjx:MjxPhysics",
}
"""Backend name -> module and class. A further backend is one more file and one more line."""


def get_physics(name: str = "auto", models: Sequence[Any] | None = None, frames: Sequence[int] = FRAME_SKIP) -> Physics:
    """Physics backend by name; `"auto"` is the planar dynamics, compiled for what JAX runs on.

    Args:
      name: of `BACKENDS`, or `"auto"`.
      models: other bodies in place of `BODIES` (None), compiled MuJoCo models of 9 degrees of freedom and 6 motors.
      frames: physics steps per environment step, of each.

    Raises:
      ValueError: if there is no such backend, or it takes no other bodies or time steps.
    """
    if name == "auto":
        name = "planar"
    if name not in BACKENDS:
        raise ValueError(f"unknown physics backend {name!r}; choose from auto, {', '.join(BACKENDS)}")
    module, cls = BACKENDS[name].split(":")
    backend = getattr(importlib.import_module(module), cls)
    if models is None and tuple(frames) == FRAME_SKIP:
        return backend()
    if not hasattr(backend, "of_models"):
        raise ValueError(f"physics backend {name!r} takes no other bodies than {' and '.join(BODIES)}, nor other time steps")
    return backend.of_models(models or [load_model(body) for body in BODIES], frames)
