"""MuJoCo's soft constraints on a planar tree, joint limits and pyramidal contacts, and the Newton solver for them.

The constrained acceleration minimises

    cost(a) = 1/2 (a - a0)^T M (a - a0) + sum over rows of 1/2 D min(0, J a - a_ref)^2

with a0 the unconstrained acceleration. A limit is one row. A contact is four, the edges of its friction pyramid: normal +-
friction times tangent in the plane, and twice the normal alone (the two edges across the plane, where nothing moves).

Source: MuJoCo documentation, "Computation", sections "Constraint model" and "Constraint solver".
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tamherd_jax.physics.planar.algebra import (
    ROOT,
    Matrix,
    Motion,
    Planar,
    Response,
    Vector,
    Wrench,
    axpy,
    dot,
    factor,
    joint_forces,
    joint_matrix,
    link_motions,
    matvec,
    over_points,
    solve,
    to_root,
    total,
)
from tamherd_jax.physics.planar.constants import Drive, Soft

_MIN_COMPLIANCE = 1e-15
_LINE_TOLERANCE = 1e-3
_TINY = 1e-30


class LimitRow(NamedTuple):
    """The nearer limit of each hinge of a level, `[C, B]`: row `sign * a - target`, weight zero inside the range."""

    sign: jax.Array
    weight: jax.Array
    target: jax.Array


class ContactRows(NamedTuple):
    """The contacts of a link, `[P, C, B]`: lever from the hinge (m), friction, weight of an edge (zero in the air), targets."""

    lever: Planar
    friction: jax.Array
    weight: jax.Array
    normal: jax.Array
    tangent: jax.Array


class Constraints(NamedTuple):
    """All rows of a body."""

    limits: tuple[LimitRow, ...]
    contacts: tuple[ContactRows, ...]


class Residual(NamedTuple):
    """`J a - a_ref` (or `J p`) in the coordinates of `Constraints`: a row a limit, normal and friction * tangent a contact."""

    limits: tuple[jax.Array, ...]
    contacts: tuple[tuple[jax.Array, jax.Array], ...]


class Problem(NamedTuple):
    """What the solver minimises: inertia, unconstrained acceleration, constraint rows, and the tree's geometry."""

    inertia: Matrix
    smooth: Vector
    constraints: Constraints
    offsets: tuple[Planar, ...]


def impedance(soft: Soft, depth: jax.Array, quadratic: bool) -> jax.Array:
    """Impedance d(|depth|): a sigmoid from `low` to `high` over `width`.

    Args:
      soft: softness, broadcastable to `depth`.
      depth: constraint violation, of either sign (m or rad).
      quadratic: the power is 2 in every row.
    """
    x = jnp.minimum(jnp.abs(depth) / soft.width, 1.0)
    if quadratic:
        rise, fall = x * x / soft.midpoint, (1.0 - x) * (1.0 - x) / (1.0 - soft.midpoint)
    else:
        rise = soft.midpoint * (x / soft.midpoint) ** soft.power
        fall = (1.0 - soft.midpoint) * ((1.0 - x) / (1.0 - soft.midpoint)) ** soft.power
    return soft.low + jnp.where(x <= soft.midpoint, rise, 1.0 - fall) * (soft.high - soft.low)


def _weight_and_pull(soft: Soft, depth: jax.Array, quadratic: bool) -> tuple[jax.Array, jax.Array]:
    """`D` (zero where the constraint is inactive) and the positional part of the reference acceleration."""
    strength = impedance(soft, depth, quadratic)
    resistance = jnp.maximum((1.0 - strength) / strength * soft.compliance, _MIN_COMPLIANCE)
    return jnp.where(depth < 0, 1.0 / resistance, 0.0), -soft.stiffness * strength * depth


def limit_row(drive: Drive, angle: jax.Array, rate: jax.Array, quadratic: bool) -> LimitRow:
    """Row of a hinge's nearer limit; the farther one is never active, since a range is wider than its margins."""
    above, below = angle - drive.lower, drive.upper - angle
    sign = jnp.where(above < below, 1.0, -1.0).astype(angle.dtype)
    weight, pull = _weight_and_pull(drive.limit, jnp.minimum(above, below) - drive.limit.margin, quadratic)
    return LimitRow(sign, weight, pull - drive.limit.damping * sign * rate)


