"""MuJoCo MJX as a physics backend: all bodies in one compiled program, the arrays in which they differ selected by index."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from tamherd_jax.physics.base import PhysicsState
from tamherd_jax.physics.bodies import DEFAULT_BODIES, body_spec, common_layout, compile_spec, frame_skips

ITERATIONS = 4
LINE_SEARCH_ITERATIONS = 6
"""As accurate as MJX's own 50 (1e-4 relative velocity error a step against MuJoCo C) in a quarter of the time."""


@functools.cache
def _mjx() -> Any:
    """The module `mujoco.mjx`, without the lines it prints where Warp is not installed."""
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco import mjx
    return mjx


@functools.cache
def _bare_models(bodies: tuple[str, ...]) -> tuple[mujoco.MjModel, ...]:
    """Return the bodies' models with equal numbers of geoms, without cameras, lights and textures."""
    layout = common_layout(bodies)
    specs = [body_spec(body, layout) for body in bodies]
    for links in zip(*(spec.bodies for spec in specs), strict=True):
        most_geoms = max(len(link.geoms) for link in links)
        for link in links:
            for index in range(len(link.geoms), most_geoms):
                _add_dummy_geom(link, index)
    return tuple(_bare_model(spec) for spec in specs)


def _add_dummy_geom(link: Any, index: int) -> None:
    """Add a massless sphere at the link's origin, inside of its other geoms."""
    link.add_geom(
        name=f"dummy-{link.name}-{index}",
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        size=[0.01, 0.01, 0],
        mass=0,
        contype=1,
        conaffinity=0,
        condim=3,
    )


def _bare_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
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
def _models(bodies: tuple[str, ...]) -> tuple[Any, tuple[bool, ...]]:
    """Return one MJX model whose differing leaves are stacked `[N, ...]` over N bodies, and which leaves those are."""
    with jax.ensure_compile_time_eval():
        first, *others = (_mjx().put_model(model, impl="jax") for model in _bare_models(bodies))
        # Frames declared aligned are a shortcut in which the bodies differ: without it all are right.
        first = first.replace(**{name: np.zeros_like(getattr(first, name)) for name in ("body_sameframe", "geom_sameframe")})
        leaves, structure = jax.tree.flatten(first)
        columns = list(zip(leaves, *(jax.tree.leaves(_with_statics_of(other, first)) for other in others), strict=True))
        differs = tuple(not all(np.array_equal(column[0], leaf) for leaf in column[1:]) for column in columns)
        stacked = [np.stack(column) if d else np.asarray(column[0]) for column, d in zip(columns, differs, strict=True)]
    return jax.tree.unflatten(structure, stacked), differs


def _select_model(bodies: tuple[str, ...], body: jax.Array) -> Any:
    """Return the MJX model of one body."""
    model, differs = _models(bodies)
    leaves, structure = jax.tree.flatten(model)
    return jax.tree.unflatten(structure, [jnp.asarray(x)[body] if d else x for x, d in zip(leaves, differs, strict=True)])


class MjxPhysics:
    """MJX in JAX, four Newton iterations; runs on every device JAX does."""

    name = "mjx"

    def __init__(self, bodies: Sequence[str] = DEFAULT_BODIES):
        """Create a backend for bodies by name, which the `body` of `step` selects."""
        self._bodies = tuple(bodies)

    @classmethod
    def of_bodies(cls, bodies: tuple[str, ...]) -> MjxPhysics:
        """Return the backend for bodies by name."""
        return cls(bodies)

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """See `tamherd_jax.types.Physics.step`."""
        mjx, model = _mjx(), _select_model(self._bodies, body)
        data = mjx.make_data(_bare_models(self._bodies)[0], impl="jax")
        data = data.replace(qpos=state.q, qvel=state.qd, qacc_warmstart=state.warmstart, ctrl=control)
        skips = frame_skips(self._bodies)
        frames = jnp.asarray(skips)[body]

        def physics_step(data: Any, frame: jax.Array) -> tuple[Any, None]:
            with jax.numpy_rank_promotion("allow"):  # MJX relies on it
                moved = mjx.step(model, data)
            return jax.tree.map(lambda new, old: jnp.where(frame < frames, new, old), moved, data), None

        data, _ = jax.lax.scan(physics_step, data, jnp.arange(max(skips)))
        return PhysicsState(q=data.qpos, qd=data.qvel, warmstart=data.qacc_warmstart)
