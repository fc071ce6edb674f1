"""The two compiled forms of the dynamics: plain XLA for any backend, and one Pallas (Triton) kernel for NVIDIA GPUs.

Both take flat batches, `[B, ...]` with one lane an environment, and trace the same `environment_step`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from tamherd_jax.physics.planar.algebra import Vector
from tamherd_jax.physics.planar.constants import PlanarTree, select_rows
from tamherd_jax.physics.planar.dynamics import SolverOptions, State, environment_step

BLOCK = 128
"""Lanes of a Pallas block, one a GPU thread."""

Batch = tuple[jax.Array, jax.Array, jax.Array]
"""Positions, velocities and guesses, each `[B, dofs]`."""


def xla_step(
    table: PlanarTree, body: jax.Array, state: Batch, control: jax.Array, options: SolverOptions
) -> Batch:
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
    chains, levels = table.chains, table.levels
    lanes = select_rows(table, body, state[0].dtype)
    split = functools.partial(_split, chains=chains, levels=levels)
    start = State(*(split(x.T) for x in state))
    end = environment_step(lambda: lanes, start, split(control.T, root=0), options)
    return tuple(_join(x) for x in end)


def _split(rows: jax.Array, chains: int, levels: int, root: int = 3) -> Vector:
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
    table_values, shapes, treedef = _pack(table, dtype)
    kernel = functools.partial(
        _kernel, shapes=shapes, treedef=treedef, rows=table.rows, lanes=lanes, levels=table.levels, options=options
    )
    result = jax.ShapeDtypeStruct((lanes * dofs,), dtype)
    out = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(lanes, BLOCK),),
        out_shape=[result] * 3,
        interpret=interpret,
        name="planar_environment_step",
        **({} if interpret else _triton_parameters()),
    )(table_values, body.astype(jnp.int32), *(x.reshape(-1) for x in state), control.astype(dtype).reshape(-1))
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


def _indices(shape: tuple[int, ...], strides: tuple[int, ...]) -> jax.Array:
    """`[*shape, 1]` of the offsets of an array's elements."""
    out = jnp.zeros((*shape, 1), jnp.int32)
    for axis, stride in enumerate(strides):
        if shape[axis] > 1:
            out = out + stride * jax.lax.broadcasted_iota(jnp.int32, (*shape, 1), axis)
    return out


def _constants(table_ref, body: jax.Array, shapes: tuple, treedef, rows: int) -> PlanarTree:
    """The lanes' constants, read from the packed table."""
    leaves, first = [], 0
    for shape in shapes:
        strides = tuple(rows * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        where = first * rows + _indices(shape, strides) + body.reshape((1,) * len(shape) + body.shape)
        leaves.append(table_ref[where])
        first += int(np.prod(shape))
    tree = jax.tree.unflatten(treedef, leaves)
    return tree.replace(frames=tree.frames.astype(jnp.int32))


def _kernel(
    table_ref, body_ref, q_ref, v_ref, guess_ref, control_ref, *out_refs, shapes, treedef, rows, lanes, levels, options
):
    """One block: reads its lanes, steps them, writes them."""
    lane = jnp.minimum(pl.program_id(0) * BLOCK + jax.lax.iota(jnp.int32, BLOCK), lanes - 1)
    body = jnp.clip(body_ref[lane], 0, rows - 1)
    constants: Callable[[], PlanarTree] = functools.partial(_constants, table_ref, body, shapes, treedef, rows)
    chains = shapes[-1][0]
    dofs, motors = 3 + chains * levels, chains * levels

    def places(width: int, root: int) -> list[jax.Array]:
        """Flat addresses of a joint-space vector's elements in an array `[lanes, width]`."""
        base = width * lane[None, :]
        hinges = [base + root + level + _indices((chains,), (levels,)) for level in range(levels)]
        return [base + i for i in range(root)] + hinges

    state = State(*(tuple(ref[place] for place in places(dofs, 3)) for ref in (q_ref, v_ref, guess_ref)))
    control = tuple(control_ref[place] for place in places(motors, 0))
    end = environment_step(constants, state, control, options)
    for ref, vector in zip(out_refs, end, strict=True):
        for place, value in zip(places(dofs, 3), vector, strict=True):
            ref[place] = value
