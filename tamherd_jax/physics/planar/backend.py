"""The planar dynamics as a physics backend: one flat kernel call, whatever `vmap`s it stands under."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_batching

from tamherd_jax import simd
from tamherd_jax.physics.base import PhysicsState
from tamherd_jax.physics.bodies import DEFAULT_BODIES, frame_skips, load_models
from tamherd_jax.physics.planar.constants import PlanarTree, read_tree, stack_trees
from tamherd_jax.physics.planar.dynamics import SolverOptions
from tamherd_jax.physics.planar.kernel import FlatState, chunked_step, gpu_step, is_literal, pallas_step, xla_step
from tamherd_jax.physics.planar.literal import LiteralTable
from tamherd_jax.physics.planar.native import native_step, report_fallback
from tamherd_jax.physics.planar.platforms import Step, step_by_platform
from tamherd_jax.types import PyTree

FORMS = ("auto", "native", "xla", "pallas", "pallas-interpret")

FORM_VARIABLE = "TAMHERD_PLANAR_FORM"
"""Environment variable that names the form which `"auto"` takes."""


@functools.cache
def body_table(bodies: tuple[str, ...] = DEFAULT_BODIES) -> PlanarTree:
    """Return the constants of bodies by name, a row each, padded to their common layout."""
    return stack_trees([read_tree(model, n) for model, n in zip(load_models(bodies), frame_skips(bodies), strict=True)])


def planar_step(
    table: PlanarTree,
    body: jax.Array,
    state: FlatState,
    control: jax.Array,
    options: SolverOptions | None = None,
    form: str = "auto",
) -> FlatState:
    """One environment step of a flat batch of planar trees. Under `vmap` the new axis joins the batch.

    Args:
      table: constants of N bodies. JAX arrays are data (and may be batched under `vmap`, which appends rows); a few rows of
        numpy arrays, as `read_tree` makes them, are compiled into the program, which is faster.
      body: `[B]` int32 row of each environment.
      state: positions, velocities and solver guesses, each `[B, dofs]` (m, rad, s); float32 or float64.
      control: `[B, motors]`, clipped to each motor's range.
      options: of the solver; Euler by default.
      form: `"native"` (vector instructions of a CPU, float32), `"xla"`, `"pallas"` (NVIDIA GPUs), `"pallas-interpret"` (slow,
        for tests) or `"auto"`: the kernel where the program runs on an NVIDIA GPU, native where JAX has CPUs only, XLA
        elsewhere. The environment variable `TAMHERD_PLANAR_FORM` replaces `"auto"`.

    Returns:
      The next positions, velocities and guesses. An environment with a non-finite number, before or after, is all NaN.

    Raises:
      ValueError: for an unknown form, shapes that do not fit the table, or a tree that the kernel cannot do.
      SimdUnavailableError: if the native form is asked for by name where there is none.
    """
    form = _known_form(form)
    count = body.shape[0] if body.ndim == 1 else None
    found = tuple(x.shape for x in (*state, control))
    wanted = ((count, table.dofs),) * 3 + ((count, table.motors),)
    if found != wanted:
        raise ValueError(f"state and control have shapes {found}; this table needs {wanted}")
    arguments = body.astype(jnp.int32), tuple(state), control
    if is_literal(table):
        return _batchable(options or SolverOptions(), form, LiteralTable(table))(None, *arguments)
    return _batchable(options or SolverOptions(), form, None)(table, *arguments)


@functools.lru_cache(maxsize=64)
def _batchable(options: SolverOptions, form: str, literal: LiteralTable | None) -> Callable[..., FlatState]:
    """The flat step with a batching rule that folds a new axis into the environments; a literal table is not an argument."""
    flat_step = _steps(options, form, literal)

    @custom_batching.custom_vmap
    def step(table: PyTree, body: jax.Array, state: FlatState, control: jax.Array) -> FlatState:
        return flat_step(table, body, state, control)

    @step.def_vmap
    def fold(
        size: int, batched: PyTree, table: PyTree, body: jax.Array, state: FlatState, control: jax.Array
    ) -> tuple[FlatState, tuple[bool, bool, bool]]:
        table_batched, *lanes_batched = batched
        body, state, control = jax.tree.map(
            lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape)),
            (body, state, control),
            tuple(lanes_batched),
        )
        if any(jax.tree.leaves(table_batched)):
            table, rows = _merge_tables(table, table_batched, size)
            body = jnp.clip(body, 0, rows - 1) + rows * jnp.arange(size, dtype=body.dtype)[:, None]
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (body, state, control))
        out = step(table, *flat)
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), (True, True, True)

    return step


def _merge_tables(table: PlanarTree, batched: PlanarTree, size: int) -> tuple[PlanarTree, int]:
    """One table of `size * N` rows from a table some of whose fields have a leading axis `[size]`, and N."""
    full = jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (size, *jnp.shape(x))), table, batched)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), full), full.timestep.shape[1]


def _known_form(form: str) -> str:
    """Return the form that is meant, `"auto"` replaced by the environment variable's."""
    named = os.environ.get(FORM_VARIABLE) or form if form == "auto" else form
    if named not in FORMS:
        origin = "" if named == form else f" in {FORM_VARIABLE}"
        raise ValueError(f"unknown form {named!r}{origin}; the forms are {', '.join(FORMS)}")
    return named


