"""MuJoCo MJX as a physics backend: both bodies in one compiled program, the arrays in which they differ selected by index."""

import contextlib
import dataclasses
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from tamherd_jax.physics.base import PhysicsState
from tamherd_jax.physics.bodies import BODIES, FRAME_SKIP, body_spec, compile_spec

ITERATIONS = 4
LINE_SEARCH_ITERATIONS = 6
"""As accurate as MJX's own 50 (1e-4 relative velocity error a step against MuJoCo C) in a quarter of the time."""


@functools.cache
def _mjx():
    """The module `mujoco.mjx`, without the lines it prints where Warp is not installed."""
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco import mjx
    return mjx


def _bare_model(body: str) -> mujoco.MjModel:
    """A body with as many geoms as the other, without cameras, lights and textures, in which alone they would differ."""
    spec = body_spec(body)
    if body == "walker":  # the cheetah's torso has a head: a massless sphere at the heart of the walker's stands for it
        spec.body("torso").add_geom(
            name="dummy", type=mujoco.mjtGeom.mjGEOM_CAPSULE, size=[0.01, 0.01, 0], mass=0, contype=1, conaffinity=0
        )
    for element in (*spec.cameras, *spec.lights, *spec.materials, *spec.textures):
        spec.delete(element)
    for geom in spec.geoms:
        geom.material = ""
    spec.option.iterations = ITERATIONS
    spec.option.ls_iterations = LINE_SEARCH_ITERATIONS
    return compile_spec(spec)


def _with_statics_of(model: Any, other: Any) -> Any:
    """`model` with every field that steers tracing (names, sizes, NumPy arrays) taken from `other`, arrays kept."""
    fields = {}
    for field in dataclasses.fields(model):
        mine, theirs = getattr(model, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(mine):
            fields[field.name] = _with_statics_of(mine, theirs)
        elif not isinstance(mine, jax.Array):
            fields[field.name] = theirs
    return model.replace(**fields)


@functools.cache
def _models() -> tuple[Any, tuple[bool, ...]]:
    """One MJX model whose differing leaves are stacked `[2, ...]` over bodies, and which leaves those are."""
    with jax.ensure_compile_time_eval():
        first, second = (_mjx().put_model(_bare_model(body), impl="jax") for body in BODIES)
        # Frames declared aligned are a shortcut in which the bodies differ: without it both are right.
        first = first.replace(**{name: np.zeros_like(getattr(first, name)) for name in ("body_sameframe", "geom_sameframe")})
        second = _with_statics_of(second, first)
        leaves, structure = jax.tree.flatten(first)
        others = jax.tree.leaves(second)
        differs = tuple(not np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
        stacked = [np.stack([a, b]) if d else np.asarray(a) for a, b, d in zip(leaves, others, differs, strict=True)]
    return jax.tree.unflatten(structure, stacked), differs


def _select_model(body: jax.Array) -> Any:
    """The MJX model of one body."""
    model, differs = _models()
    leaves, structure = jax.tree.flatten(model)
    return jax.tree.unflatten(structure, [jnp.asarray(x)[body] if d else x for x, d in zip(leaves, differs, strict=True)])


class MjxPhysics:
    """MJX in JAX, four Newton iterations; runs on every device JAX does."""

    name = "mjx"

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """See `tamherd_jax.physics.base.Physics.step`."""
        mjx, model = _mjx(), _select_model(body)
        data = mjx.make_data(_template(), impl="jax")
        data = data.replace(qpos=state.q, qvel=state.qd, qacc_warmstart=state.warmstart, ctrl=control)
        frames = jnp.asarray(FRAME_SKIP)[body]

        def physics_step(data, frame):
            with jax.numpy_rank_promotion("allow"):  # MJX relies on it
                moved = mjx.step(model, data)
            return jax.tree.map(lambda new, old: jnp.where(frame < frames, new, old), moved, data), None

        data, _ = jax.lax.scan(physics_step, data, jnp.arange(max(FRAME_SKIP)))
        return PhysicsState(q=data.qpos, qd=data.qvel, warmstart=data.qacc_warmstart)


@functools.cache
def _template() -> mujoco.MjModel:
    """A model with the sizes of both, for allocating data."""
    return _bare_model("cheetah")
