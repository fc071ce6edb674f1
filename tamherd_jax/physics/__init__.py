"""Physics of the two bodies: the models, and backends that step them, one file each."""

import importlib

import jax

from tamherd_jax.physics.base import Physics, PhysicsState, init_state
from tamherd_jax.physics.bodies import BODIES, FRAME_SKIP, TIMESTEP, load_model

__all__ = ["BACKENDS", "BODIES", "FRAME_SKIP", "TIMESTEP", "Physics", "PhysicsState", "get_physics", "init_state", "load_model"]

BACKENDS = {
    "mujoco": "tamherd_jax.physics.mujoco_c:MujocoPhysics",
    "planar": "tamherd_jax.physics.planar:PlanarPhysics",
    "mjx": "tamherd_jax.physics.mjx:MjxPhysics",
}
"""Backend name -> module and class. A further backend is one more file and one more line."""


def get_physics(name: str = "auto") -> Physics:
    """Physics backend by name; `"auto"` is MuJoCo C on a CPU and the planar kernel on an accelerator.

    Raises:
      ValueError: if there is no such backend.
    """
    if name == "auto":
        name = "mujoco" if jax.default_backend() == "cpu" else "planar"
    if name not in BACKENDS:
        raise ValueError(f"unknown physics backend {name!r}; choose from auto, {', '.join(BACKENDS)}")
    module, cls = BACKENDS[name].split(":")
    return getattr(importlib.import_module(module), cls)()
