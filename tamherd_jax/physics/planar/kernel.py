"""The two compiled forms of the dynamics: plain XLA for any backend, and one Pallas (Triton) kernel for NVIDIA GPUs.

Both take flat batches, `[B, ...]` with one lane an environment, and trace the same `environment_step`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from tamherd_jax.physics.planar.algebra import ROOT, Vector
from tamherd_jax.physics.planar.constants import PlanarTree, flat_indices, select_literals, select_rows
from tamherd_jax.physics.planar.dynamics import SolverOptions, State, environment_step

BLOCK = 32
"""Lanes of a Pallas block: one warp, one lane a thread, so that a block stops when its own lanes have converged."""

CHUNK = 2048
"""Lanes that the XLA form steps at a time on a CPU: 18 us of CPU time an environment step, where 8,192 at once took 26."""

Batch = tuple[jax.Array, ...]
"""Positions, velocities and guesses, each `[B, dofs]`."""


_MOST_LITERAL_ROWS = 4


def is_literal(table: PlanarTree) -> bool:
    """Whether a table is compiled into the program (a few rows of numpy) rather than passed to it as data."""
    return table.rows <= _MOST_LITERAL_ROWS and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(table))


def xla_step(table: PlanarTree, body: jax.Array, state: Batch, control: jax.Array, options: SolverOptions) -> Batch:
    """One environment step of a batch, as elementwise XLA operations.

    Args:
      table: constants of N bodies.
      body: `[B]` int32 rows of the table.
      state: positions, velocities, guesses, `[B, dofs]`.
      control: `[B, motors]`.
      options: of the solver.

    Returns:
      The next state, in the dtype of the positions.
    """
    dtype = state[0].dtype
    if is_literal(table):
        lanes = select_literals(table, jnp.clip(body, 0, table.rows - 1), dtype)
    else:
        lanes = select_rows(table, body, dtype)
    return step_environments(lambda: lanes, table.chains, table.levels, state, control, options)


def step_environments(
    constants: Callable[[], PlanarTree], chains: int, levels: int, state: Batch, control: jax.Array, options: SolverOptions
) -> Batch:
    """`environment_step` of a batch in rows, `[B, dofs]` and `[B, motors]`, of trees with so many chains of so many links."""
    split = functools.partial(_split, chains=chains, levels=levels)
    start = State(*(split(x.T) for x in state))
    end = environment_step(constants, start, split(control.T, root=0), options)
    return tuple(_join(x) for x in end)


def chunked_step(table: PlanarTree, body: jax.Array, state: Batch, control: jax.Array, options: SolverOptions) -> Batch:
    """`xla_step` on `CHUNK` lanes after another, whose arrays stay in a CPU's cache; arguments as of `xla_step`."""
    lanes = body.shape[0]
    if lanes <= CHUNK:
        return xla_step(table, body, state, control, options)
    chunks = -(-lanes // CHUNK)
    place = jnp.minimum(jnp.arange(chunks * CHUNK), lanes - 1).reshape(chunks, CHUNK)
    parts = jax.tree.map(lambda x: x[place], (body, state, control))
    out = jax.lax.map(lambda part: xla_step(table, part[0], part[1], part[2], options), parts)
    return tuple(x.reshape(chunks * CHUNK, -1)[:lanes] for x in out)


def _split(rows: jax.Array, chains: int, levels: int, root: int = ROOT) -> Vector:
    """`[root + C L, B]`, chain after chain, to a joint-space vector: `[1, B]` a root row, `[C, B]` a level."""
    hinges = rows[root:].reshape(chains, levels, -1)
    return (*(rows[i : i + 1] for i in range(root)), *(hinges[:, level] for level in range(levels)))


def _join(vector: Vector) -> jax.Array:
    """The inverse of `_split`, transposed: `[B, 3 + C L]`."""
    hinges = jnp.stack(vector[3:], axis=1)
    return jnp.concatenate([*vector[:3], hinges.reshape(-1, hinges.shape[-1])]).T


def pallas_step(
    table: PlanarTree, body: jax.Array, state: Batch, control: jax.Array, options: SolverOptions, interpret: bool = False
) -> Batch:
    """One environment step of a batch, as one kernel of `BLOCK` lanes a block; arguments as of `xla_step`.

    The last block's surplus lanes repeat the batch's last one. Constants are read from the table where they are used: a
    thread has not the registers to keep them.

    Raises:
      ValueError: for a number of chains that is not a power of two, which Triton's arrays must be.
    """
    if table.chains & (table.chains - 1):
        raise ValueError(f"the Pallas form needs a power of two of chains, not {table.chains}: use form='xla'")
    lanes, dofs = state[0].shape
    dtype = state[0].dtype
    arguments = [body.astype(jnp.int32), *(x.reshape(-1) for x in state), control.astype(dtype).reshape(-1)]
    if is_literal(table):
        read = functools.partial(_write_table, table, dtype)
    else:
        packed, shapes, treedef = _pack(table, dtype)
        read = functools.partial(_read_table, shapes, treedef, table.rows)
        arguments = [packed, *arguments]
    kernel = functools.partial(_kernel, read, table.chains, table.levels, table.rows, lanes, options)
    out = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(lanes, BLOCK),),
        out_shape=[jax.ShapeDtypeStruct((lanes * dofs,), dtype)] * 3,
        interpret=interpret,
        name="planar_environment_step",
        **({} if interpret else _triton_parameters()),
    )(*arguments)
    return tuple(x.reshape(lanes, dofs) for x in out)


