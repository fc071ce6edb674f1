"""Linear algebra of a planar tree, written once for any batch: arrays end in the environments B and begin with the chains.

A quantity of the torso has shape `[1, B]`, one of a level of the chains `[C, B]`: all chains at once. A joint-space vector is a
tuple of such arrays (root x, root z, torso pitch, then one array a level of the chains); a joint-space matrix is symmetric and
kept as its lower triangle, a tuple of rows, entry `[i][j]`, j <= i, with the shape of degree of freedom i. Chains do not
couple: a matrix over 3 + C L degrees of freedom is a dense triangle of 3 + L rows here, and eliminating a chain's rows adds up
over the chains when it reaches the root.

Positive rotation is about +y: a lever (x, z) that turns at rate w moves with velocity (w z, -w x).
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ROOT = 3
"""Degrees of freedom of the root: x, z, pitch."""

Vector = tuple[jax.Array, ...]
Matrix = tuple[tuple[jax.Array, ...], ...]


class Planar(NamedTuple):
    """A planar vector."""

    x: jax.Array
    z: jax.Array


class Motion(NamedTuple):
    """Velocity, or acceleration, of a link: its rate of rotation and that of its hinge's place."""

    turn: jax.Array
    x: jax.Array
    z: jax.Array


class Wrench(NamedTuple):
    """Torque about a link's hinge (N m) and force (N)."""

    torque: jax.Array
    x: jax.Array
    z: jax.Array


class Response(NamedTuple):
    """Symmetric 3 x 3 map from a link's `Motion` to a `Wrench`: a rigid body's inertia, or the stiffness of its contacts."""

    turn_turn: jax.Array
    turn_x: jax.Array
    turn_z: jax.Array
    xx: jax.Array
    xz: jax.Array
    zz: jax.Array


def total(values: Iterable[jax.Array]) -> jax.Array:
    """Sum of at least one array."""
    return functools.reduce(operator.add, values)


def to_root(value: jax.Array) -> jax.Array:
    """Sum over the chains: `[C, B]` to `[1, B]`."""
    return value if value.shape[0] == 1 else jnp.expand_dims(jnp.sum(value, axis=0), 0)


def over_points(value: jax.Array) -> jax.Array:
    """Sum over a link's points: `[P, C, B]` to `[C, B]`.

    Points come first, so that in the GPU's kernel, with a thread a chain, all points of a link are one thread's.
    """
    return jnp.sum(value, axis=0)


def dot(a: Vector, b: Vector) -> jax.Array:
    """Inner product of joint-space vectors, `[1, B]`."""
    root = total(x * y for x, y in zip(a[:ROOT], b[:ROOT], strict=True))
    return root + to_root(total(x * y for x, y in zip(a[ROOT:], b[ROOT:], strict=True)))


def axpy(scale: jax.Array | float, a: Vector, b: Vector) -> Vector:
    """`scale * a + b`."""
    return tuple(scale * x + y for x, y in zip(a, b, strict=True))


def matvec(matrix: Matrix, x: Vector) -> Vector:
    """Product of a joint-space matrix and vector."""
    size = len(x)
    out = []
    for i in range(size):
        row = total(matrix[i][j] * x[j] for j in range(i + 1))
        same = ROOT if i < ROOT else size
        if i + 1 < same:
            row = row + total(matrix[k][i] * x[k] for k in range(i + 1, same))
        if i < ROOT:
            row = row + to_root(total(matrix[k][i] * x[k] for k in range(ROOT, size)))
        out.append(row)
    return tuple(out)


class Factor(NamedTuple):
    """`H = L^T D L`: unit lower triangle L (diagonal left out) and the inverse of D; leaves are eliminated first."""

    lower: Matrix
    inverse: Vector


def factor(matrix: Matrix) -> Factor:
    """Factorise a positive definite joint-space matrix, from the leaves of the chains to the root.

    Source: Featherstone, Rigid Body Dynamics Algorithms, 6.5 (the LTL factorisation of a tree's inertia).
    """
    rows = [list(row) for row in matrix]
    size = len(rows)
    lower: list[tuple[jax.Array, ...]] = [()] * size
    inverse: list[jax.Array] = [rows[0][0]] * size
    onto_root: dict[tuple[int, int], list[jax.Array]] = {(i, j): [] for i in range(ROOT) for j in range(i + 1)}
    for k in reversed(range(size)):
        if k == ROOT - 1:
            for (i, j), parts in onto_root.items():
                rows[i][j] = rows[i][j] - to_root(total(parts))
        inverse[k] = 1.0 / rows[k][k]
        lower[k] = tuple(rows[k][j] * inverse[k] for j in range(k))
        for i in range(k):
            for j in range(i + 1):
                update = lower[k][i] * rows[k][j]
                if i < ROOT <= k:
                    onto_root[i, j].append(update)
                else:
                    rows[i][j] = rows[i][j] - update
    return Factor(tuple(lower), tuple(inverse))