def contact_rows(
    soft: Soft, friction: jax.Array, lever: Planar, depth: jax.Array, motion: Motion, quadratic: bool
) -> ContactRows:
    """Rows of a link's contacts.

    Args:
      soft: softness `[P, C, B]`.
      friction: `[P, C, B]`.
      lever: from the link's hinge to the contact, which lies half-way through the overlap (m).
      depth: distance to the floor less margin; negative is active (m).
      motion: the link's velocity.
      quadratic: the impedance's power is 2.
    """
    weight, pull = _weight_and_pull(soft, depth, quadratic)
    rows = ContactRows(lever, friction, weight, jnp.zeros_like(depth), jnp.zeros_like(depth))
    normal, tangent = _contact_residual(rows, motion)
    return rows._replace(normal=pull - soft.damping * normal, tangent=-soft.damping * tangent)


def _per_point(link: jax.Array) -> jax.Array:
    """`[C, B]` of a link to `[1, C, B]`, to meet its points."""
    return jnp.expand_dims(link, 0)


def _contact_residual(rows: ContactRows, motion: Motion) -> tuple[jax.Array, jax.Array]:
    """Normal and friction * tangential motion of the contact points, less their targets."""
    turn = _per_point(motion.turn)
    normal = _per_point(motion.z) - turn * rows.lever.x
    tangent = _per_point(motion.x) + turn * rows.lever.z
    return normal - rows.normal, rows.friction * tangent - rows.tangent


def residual(problem: Problem, a: Vector, aim: bool) -> Residual:
    """`J a - a_ref`, or `J a` where `aim` is false."""
    limits, contacts = problem.constraints
    motions = link_motions(problem.offsets, a)
    if not aim:
        limits = tuple(limit._replace(target=jnp.zeros_like(limit.target)) for limit in limits)
        contacts = tuple(
            row._replace(normal=jnp.zeros_like(row.normal), tangent=jnp.zeros_like(row.tangent)) for row in contacts
        )
    return Residual(
        tuple(limit.sign * x - limit.target for limit, x in zip(limits, a[ROOT:], strict=True)),
        tuple(_contact_residual(row, motion) for row, motion in zip(contacts, motions, strict=True)),
    )


Edges = tuple[jax.Array, jax.Array, jax.Array]
"""One `[P, C, B]` a distinct edge of a contact's pyramid: forward, backward, and the (double) one across the plane."""


def _edges(normal: jax.Array, tangent: jax.Array) -> Edges:
    """Edges of a contact's pyramid."""
    return normal + tangent, normal - tangent, normal


def _active(weight: jax.Array, row: jax.Array) -> jax.Array:
    """`D` where the row is violated, else zero; not-a-number counts as satisfied."""
    return jnp.where(row < 0, weight, 0.0)


def _edge_weights(row: ContactRows, edges: Edges) -> Edges:
    """`D` of each edge, twice for the double one."""
    forward, backward, across = edges
    return _active(row.weight, forward), _active(row.weight, backward), _active(2.0 * row.weight, across)


def _over_rows(limits: Sequence[jax.Array], contacts: Sequence[jax.Array]) -> jax.Array:
    """Sum over all rows, `[1, B]`: limits `[C, B]`, contacts `[P, C, B]`, the torso's first."""
    points = [over_points(value) for value in contacts]
    return points[0] + to_root(total(limits) + total(points[1:]))


def cost(problem: Problem, a: Vector) -> jax.Array:
    """The cost of acceleration `a`, `[1, B]`."""
    change = axpy(-1.0, problem.smooth, a)
    limits, contacts = residual(problem, a, aim=True)
    of_limits = [_active(row.weight, r) * r * r for row, r in zip(problem.constraints.limits, limits, strict=True)]
    of_contacts = []
    for contact, r in zip(problem.constraints.contacts, contacts, strict=True):
        edges = _edges(*r)
        of_contacts.append(total(w * e * e for w, e in zip(_edge_weights(contact, edges), edges, strict=True)))
    return 0.5 * (dot(change, matvec(problem.inertia, change)) + _over_rows(of_limits, of_contacts))