def _triton_parameters() -> dict:
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=BLOCK // 32, num_stages=1)}


def _pack(table: PlanarTree, dtype: jnp.dtype) -> tuple[jax.Array, tuple, jax.tree_util.PyTreeDef]:
    """The table as one array `[K N]` (a constant's rows are neighbours), and the lane shape of each field."""
    leaves, treedef = jax.tree.flatten(table)
    values = [jnp.asarray(leaf, dtype).reshape(table.rows, -1).T.reshape(-1) for leaf in leaves]
    shapes = tuple(np.shape(leaf)[1:] or (1,) for leaf in leaves)
    return jnp.concatenate(values), shapes, treedef


def _write_table(table: PlanarTree, dtype: jnp.dtype, table_refs: Sequence, body: jax.Array) -> PlanarTree:
    """The lanes' constants as literals; there is no table to read."""
    del table_refs
    return select_literals(table, body, dtype)


def _read_table(shapes: tuple, treedef: Any, rows: int, table_refs: Sequence, body: jax.Array) -> PlanarTree:
    """The lanes' constants, read from the packed table."""
    leaves, first = [], 0
    for shape in shapes:
        where = rows * (first + flat_indices(shape)) + body.reshape((1,) * len(shape) + body.shape)
        leaves.append(table_refs[0][where])
        first += int(np.prod(shape))
    tree = jax.tree.unflatten(treedef, leaves)
    return replace(tree, frames=tree.frames.astype(jnp.int32))


def _kernel(read: Callable, chains: int, levels: int, rows: int, lanes: int, options: SolverOptions, *refs) -> None:
    """One block: reads its lanes, steps them, writes them."""
    *table_refs, body_ref, q_ref, v_ref, guess_ref, control_ref = refs[:-3]
    lane = jnp.minimum(pl.program_id(0) * BLOCK + jax.lax.iota(jnp.int32, BLOCK), lanes - 1)
    body = jnp.minimum(jnp.maximum(body_ref[lane], 0), rows - 1)
    hinges = levels * flat_indices((chains,))

    def places(root: int) -> list[jax.Array]:
        """Flat addresses of a joint-space vector's elements, in an array `[lanes, root + C L]`."""
        base = (root + chains * levels) * lane[None, :]
        return [base + i for i in range(root)] + [base + (root + level) + hinges for level in range(levels)]

    state = State(*(tuple(ref[place] for place in places(ROOT)) for ref in (q_ref, v_ref, guess_ref)))
    control = tuple(control_ref[place] for place in places(0))
    end = environment_step(functools.partial(read, table_refs, body), state, control, options)
    for ref, vector in zip(refs[-3:], end, strict=True):
        for place, value in zip(places(ROOT), vector, strict=True):
            ref[place] = value
