"""The planar dynamics as vector instructions of a CPU: the step of one environment, compiled by `tamherd_jax.simd`."""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax import simd
from tamherd_jax.physics.planar.constants import PlanarTree
from tamherd_jax.physics.planar.dynamics import SolverOptions
from tamherd_jax.physics.planar.kernel import FlatState, is_literal, step_environments, xla_step
from tamherd_jax.physics.planar.literal import LiteralTable

ElementStep = Callable[..., FlatState]
"""One environment's step: `(body [], q [dofs], qd [dofs], guess [dofs], control [motors])`, before them a table that is
data."""


def native_step(table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, options: SolverOptions) -> FlatState:
    """One environment step of a batch; arguments as of `xla_step`, float32 only.

    The Newton iterations of a vector of environments stop when its own environments have converged.

    Raises:
      SimdUnavailableError: where there is no vector code; see `tamherd_jax.simd.availability`.
    """
    arguments = body.astype(jnp.int32), *state, control.astype(jnp.float32)
    if is_literal(table):
        return simd.batched_call(_literal_step(LiteralTable(table), options), *arguments)
    leaves, structure = jax.tree.flatten(table)
    rows = jnp.concatenate([jnp.asarray(leaf, jnp.float32).reshape(table.rows, -1) for leaf in leaves], axis=1)
    shapes = tuple(np.shape(leaf)[1:] for leaf in leaves)
    step = _table_step(structure, shapes, table.chains, table.levels, options)
    return simd.batched_call(step, *arguments, shared=(rows,))


@functools.lru_cache(maxsize=64)
def _literal_step(table: LiteralTable, options: SolverOptions) -> ElementStep:
    """Return the step whose constants are written into the code."""

    def step(body: jax.Array, q: jax.Array, qd: jax.Array, guess: jax.Array, control: jax.Array) -> FlatState:
        batch = xla_step(table.table, body[None], (q[None], qd[None], guess[None]), control[None], options)
        return tuple(x[0] for x in batch)

    return step


@functools.lru_cache(maxsize=64)
def _table_step(
    structure: jax.tree_util.PyTreeDef, shapes: tuple[tuple[int, ...], ...], chains: int, levels: int, options: SolverOptions
) -> ElementStep:
    """Return the step that reads its environment's row of a table `[N, numbers]`, the table's leaves one after another."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def constants(row: jax.Array) -> PlanarTree:
        parts = jnp.split(row, ends[:-1])
        # One environment: a batch axis of 1 at the end, and one of 1 in front of a body's scalars.
        leaves = [part.reshape(*(shape or (1,)), 1) for part, shape in zip(parts, shapes, strict=True)]
        tree = jax.tree.unflatten(structure, leaves)
        return replace(tree, frames=tree.frames.astype(jnp.int32))

    def step(rows: jax.Array, body: jax.Array, q: jax.Array, qd: jax.Array, guess: jax.Array, control: jax.Array) -> FlatState:
        tree = constants(jnp.take(rows, body, axis=0, mode="clip"))
        batch = step_environments(lambda: tree, chains, levels, (q[None], qd[None], guess[None]), control[None], options)
        return tuple(x[0] for x in batch)

    return step


@functools.cache
def report_fallback(reason: str) -> None:
    """Say once why the XLA form runs in place of the native one."""
    logging.getLogger("tamherd_jax").warning("planar physics runs in its slower XLA form: %s", reason)