def _gradient_and_hessian(problem: Problem, change: Vector, at: Residual) -> tuple[Vector, Matrix]:
    """Derivatives of the cost at `a0 + change`, whose rows are `at`."""
    limits, contacts = problem.constraints
    derivatives = [_contact_derivatives(row, *r) for row, r in zip(contacts, at.contacts, strict=True)]
    forces = joint_forces(problem.offsets, [wrench for wrench, _ in derivatives])
    stiffness = joint_matrix(problem.offsets, [response for _, response in derivatives])
    gradient = list(axpy(1.0, matvec(problem.inertia, change), forces))
    hessian = [[m + k for m, k in zip(*rows, strict=True)] for rows in zip(problem.inertia, stiffness, strict=True)]
    for dof, (limit, r) in enumerate(zip(limits, at.limits, strict=True), start=ROOT):
        weight = _active(limit.weight, r)
        gradient[dof] = gradient[dof] + weight * limit.sign * r
        hessian[dof][dof] = hessian[dof][dof] + weight
    return tuple(gradient), tuple(tuple(row) for row in hessian)


def _contact_derivatives(row: ContactRows, normal: jax.Array, tangent: jax.Array) -> tuple[Wrench, Response]:
    """Sum over a link's points of the cost's gradient (a wrench) and Hessian (a response), about the link's hinge."""
    edges = _edges(normal, tangent)
    forward, backward, across = _edge_weights(row, edges)
    ahead, behind = forward * edges[0], backward * edges[1]
    fx, fz = row.friction * (ahead - behind), ahead + behind + across * edges[2]
    xz = row.friction * (forward - backward)
    xx, zz = row.friction * row.friction * (forward + backward), forward + backward + across
    lever = row.lever
    turn_x, turn_z = lever.z * xx - lever.x * xz, lever.z * xz - lever.x * zz
    turn_turn = lever.z * turn_x - lever.x * turn_z
    wrench = lever.z * fx - lever.x * fz, fx, fz
    response = turn_turn, turn_x, turn_z, xx, xz, zz
    return Wrench(*map(over_points, wrench)), Response(*map(over_points, response))


Search = tuple[jax.Array | int, jax.Array, jax.Array, jax.Array, jax.Array]
"""State of the line search: iterations, which problems run, step length and its bracket, `[1, B]` each but the first."""

Iterate = tuple[jax.Array | int, jax.Array, Vector]
"""State of Newton's method: iterations, which problems run `[1, B]`, acceleration."""


def _line_search(
    problem: Problem, change: Vector, step: Vector, at: Residual, along: Residual, running: jax.Array, iterations: int
) -> jax.Array:
    """Minimiser `[1, B]` of the cost along a step: Newton on its piecewise linear slope, within a bracket.

    Exact up to `_LINE_TOLERANCE`, and wholly so where a single piece spans the step, as in the last Newton step.
    """
    pushed = matvec(problem.inertia, step)
    slope0, curvature0 = dot(pushed, change), dot(pushed, step)
    big = jnp.asarray(jnp.finfo(slope0.dtype).max, slope0.dtype)

    def refine(carry: Search) -> Search:
        count, running, scale, low, high = carry
        slope, curvature = _search_rows(problem.constraints, at, along, scale)
        slope, curvature = slope0 + scale * curvature0 + slope, curvature0 + curvature
        low, high = jnp.where(slope < 0, scale, low), jnp.where(slope < 0, high, scale)
        guess = scale - slope / jnp.maximum(curvature, _TINY)
        middle = jnp.where(high < big, 0.5 * (low + high), 2.0 * scale)
        new = jnp.where((guess >= low) & (guess <= high), guess, middle)
        new = jnp.where(running > 0, new, scale)
        moved = jnp.abs(new - scale) > _LINE_TOLERANCE * new
        return count + 1, jnp.where(moved, running, 0), new, low, high

    one = jnp.ones_like(slope0)
    start: Search = (0, running, one, jnp.zeros_like(one), big * one)
    return lax.while_loop(lambda carry: (carry[0] < iterations) & (jnp.max(carry[1]) > 0), refine, start)[2]


