"""The dynamics of a planar tree, elementwise over a batch: kinematics, forces, and one environment step.

The same functions are traced into the XLA form and into the Pallas kernel (`kernel.py`). Shapes and sign conventions are
those of `algebra.py`. Joint coordinates are in the sense of a rotation about +y throughout; `to_planar` turns MuJoCo's, whose
hinges may point along -y, into these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tamherd_jax.physics.planar.algebra import (
    Matrix,
    Planar,
    Response,
    Vector,
    Wrench,
    axpy,
    factor,
    joint_forces,
    joint_matrix,
    link_motions,
    solve,
    to_root,
    total,
)
from tamherd_jax.physics.planar.constants import PlanarTree
from tamherd_jax.physics.planar.constraints import Constraints, Problem, constrained_acceleration, contact_rows, limit_row

INTEGRATORS = ("euler", "rk4")


@dataclass(frozen=True)
class SolverOptions:
    """How a physics step is taken.

    Attributes:
      integrator: `"euler"` (semi-implicit, joint damping implicit) or `"rk4"` (as gymnasium's Walker2d).
      iterations: Newton steps at most; an environment whose active set no longer changes has converged and stops before.
      line_search: steps of the exact line search.
    """

    integrator: str = "euler"
    iterations: int = 12
    line_search: int = 4

    def __post_init__(self) -> None:
        if self.integrator not in INTEGRATORS:
            raise ValueError(f"unknown integrator {self.integrator!r}; the integrators are {', '.join(INTEGRATORS)}")
        if self.iterations < 1 or self.line_search < 1:
            raise ValueError("iterations and line_search must be at least 1")


class Pose(NamedTuple):
    """Places of the links at some joint coordinates.

    Attributes:
      cos, sin: of each link's pitch.
      offsets: from the parent's hinge to each chain level's (m).
      coms: from each link's hinge to its centre of mass (m).
      heights: of each link's hinge (m).
    """

    cos: tuple[jax.Array, ...]
    sin: tuple[jax.Array, ...]
    offsets: tuple[Planar, ...]
    coms: tuple[Planar, ...]
    heights: tuple[jax.Array, ...]


class State(NamedTuple):
    """Positions, velocities and the solver's guess of a batch, each a joint-space vector."""

    q: Vector
    v: Vector
    guess: Vector


def _rotate(cos: jax.Array, sin: jax.Array, x: jax.Array, z: jax.Array) -> Planar:
    return Planar(cos * x + sin * z, cos * z - sin * x)


def kinematics(tree: PlanarTree, q: Vector) -> Pose:
    """Pose of every link. Root x moves nothing that matters and is left out, which spares float32 its digits."""
    cos: list[jax.Array] = []
    sin: list[jax.Array] = []
    offsets, coms = [], []
    heights = [q[1] + tree.links[0].anchor_z]
    pitch = jnp.zeros_like(q[2])
    for level, link in enumerate(tree.links):
        if level > 0:
            offsets.append(_rotate(cos[-1], sin[-1], link.anchor_x, link.anchor_z))
            heights.append(heights[-1] + offsets[-1].z)
        pitch = pitch + (q[2 + level] + link.angle)
        cos.append(jnp.cos(pitch))
        sin.append(jnp.sin(pitch))
        coms.append(_rotate(cos[-1], sin[-1], link.com_x, link.com_z))
    return Pose(tuple(cos), tuple(sin), tuple(offsets), tuple(coms), tuple(heights))


def inertia_matrix(tree: PlanarTree, pose: Pose) -> Matrix:
    """Joint-space inertia M(q), armature included (composite rigid bodies)."""
    responses = []
    for link, com in zip(tree.links, pose.coms, strict=True):
        about_hinge = link.inertia + link.mass * (com.x * com.x + com.z * com.z)
        zero = jnp.zeros_like(about_hinge)
        mass = zero + link.mass
        responses.append(Response(about_hinge, link.mass * com.z, -link.mass * com.x, mass, zero, mass))
    armatures = (tree.slide_x.armature, tree.slide_z.armature, *(link.hinge.armature for link in tree.links))
    return add_diagonal(joint_matrix(pose.offsets, responses), armatures)


def add_diagonal(matrix: Matrix, diagonal: Vector) -> Matrix:
    """`matrix + diag(diagonal)`."""
    return tuple((*row[:-1], row[-1] + extra) for row, extra in zip(matrix, diagonal, strict=True))


def bias_forces(tree: PlanarTree, pose: Pose, v: Vector) -> Vector:
    """Joint-space forces c(q, v) that hold the tree at zero joint acceleration (recursive Newton-Euler)."""
    rates = [motion.turn for motion in link_motions(pose.offsets, v)]
    zero = jnp.zeros_like(v[0])
    fall, wrenches = Planar(zero - tree.gravity_x, zero - tree.gravity_z), []
    for level, (link, com) in enumerate(zip(tree.links, pose.coms, strict=True)):
        if level > 0:
            spin, offset = rates[level - 1] * rates[level - 1], pose.offsets[level - 1]
            fall = Planar(fall.x - spin * offset.x, fall.z - spin * offset.z)
        spin = rates[level] * rates[level]
        fx, fz = link.mass * (fall.x - spin * com.x), link.mass * (fall.z - spin * com.z)
        wrenches.append(Wrench(com.z * fx - com.x * fz, fx, fz))
    return joint_forces(pose.offsets, wrenches)


def applied_forces(tree: PlanarTree, q: Vector, v: Vector, control: Vector) -> Vector:
    """Springs, dampers and motors; `control` has one `[C, B]` a level of the chains."""
    dofs = (tree.slide_x, tree.slide_z, *(link.hinge for link in tree.links))
    passive = [
        dof.stiffness * (dof.rest - position) - dof.damping * rate for dof, position, rate in zip(dofs, q, v, strict=True)
    ]
    for level, (drive, command) in enumerate(zip(tree.drives, control, strict=True)):
        clipped = jnp.minimum(jnp.maximum(command, drive.control_low), drive.control_high)
        passive[3 + level] = passive[3 + level] + drive.gear * clipped
    return tuple(passive)


def constraint_rows(tree: PlanarTree, pose: Pose, q: Vector, v: Vector) -> Constraints:
    """Joint limits and contacts with the floor at a state."""
    limits = tuple(
        limit_row(drive, angle, rate, tree.quadratic) for drive, angle, rate in zip(tree.drives, q[3:], v[3:], strict=True)
    )
    contacts = []
    for level, (points, motion) in enumerate(zip(tree.contacts, link_motions(pose.offsets, v), strict=True)):
        cos, sin = jnp.expand_dims(pose.cos[level], 0), jnp.expand_dims(pose.sin[level], 0)
        centre = _rotate(cos, sin, points.x, points.z)
        above = jnp.expand_dims(pose.heights[level] - tree.floor, 0)
        distance = centre.z + above - points.radius
        lever = Planar(centre.x, 0.5 * distance - above)
        depth = distance - points.soft.margin
        contacts.append(contact_rows(points.soft, points.friction, lever, depth, motion, tree.quadratic))
    return Constraints(limits, tuple(contacts))


def acceleration(
    tree: PlanarTree, state: State, control: Vector, active: jax.Array, options: SolverOptions
) -> tuple[Vector, Matrix]:
    """Constrained joint acceleration and the inertia matrix at a state."""
    q, v, guess = state
    pose = kinematics(tree, q)
    inertia = inertia_matrix(tree, pose)
    forces = axpy(-1.0, bias_forces(tree, pose, v), applied_forces(tree, q, v, control))
    smooth = solve(factor(inertia), forces)
    problem = Problem(inertia, smooth, constraint_rows(tree, pose, q, v), pose.offsets)
    tolerance = 4.0 * float(jnp.finfo(q[0].dtype).eps)
    a = constrained_acceleration(problem, guess, active, options.iterations, options.line_search, tolerance)
    return a, inertia


def euler_step(tree: PlanarTree, state: State, control: Vector, active: jax.Array, options: SolverOptions) -> State:
    """Semi-implicit Euler step with joint damping D treated implicitly: `(M + h D) a' = M a`, `v += h a'`, `q += h v`."""
    a, inertia = acceleration(tree, state, control, active, options)
    dofs = (tree.slide_x, tree.slide_z, *(link.hinge for link in tree.links))
    damping = tuple(tree.timestep * dof.damping for dof in dofs)
    brake = solve(factor(add_diagonal(inertia, damping)), tuple(d * x for d, x in zip(damping, a, strict=True)))
    v = axpy(tree.timestep, axpy(-1.0, brake, a), state.v)
    return State(axpy(tree.timestep, v, state.q), v, a)


Stage = tuple[jax.Array | int, State, Vector, Vector]
"""State of a Runge-Kutta step: number of the stage, its point, weighted sums of velocities and of accelerations."""


def rk4_step(tree: PlanarTree, state: State, control: Vector, active: jax.Array, options: SolverOptions) -> State:
    """Classical fourth-order Runge-Kutta step, damping explicit; the guess is handed from stage to stage."""
    h = tree.timestep

    def stage(carry: Stage) -> Stage:
        i, here, sum_v, sum_a = carry
        a, _ = acceleration(tree, here, control, active, options)
        one = jnp.ones((), a[0].dtype)  # typed: a choice between Python numbers does not lower for a GPU
        weight = jnp.where((i == 0) | (i == 3), one, 2 * one)
        reach = h * jnp.where(i == 2, one, 0.5 * one)
        there = State(axpy(reach, here.v, state.q), axpy(reach, a, state.v), a)
        return i + 1, there, axpy(weight, here.v, sum_v), axpy(weight, a, sum_a)

    zero = tuple(jnp.zeros_like(x) for x in state.v)
    first: Stage = (0, state, zero, zero)
    _, last, sum_v, sum_a = lax.while_loop(lambda carry: carry[0] < 4, stage, first)
    return State(axpy(h / 6.0, sum_v, state.q), axpy(h / 6.0, sum_a, state.v), last.guess)


def to_planar(tree: PlanarTree, q: Vector) -> Vector:
    """Joint vector with its hinges turned to +y (or, the same map, back to MuJoCo's axes)."""
    return (*q[:2], *(link.axis * x for link, x in zip(tree.links, q[2:], strict=True)))


def _finite(vectors: Sequence[Vector]) -> jax.Array:
    """`[1, B]` whether every number of an environment is finite."""
    size = total(to_root(jnp.abs(x)) for vector in vectors for x in vector)
    return size < jnp.inf


def _replace(keep: jax.Array, state: Any, value: float) -> Any:
    """`state` with every environment outside `keep` set to `value`."""
    return jax.tree.map(lambda x: jnp.where(keep, x, jnp.asarray(value, x.dtype)), state)


def environment_step(constants: Callable[[], PlanarTree], state: State, control: Vector, options: SolverOptions) -> State:
    """Take each environment's `frames` physics steps under one control; one that is not finite, before or after, is all NaN.

    Args:
      constants: returns the environments' constants; called anew for every physics step, so that a kernel can reload them from
        memory instead of keeping them in registers.
      state: in MuJoCo's sense of the hinges.
      control: one `[C, B]` a level of the chains.
      options: of the solver.
    """
    advance = {"euler": euler_step, "rk4": rk4_step}[options.integrator]
    tree = constants()
    finite = _finite((*state, control))
    start = _replace(finite, State(*(to_planar(tree, x) for x in state)), 0.0)
    control = _replace(finite, control, 0.0)

    def frame(i: jax.Array, now: State) -> State:
        tree = constants()
        active = finite & (i < tree.frames)
        after = advance(tree, now, control, active, options)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), after, now)

    end = lax.fori_loop(0, jnp.max(tree.frames), frame, start)
    end = State(*(to_planar(tree, x) for x in end))
    return _replace(finite & _finite(end), end, jnp.nan)