def solve(factored: Factor, b: Vector) -> Vector:
    """Solution x of `H x = b`."""
    x, size = list(b), len(b)
    lower, inverse = factored
    for k in reversed(range(ROOT, size)):
        for j in range(ROOT, k):
            x[j] = x[j] - lower[k][j] * x[k]
    for j in range(ROOT):
        x[j] = x[j] - to_root(total(lower[k][j] * x[k] for k in range(ROOT, size)))
    for k in reversed(range(ROOT)):
        for j in range(k):
            x[j] = x[j] - lower[k][j] * x[k]
    x = [value * scale for value, scale in zip(x, inverse, strict=True)]
    for k in range(size):
        for j in range(k):
            x[k] = x[k] - lower[k][j] * x[j]
    return tuple(x)


def link_motions(offsets: Sequence[Planar], rates: Vector) -> list[Motion]:
    """Motion of every link for joint rates `rates`, root to leaves.

    Args:
      offsets: vector from the parent's hinge to that of each chain level, `[C, B]` (m).
      rates: joint-space velocities or accelerations.
    """
    motions = [Motion(rates[2], rates[0], rates[1])]
    for offset, rate in zip(offsets, rates[ROOT:], strict=True):
        parent = motions[-1]
        motions.append(Motion(parent.turn + rate, parent.x + parent.turn * offset.z, parent.z - parent.turn * offset.x))
    return motions


def joint_forces(offsets: Sequence[Planar], wrenches: Sequence[Wrench]) -> Vector:
    """Joint-space forces of a wrench on every link: the transpose of `link_motions`, leaves to root."""
    level = len(wrenches) - 1
    torques: list[jax.Array] = []
    whole = wrenches[level]
    while level > 0:
        torques.append(whole.torque)
        offset = offsets[level - 1]
        carried = Wrench(whole.torque + offset.z * whole.x - offset.x * whole.z, whole.x, whole.z)
        level -= 1
        whole = _onto_parent(wrenches[level], carried, level)
    return (whole.x, whole.z, whole.torque, *reversed(torques))


def joint_matrix(offsets: Sequence[Planar], responses: Sequence[Response]) -> Matrix:
    """Joint-space matrix of a response of every link: `sum J^T K J` over the links (composite rigid bodies).

    Source: Featherstone, Rigid Body Dynamics Algorithms, 6.2, for any symmetric K instead of an inertia.
    """
    composite = list(responses)
    for level in reversed(range(len(offsets))):
        composite[level] = _onto_parent(composite[level], _shift(composite[level + 1], offsets[level]), level)
    root = composite[0]
    rows = [(root.xx,), (root.xz, root.zz), (root.turn_x, root.turn_z, root.turn_turn)]
    for level in range(1, len(composite)):
        torque, force = composite[level].turn_turn, Planar(composite[level].turn_x, composite[level].turn_z)
        column = [torque]
        for offset in reversed(offsets[:level]):
            torque = torque + offset.z * force.x - offset.x * force.z
            column.append(torque)
        rows.append((force.x, force.z, *reversed(column)))
    return tuple(rows)


def _onto_parent(parent: Any, carried: Any, level: int) -> Any:
    """Sum, field by field, of a link's quantity and what its child (its children, for the torso) hand down."""
    gather = to_root if level == 0 else lambda value: value
    return type(parent)(*(own + gather(other) for own, other in zip(parent, carried, strict=True)))


def _shift(response: Response, offset: Planar) -> Response:
    """The same response seen from the parent's hinge, `offset` before the link's own."""
    turn_x = response.turn_x + offset.z * response.xx - offset.x * response.xz
    turn_z = response.turn_z + offset.z * response.xz - offset.x * response.zz
    turn_turn = response.turn_turn + offset.z * (response.turn_x + turn_x) - offset.x * (response.turn_z + turn_z)
    return response._replace(turn_turn=turn_turn, turn_x=turn_x, turn_z=turn_z)
