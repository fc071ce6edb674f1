"""The two compiled forms of the dynamics: plain XLA for any backend, and one Pallas (Triton) kernel for NVIDIA GPUs.

Both take flat batches, `[B, ...]`, and trace the same `environment_step`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from tamherd_jax.physics.planar.algebra import ROOT, Vector
from tamherd_jax.physics.planar.arithmetic import Arithmetic, with_arithmetic
from tamherd_jax.physics.planar.constants import PlanarTree, select_literals, select_rows
from tamherd_jax.physics.planar.dynamics import SolverOptions, State, environment_step

Ref: TypeAlias = Any
"""Pallas reference to a block of memory; Pallas exports no type of it."""

WARP = 32
"""Threads of a block of the kernel: one warp, one thread a chain of an environment, so that a block stops when its own
environments have converged. The same for every batch: sums keep their order, and results their bits."""

TILE = 32
"""Constants of a table that a block of the kernel reads with one load."""

CHUNK = 2048
"""Environments that the XLA form steps at a time on a CPU: 18 us of CPU time a step each, where 8,192 at once took 26."""

FlatState = tuple[jax.Array, ...]
"""Positions, velocities and guesses, each `[B, dofs]`."""


_MOST_LITERAL_ROWS = 4


def is_literal(table: PlanarTree) -> bool:
    """Whether a table is compiled into the program (a few rows of numpy) rather than passed to it as data."""
    return table.rows <= _MOST_LITERAL_ROWS and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(table))


def xla_step(table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, options: SolverOptions) -> FlatState:
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
        constants = select_literals(table, jnp.clip(body, 0, table.rows - 1), dtype)
    else:
        constants = select_rows(table, body, dtype)
    return step_environments(lambda: constants, table.chains, table.levels, state, control, options)


def step_environments(
    constants: Callable[[], PlanarTree], chains: int, levels: int, state: FlatState, control: jax.Array, options: SolverOptions
) -> FlatState:
    """`environment_step` of a batch in rows, `[B, dofs]` and `[B, motors]`, of trees with so many chains of so many links."""
    split = functools.partial(_split, chains=chains, levels=levels)
    start = State(*(split(x.T) for x in state))
    end = environment_step(constants, start, split(control.T, root=0), options)
    return tuple(_join(x) for x in end)


def chunked_step(table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, options: SolverOptions) -> FlatState:
    """`xla_step` on `CHUNK` environments after another, whose arrays stay in a CPU's cache; arguments as of `xla_step`."""
    count = body.shape[0]
    if count <= CHUNK:
        return xla_step(table, body, state, control, options)
    chunks = -(-count // CHUNK)
    place = jnp.minimum(jnp.arange(chunks * CHUNK), count - 1).reshape(chunks, CHUNK)
    parts = jax.tree.map(lambda x: x[place], (body, state, control))
    out = jax.lax.map(lambda part: xla_step(table, part[0], part[1], part[2], options), parts)
    return tuple(x.reshape(chunks * CHUNK, -1)[:count] for x in out)


def _split(rows: jax.Array, chains: int, levels: int, root: int = ROOT) -> Vector:
    """`[root + C L, B]`, chain after chain, to a joint-space vector: `[1, B]` a root row, `[C, B]` a level."""
    hinges = rows[root:].reshape(chains, levels, -1)
    return (*(rows[i : i + 1] for i in range(root)), *(hinges[:, level] for level in range(levels)))


def _join(vector: Vector) -> jax.Array:
    """The inverse of `_split`, transposed: `[B, 3 + C L]`."""
    hinges = jnp.stack(vector[3:], axis=1)
    return jnp.concatenate([*vector[:3], hinges.reshape(-1, hinges.shape[-1])]).T


def pallas_step(
    table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, options: SolverOptions, interpret: bool = False
) -> FlatState:
    """One environment step of a batch, as one kernel of a warp a block; arguments as of `xla_step`.

    A block loads its environments at once and stores them at once: compilation walks the kernel for every load and store. The
    last block is padded with states of zeros, and rows by one element: an odd stride keeps Triton from giving a thread several
    neighbours of a row. Products and sums are fused and divisions accurate (see `arithmetic.py`), but not where the kernel is
    interpreted.

    Raises:
      ValueError: for a number of chains that is not a power of two up to `WARP`, which Triton's arrays must be.
    """
    chains, levels = table.chains, table.levels
    if not kernel_can(table):
        raise ValueError(f"the Pallas form needs a power of two of chains, not {chains}: use form='xla'")
    size, dtype = body.shape[0], state[0].dtype
    block = WARP // chains
    rows = _pack_batch(table, body, state, control, -size % block + 1)
    tables, read = _constants(table, dtype)
    out_rows = _power_of_two(3 * (ROOT + levels))
    out = pl.pallas_call(
        functools.partial(_kernel, read, levels, options, None if interpret else _GPU_ARITHMETIC),
        grid=(rows.shape[-1] // block,),
        in_specs=[*map(_whole, tables), _block_of(rows.shape[0], chains, block)],
        out_specs=_block_of(out_rows, chains, block),
        out_shape=jax.ShapeDtypeStruct((out_rows, *rows.shape[1:]), dtype),
        interpret=interpret,
        name="planar_environment_step",
        **({} if interpret else _triton_parameters()),
    )(*tables, rows)
    return tuple(_join(vector) for vector in _vectors(out[..., :size], levels))


def gpu_step(table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, options: SolverOptions) -> FlatState:
    """`pallas_step` of trees that the kernel can step, `xla_step` of others."""
    return (pallas_step if kernel_can(table) else xla_step)(table, body, state, control, options)


def kernel_can(table: PlanarTree) -> bool:
    """Whether the Pallas form steps such trees: Triton's arrays have sizes that are powers of two."""
    return table.chains <= WARP and _power_of_two(table.chains) == table.chains


def _power_of_two(n: int) -> int:
    """The least power of two that is not less than `n`."""
    return 1 << (n - 1).bit_length()


def _whole(array: jax.Array) -> pl.BlockSpec:
    """The whole of a flat array, for every block."""
    return pl.BlockSpec(array.shape, lambda i: (0,))


def _block_of(rows: int, chains: int, block: int) -> pl.BlockSpec:
    """All rows `[rows, C, block]` of a block's environments."""
    return pl.BlockSpec((rows, chains, block), lambda i: (0, 0, i))


def _pack_batch(table: PlanarTree, body: jax.Array, state: FlatState, control: jax.Array, extra: int) -> jax.Array:
    """Everything that a step reads, `[rows, C, B + extra]`: joint-space vectors, controls and the body, a row a level.

    A root row, or the body, is the same in all chains; rows of zeros make their number a power of two.
    """
    chains, levels, dtype = table.chains, table.levels, state[0].dtype
    vectors = [_split(x.T, chains, levels) for x in state]
    rows = [row for vector in (*vectors, _split(control.astype(dtype).T, chains, levels, root=0)) for row in vector]
    rows.append(jnp.clip(body, 0, table.rows - 1).astype(dtype)[None])
    full = jnp.stack([jnp.broadcast_to(row, (chains, body.shape[0])) for row in rows])
    return jnp.pad(full, ((0, _power_of_two(len(rows)) - len(rows)), (0, 0), (0, extra)))


def _vectors(rows: Sequence[jax.Array] | jax.Array, levels: int) -> list[Vector]:
    """Three joint-space vectors from their rows `[C, B]`."""
    size = ROOT + levels
    starts = range(0, 3 * size, size)
    return [(*(rows[at + i][:1] for i in range(ROOT)), *(rows[at + i] for i in range(ROOT, size))) for at in starts]


def _constants(table: PlanarTree, dtype: jnp.dtype) -> tuple[tuple[jax.Array, ...], Callable[..., PlanarTree]]:
    """What the kernel reads of a table (nothing where it is compiled in), and what reads a block's constants from it."""
    if is_literal(table):
        return (), functools.partial(_write_table, table, dtype)
    packed, read = _pack_table(table, dtype)
    return (packed,), read


def _pack_table(table: PlanarTree, dtype: jnp.dtype) -> tuple[jax.Array, Callable[..., PlanarTree]]:
    """The table as one array `[tiles * TILE * C * N]`, and what reads the constants of a block's environments from it.

    A constant has a number a chain and body: those of the torso and of the whole tree repeat theirs for every chain, and what
    has contact points is a constant a point.
    """
    leaves, treedef = jax.tree.flatten(table)
    shapes = tuple((1, 1, *np.shape(leaf)[1:], *(() if np.ndim(leaf) > 1 else (1,)))[-2:] for leaf in leaves)
    full = [
        jnp.broadcast_to(jnp.asarray(leaf, dtype).reshape(-1, *shape), (table.rows, shape[0], table.chains))
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]
    constants = jnp.concatenate(full, axis=1).transpose(1, 2, 0)
    padded = jnp.pad(constants, ((0, -constants.shape[0] % TILE), (0, 0), (0, 0)))
    pointed = tuple(np.ndim(leaf) == 3 for leaf in leaves)
    return padded.reshape(-1), functools.partial(_read_table, tuple(zip(shapes, pointed, strict=True)), treedef, table)


def _write_table(table: PlanarTree, dtype: jnp.dtype, table_refs: Sequence[Ref], body: jax.Array) -> PlanarTree:
    """The environments' constants as literals; there is no table to read."""
    del table_refs
    return select_literals(table, body, dtype)


def _read_table(
    shapes: Sequence[tuple[tuple[int, int], bool]],
    treedef: jax.tree_util.PyTreeDef,
    table: PlanarTree,
    table_refs: Sequence[Ref],
    body: jax.Array,
) -> PlanarTree:
    """The environments' constants, `TILE` a load: fields `[1, B]`, `[C, B]` and, where they have points, `[P, C, B]`."""
    chains, bodies, count = table.chains, table.rows, sum(shape[0] for shape, _ in shapes)
    row, chain = (jax.lax.broadcasted_iota(jnp.int32, (TILE, chains, body.shape[0]), axis) for axis in (0, 1))
    place = (row * chains + chain) * bodies + body[None, None]
    tiles = [table_refs[0][place + first * chains * bodies] for first in range(0, count, TILE)]
    leaves, at = [], 0
    for (points, own), pointed in shapes:
        rows = [_row(tiles[i // TILE], i % TILE) for i in range(at, at + points)]
        rows = [_one(value) for value in rows] if own == 1 else rows
        leaves.append(_with_points(rows) if pointed else rows[0])
        at += points
    tree = jax.tree.unflatten(treedef, leaves)
    return replace(tree, frames=tree.frames.astype(jnp.int32))


def _kernel(
    read: Callable[[Sequence[Ref], jax.Array], PlanarTree],
    levels: int,
    options: SolverOptions,
    arithmetic: Arithmetic | None,
    *refs: Ref,
) -> None:
    """One block: reads its environments, steps them, writes them."""
    *table_refs, in_ref, out_ref = refs
    tile = in_ref[...]
    size = ROOT + levels
    rows = [_row(tile, i) for i in range(3 * size + levels + 1)]
    state = State(*(_with_one_root(rows[i * size : (i + 1) * size]) for i in range(3)))
    body = _one(rows[-1])[0].astype(jnp.int32)
    constants = functools.partial(read, table_refs, body)

    def step(state: State, control: Vector) -> State:
        return environment_step(constants, state, control, options)

    end = (step if arithmetic is None else with_arithmetic(step, arithmetic))(state, tuple(rows[3 * size : -1]))
    out = jnp.zeros(out_ref.shape, out_ref.dtype)
    row = jax.lax.broadcasted_iota(jnp.int32, out.shape, 0)
    for i, value in enumerate(value for vector in end for value in vector):
        out = jnp.where(row == i, jnp.broadcast_to(value, out.shape[1:])[None], out)
    out_ref[...] = out


def _row(tile: jax.Array, i: int) -> jax.Array:
    """`tile[i]` of `[rows, C, B]`, by a sum that a compiler folds away: x + -0.0 is x."""
    row = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0)
    return jnp.sum(jnp.where(row == i, tile, jnp.asarray(-0.0, tile.dtype)), axis=0)


def _one(value: jax.Array) -> jax.Array:
    """The first row `[1, B]` of `[C, B]`."""
    chain = jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
    return jnp.sum(jnp.where(chain == 0, value, jnp.asarray(-0.0, value.dtype)), axis=0, keepdims=True)


def _with_one_root(rows: Sequence[jax.Array]) -> Vector:
    """A joint-space vector from rows `[C, B]`."""
    return (*(_one(row) for row in rows[:ROOT]), *rows[ROOT:])


def _with_points(rows: Sequence[jax.Array]) -> jax.Array:
    """`[P, C, B]` from a `[C, B]` a point."""
    shape = (len(rows), *rows[0].shape)
    point = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    out = jnp.broadcast_to(rows[0][None], shape)
    for i, row in enumerate(rows[1:], start=1):
        out = jnp.where(point == i, row[None], out)
    return out


def _triton_parameters() -> dict[str, Any]:
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=1, num_stages=1)}


_PTX_DIVIDE = """{
    .reg .f32 r, e, q;
    rcp.approx.f32 r, $2;
    neg.f32 e, $2;
    fma.rn.f32 q, e, r, 0f3F800000;
    fma.rn.f32 r, r, q, r;
    mul.rn.f32 q, $1, r;
    fma.rn.f32 e, e, q, $1;
    fma.rn.f32 $0, e, r, q;
}"""
"""`a / b` of normal float32 numbers, correctly rounded but for rare last bits: a Newton step each for 1 / b and for a / b."""

_PTX = {
    "float32": ("f", "fma.rn.f32 $0, $1, $2, $3;", _PTX_DIVIDE),
    "float64": ("d", "fma.rn.f64 $0, $1, $2, $3;", "div.rn.f64 $0, $1, $2;"),
}


def _ptx(which: int, *operands: jax.Array) -> jax.Array:
    """An operation of `_PTX` on arrays of one shape and dtype."""
    from jax.experimental.pallas import triton

    letter, operation = _PTX[operands[0].dtype.name][0], _PTX[operands[0].dtype.name][which]
    kinds = ",".join([f"={letter}", *(letter for _ in operands)])
    result = jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)
    return triton.elementwise_inline_asm(operation, args=operands, constraints=kinds, pack=1, result_shape_dtypes=[result])[0]


_GPU_ARITHMETIC = Arithmetic(functools.partial(_ptx, 1), functools.partial(_ptx, 2))