def _cpu_step(table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, options: SolverOptions) -> FlatState:
    """What `"auto"` means on a CPU: the native form in float32; says once why it is not the native form."""
    reason = simd.availability()
    if reason:
        report_fallback(reason)
    step = chunked_step if reason or state[0].dtype != jnp.float32 else native_step
    return step(table, body, state, control, options)


def _steps(options: SolverOptions, form: str, literal: LiteralTable | None) -> Step:
    """The chosen form of a flat batch's step; a literal table takes the place of its argument."""

    def of(step: Callable[..., FlatState], **how: Any) -> Step:
        return lambda table, *batch: step(literal.table if literal else table, *batch, options, **how)

    if form == "pallas-interpret":
        return of(pallas_step, interpret=True)
    if form == "native":
        return of(native_step)
    if form == "pallas":
        return step_by_platform({}, of(pallas_step))
    if form == "xla":
        return step_by_platform({"cpu": of(chunked_step)}, of(xla_step))
    return step_by_platform({"cpu": of(_cpu_step), "cuda": of(gpu_step)}, of(xla_step))


class PlanarPhysics:
    """MuJoCo's dynamics of planar trees, compiled for the accelerator. See `planar_step` for the forms."""

    name = "planar"

    def __init__(self, form: str = "auto", options: SolverOptions | None = None, table: PlanarTree | None = None):
        """A backend for the bodies of `table`, by default the paper's.

        Args:
          form: see `planar_step`.
          options: of the solver.
          table: constants, whose rows the `body` of `step` selects.

        Raises:
          ValueError: for an unknown form.
        """
        self.form = _known_form(form)
        self.options = options or SolverOptions()
        self.table = body_table() if table is None else table

    @classmethod
    def of_bodies(cls, bodies: tuple[str, ...]) -> "PlanarPhysics":
        """Return the backend for bodies by name."""
        return cls(table=body_table(bodies))

    @classmethod
    def of_models(cls, models: Sequence[Any], frames: Sequence[int]) -> "PlanarPhysics":
        """The backend for other bodies, compiled MuJoCo models with their physics steps per environment step."""
        return cls(table=stack_trees([read_tree(model, n) for model, n in zip(models, frames, strict=True)]))

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """See `tamherd_jax.physics.base.Physics.step`."""
        batch = tuple(jnp.asarray(x)[None] for x in (state.q, state.qd, state.warmstart))
        out = planar_step(self.table, jnp.asarray(body)[None], batch, jnp.asarray(control)[None], self.options, self.form)
        return PhysicsState(q=out[0][0], qd=out[1][0], warmstart=out[2][0])