def _search_rows(constraints: Constraints, at: Residual, along: Residual, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slope and curvature `[1, B]` of the constraints' cost at `scale` along a step."""
    limit_slopes, limit_curvatures, slopes, curvatures = [], [], [], []
    for limit, r, p in zip(constraints.limits, at.limits, along.limits, strict=True):
        residual = r + scale * p
        rate = _active(limit.weight, residual) * p
        limit_slopes.append(rate * residual)
        limit_curvatures.append(rate * p)
    for row, start, direction in zip(constraints.contacts, at.contacts, along.contacts, strict=True):
        edges, rates = _edges(*_advance(start, scale, direction)), _edges(*direction)
        weights = _edge_weights(row, edges)
        weighted = [w * q for w, q in zip(weights, rates, strict=True)]
        slopes.append(total(b * e for b, e in zip(weighted, edges, strict=True)))
        curvatures.append(total(b * q for b, q in zip(weighted, rates, strict=True)))
    return _over_rows(limit_slopes, slopes), _over_rows(limit_curvatures, curvatures)


def _advance(
    start: tuple[jax.Array, jax.Array], scale: jax.Array, direction: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Normal and tangent of a link's contacts, `scale` along a step."""
    reach = _per_point(scale)
    return start[0] + reach * direction[0], start[1] + reach * direction[1]


def _switched(constraints: Constraints, at: Residual, along: Residual, scale: jax.Array) -> jax.Array:
    """How many rows `[1, B]` change between violated and satisfied over a step."""

    def changes(weight: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        return jnp.where((weight > 0) & ((before < 0) != (after < 0)), 1.0, 0.0).astype(before.dtype)

    limits = [
        changes(limit.weight, r, r + scale * p) for limit, r, p in zip(constraints.limits, at.limits, along.limits, strict=True)
    ]
    contacts = []
    for row, start, direction in zip(constraints.contacts, at.contacts, along.contacts, strict=True):
        pairs = zip(_edges(*start), _edges(*_advance(start, scale, direction)), strict=True)
        contacts.append(total(changes(row.weight, before, after) for before, after in pairs))
    return _over_rows(limits, contacts)


def _newton_step(
    problem: Problem, a: Vector, running: jax.Array, line_search: int, tolerance: float
) -> tuple[Vector, jax.Array]:
    """One Newton step from `a`, and whether it has arrived: no row switched, or the step was negligible."""
    change = axpy(-1.0, problem.smooth, a)
    at = residual(problem, a, aim=True)
    gradient, hessian = _gradient_and_hessian(problem, change, at)
    step = solve(factor(hessian), tuple(-g for g in gradient))
    along = residual(problem, step, aim=False)
    scale = _line_search(problem, change, step, at, along, running, line_search)
    small = scale * scale * dot(step, step) <= tolerance * tolerance * (1.0 + dot(a, a))
    arrived = small | ~(_switched(problem.constraints, at, along, scale) > 0)
    return axpy(scale, step, a), arrived


def constrained_acceleration(
    problem: Problem, guess: Vector, active: jax.Array, iterations: int, line_search: int, tolerance: float
) -> Vector:
    """Acceleration that minimises the cost, started from the cheaper of the guess and the unconstrained one.

    An environment stops for itself, so that its result does not depend on its neighbours; the loop ends when all have.

    Args:
      problem: the cost.
      guess: last step's constrained acceleration.
      active: `[1, B]` environments to be solved; the others return their starting point.
      iterations: Newton steps at most.
      line_search: steps of the line search.
      tolerance: relative size of a step that counts as none.
    """
    better = cost(problem, guess) < cost(problem, problem.smooth)
    start = tuple(jnp.where(better, g, s) for g, s in zip(guess, problem.smooth, strict=True))

    def unfinished(carry: Iterate) -> jax.Array:
        return (carry[0] < iterations) & (jnp.max(carry[1]) > 0)

    def improve(carry: Iterate) -> Iterate:
        count, running, a = carry
        new, arrived = _newton_step(problem, a, running, line_search, tolerance)
        a = tuple(jnp.where(running > 0, x, y) for x, y in zip(new, a, strict=True))
        return count + 1, jnp.where(arrived, 0, running), a

    first: Iterate = (0, active.astype(jnp.int32), start)
    return lax.while_loop(unfinished, improve, first)[2]
