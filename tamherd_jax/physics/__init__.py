"""Physics of the registry's bodies: the models, and backends that step them, one file each."""

from collections.abc import Callable, Sequence
from typing import Any

from tamherd_jax.physics.base import Physics, PhysicsState, init_state
from tamherd_jax.physics.bodies import (
    BODIES,
    DEFAULT_BODIES,
    FRAME_SKIP,
    TIMESTEP,
    frame_skips,
    load_model,
    load_models,
    perturbed_models,
)

__all__ = [
    "BACKENDS",
    "BODIES",
    "DEFAULT_BODIES",
    "FRAME_SKIP",
    "TIMESTEP",
    "Physics",
    "PhysicsState",
    "frame_skips",
    "get_physics",
    "init_state",
    "load_model",
    "load_models",
    "perturbed_models",
]


def _load_mujoco() -> Any:
    from tamherd_jax.physics.mujoco_c import MujocoPhysics

    return MujocoPhysics


def _load_planar() -> Any:
    from tamherd_jax.physics.planar import PlanarPhysics

    return PlanarPhysics


def _load_mjx() -> Any:
    from tamherd_jax.physics.mjx import MjxPhysics

    return MjxPhysics


BACKENDS: dict[str, Callable[[], Any]] = {"mujoco": _load_mujoco, "planar": _load_planar, "mjx": _load_mjx}
"""Backend name to a function that imports its class. A further backend is one more file and one more entry."""


def get_physics(
    name: str = "auto",
    models: Sequence[Any] | None = None,
    frames: Sequence[int] | None = None,
    bodies: Sequence[str] = DEFAULT_BODIES,
) -> Physics:
    """Return a physics backend by name; `"auto"` is the planar dynamics, compiled for what JAX runs on.

    Args:
      name: of `BACKENDS`, or `"auto"`.
      models: compiled MuJoCo models of one layout in place of those of `bodies` (None).
      frames: physics steps per environment step, of each; the bodies' own by default.
      bodies: names of the bodies that the backend steps, in this order.

    Raises:
      ValueError: if there is no such backend or body, or the backend takes no other models or time steps.
    """
    if name == "auto":
        name = "planar"
    if name not in BACKENDS:
        raise ValueError(f"unknown physics backend {name!r}; choose from auto, {', '.join(BACKENDS)}")
    backend = BACKENDS[name]()
    if models is None and (frames is None or tuple(frames) == frame_skips(bodies)):
        return backend.of_bodies(tuple(bodies))
    if not hasattr(backend, "of_models"):
        raise ValueError(f"physics backend {name!r} takes no other bodies than {', '.join(BODIES)}, nor other time steps")
    models = load_models(bodies) if models is None else models
    return backend.of_models(models, frame_skips(bodies) if frames is None else frames)
