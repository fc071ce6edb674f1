"""Constants of a planar tree as data: what the dynamics need of a compiled `MjModel`, and a refusal of what they cannot do.

A planar tree is a torso on a floating root (slides along x and z, hinge about y) that carries chains of links, all chains of
one length, each link on a hinge about y, with capsules or spheres that touch one horizontal floor. Every number is an array
whose leading axis N is a row of a table, one row a body, so that a body is an index and a batch may mix bodies.

Axes: N rows of the table (B environments of a batch once selected), C chains, P points of contact of a link.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from tamherd_jax.physics.planar.support import chains_of, check_supported

T = TypeVar("T")

_MIN_IMPEDANCE, _MAX_IMPEDANCE = mujoco.mjMINIMP, mujoco.mjMAXIMP
_FAR = 1e6  # m or rad: a contact point or a joint limit that is never reached


Number = Any
"""One number where a model is read, then an array with a leading axis of bodies, then one with a last axis of environments."""


class Dof(NamedTuple):
    """Passive force and added inertia of one degree of freedom.

    Attributes:
      armature: inertia of the rotor (kg or kg m^2).
      damping: (N s/m or N m s/rad).
      stiffness: (N/m or N m/rad).
      rest: coordinate at which the spring is slack (m or rad).
    """

    armature: Number
    damping: Number
    stiffness: Number
    rest: Number


class Soft(NamedTuple):
    """A soft constraint: reference acceleration `-damping * velocity - stiffness * impedance * depth`, and its impedance.

    Attributes:
      stiffness: from solref (1/s^2).
      damping: from solref (1/s).
      low, high: impedance at depth zero and from depth `width` on, in (0, 1).
      width: (m or rad).
      midpoint, power: of the sigmoid between them.
      compliance: inverse inertia that the constraint sees, `R = (1 - impedance) / impedance * compliance`.
      margin: distance at which the constraint becomes active (m or rad).
    """

    stiffness: Number
    damping: Number
    low: Number
    high: Number
    width: Number
    midpoint: Number
    power: Number
    compliance: Number
    margin: Number


class Link(NamedTuple):
    """A link, in the frame of its own hinge; a planar vector is a pair of its x and z.

    Attributes:
      anchor_x, anchor_z: its hinge in the frame of the parent's hinge (m). For the torso: of the world, at q = 0.
      angle: pitch relative to the parent at coordinate zero (rad).
      axis: +1 or -1, the sign of the hinge's axis along y.
      com_x, com_z: centre of mass (m).
      mass: (kg).
      inertia: about the centre of mass (kg m^2).
      hinge: passive numbers of the hinge, in the sense of a rotation about +y.
    """

    anchor_x: Number
    anchor_z: Number
    angle: Number
    axis: Number
    com_x: Number
    com_z: Number
    mass: Number
    inertia: Number
    hinge: Dof


class Drive(NamedTuple):
    """Limits and motor of a chain's hinge, in the sense of a rotation about +y.

    Attributes:
      lower, upper: joint range (rad).
      limit: softness of both limits.
      gear: torque a unit of control (N m), negative where the hinge's axis is -y.
      control_low, control_high: range to which a control is clipped.
    """

    lower: Number
    upper: Number
    limit: Soft
    gear: Number
    control_low: Number
    control_high: Number


class Contacts(NamedTuple):
    """Spheres of a link that can touch the floor.

    Attributes:
      x, z: centre in the frame of the link's hinge (m).
      radius: (m).
      friction: sliding friction with the floor.
      soft: softness; its compliance is that of one edge of the friction pyramid.
    """

    x: Number
    z: Number
    radius: Number
    friction: Number
    soft: Soft


@struct.dataclass
class PlanarTree:
    """Planar trees of one shape, one a row: all that the dynamics know of a body.

    Attributes:
      timestep: `[N]` seconds a physics step.
      frames: `[N]` int32, physics steps an environment step.
      gravity_x, gravity_z: `[N]` (m/s^2).
      floor: `[N]` height of the floor (m).
      slide_x, slide_z: root slides, fields `[N]`.
      links: torso, then one level of all chains after another: fields `[N, 1]`, then `[N, C]`.
      drives: one a level of the chains, fields `[N, C]`.
      contacts: one a link of `links`, fields `[N, P, 1]` and `[N, P, C]`. Rows with fewer points are padded with far ones.
      quadratic: whether every impedance has MuJoCo's default power of 2 (static).
    """

    timestep: Number
    frames: Number
    gravity_x: Number
    gravity_z: Number
    floor: Number
    slide_x: Dof
    slide_z: Dof
    links: tuple[Link, ...]
    drives: tuple[Drive, ...]
    contacts: tuple[Contacts, ...]
    quadratic: bool = struct.field(pytree_node=False, default=True)

    @property
    def rows(self) -> int:
        """N, the number of bodies."""
        return self.timestep.shape[0]

    @property
    def chains(self) -> int:
        """C, the number of chains."""
        return self.links[1].mass.shape[1]

    @property
    def levels(self) -> int:
        """Links of a chain."""
        return len(self.drives)

    @property
    def dofs(self) -> int:
        """Degrees of freedom: x, z, pitch, then chain after chain."""
        return 3 + self.chains * self.levels

    @property
    def motors(self) -> int:
        """Motors: chain after chain."""
        return self.chains * self.levels


def read_tree(model: mujoco.MjModel, frame_skip: int) -> PlanarTree:
    """One-row table of a compiled model.

    Args:
      model: any floating planar tree; the integrator is not read (it is an option of the solver).
      frame_skip: physics steps an environment step.

    Returns:
      A `PlanarTree` of float64 numpy arrays with N = 1.

    Raises:
      ValueError: one line naming the first thing in the model that the planar dynamics do not do.

    Source: MuJoCo documentation, "Computation: constraint model" (solref, solimp, R, pyramidal cones).
    """
    check_supported(model)
    if frame_skip < 1:
        raise ValueError(f"frame_skip must be at least 1, not {frame_skip}")
    chains = chains_of(model)
    levels = [[1], *(list(level) for level in zip(*chains, strict=True))]
    gravity, floor = model.opt.gravity, int(np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)[0])
    tree = PlanarTree(
        timestep=np.float64(model.opt.timestep),
        frames=np.int32(frame_skip),
        gravity_x=gravity[0],
        gravity_z=gravity[2],
        floor=model.geom_pos[floor, 2],
        slide_x=_dof(model, 0),
        slide_z=_dof(model, 1),
        links=tuple(_columns(_link(model, body) for body in level) for level in levels),
        drives=tuple(_columns(_drive(model, body) for body in level) for level in levels[1:]),
        contacts=tuple(_level_contacts(model, level, floor) for level in levels),
    )
    tree = jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
    return replace(tree, quadratic=_is_quadratic(tree))


def stack_trees(trees: Sequence[PlanarTree]) -> PlanarTree:
    """Table with the rows of all `trees`, padded to a common number of contact points.

    Raises:
      ValueError: if they differ in the number of chains or of links a chain.
    """
    shapes = {(tree.chains, tree.levels) for tree in trees}
    if len(shapes) != 1:
        raise ValueError(f"bodies of different shape cannot share a table: (chains, links a chain) are {sorted(shapes)}")
    widths = [max(tree.contacts[i].x.shape[1] for tree in trees) for i in range(1 + trees[0].levels)]
    padded = [
        replace(
            tree, contacts=tuple(_pad(c, width, axis=1) for c, width in zip(tree.contacts, widths, strict=True)), quadratic=True
        )
        for tree in trees
    ]
    table = jax.tree.map(lambda *leaves: np.concatenate(leaves), *padded)
    return replace(table, quadratic=all(tree.quadratic for tree in trees))


def select_rows(table: PlanarTree, body: jax.Array, dtype: jnp.dtype) -> PlanarTree:
    """Constants of a batch of environments: fields `[N]`, `[N, C]`, `[N, P, C]` become `[1, B]`, `[C, B]`, `[P, C, B]`.

    Args:
      table: N bodies.
      body: `[B]` row of each environment, clipped into the table.
      dtype: of the floating fields.
    """

    def select(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        kind = leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.integer) else dtype
        values = jnp.moveaxis(jnp.take(leaf.astype(kind), body, axis=0, mode="clip"), 0, -1)
        return values[None] if leaf.ndim == 1 else values

    return jax.tree.map(select, table)


def select_literals(table: PlanarTree, body: jax.Array, dtype: jnp.dtype) -> PlanarTree:
    """What `select_rows` returns, with the numbers written into the program instead of read from memory.

    A number that all bodies share becomes a plain literal, another a choice between literals. Fields may have size 1 along any
    axis: they broadcast.

    Args:
      table: numpy arrays of a few bodies.
      body: `[B]` row of each environment, within the table.
      dtype: of the floating fields.
    """
    bodies = body[None]

    def element(values: np.ndarray, kind: jnp.dtype, axes: int) -> jax.Array:
        rows = bodies.reshape((1,) * axes + body.shape)
        out = jnp.full((1,) * (axes + 1), values[0], kind)
        for row in range(1, len(values)):
            if (values[row:] != values[0]).any():
                out = jnp.where(rows == row, jnp.asarray(values[row], kind), out)
        return out

    def select(leaf: np.ndarray) -> jax.Array:
        kind = leaf.dtype if np.issubdtype(leaf.dtype, np.integer) else dtype
        values = leaf[:, None] if leaf.ndim == 1 else leaf
        shape, flat = values.shape[1:], values.reshape(len(values), -1)
        out = element(flat[:, 0], kind, len(shape))
        if (flat != flat[:, :1]).any():
            place = flat_indices(shape)
            for i in range(1, flat.shape[1]):
                out = jnp.where(place == i, element(flat[:, i], kind, len(shape)), out)
        return out

    return jax.tree.map(select, table)


def flat_indices(shape: tuple[int, ...]) -> jax.Array:
    """`[*shape, 1]` int32: the row-major index of each element."""
    out = jnp.zeros((*shape, 1), jnp.int32)
    for axis, size in enumerate(shape):
        if size > 1:
            stride = int(np.prod(shape[axis + 1 :]))
            out = out + stride * jax.lax.broadcasted_iota(jnp.int32, (*shape, 1), axis)
    return out


def _columns(rows: Iterable[T]) -> T:
    """Tuples of scalars, one a chain, to one tuple of arrays with the chains along the first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _dof(model: mujoco.MjModel, dof: int, axis: float = 1.0) -> Dof:
    return Dof(model.dof_armature[dof], model.dof_damping[dof], model.jnt_stiffness[dof], axis * model.qpos_spring[dof])


def _pitch(quat: np.ndarray) -> float:
    """Angle about +y of a rotation about y (rad)."""
    return 2.0 * np.arctan2(quat[2], quat[0])


def _rotate(angle: float, vector: np.ndarray) -> np.ndarray:
    """`vector` `[3]` rotated by `angle` about +y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * vector[0] + s * vector[2], vector[1], c * vector[2] - s * vector[0]])


def _hinge_of(model: mujoco.MjModel, body: int) -> int:
    """The body's last joint, its hinge; joints, degrees of freedom and coordinates share their numbers here."""
    return int(model.body_jntadr[body] + model.body_jntnum[body] - 1)


def _link(model: mujoco.MjModel, body: int) -> Link:
    joint, parent = _hinge_of(model, body), int(model.body_parentid[body])
    turn, axis = _pitch(model.body_quat[body]), float(np.sign(model.jnt_axis[joint, 1]))
    anchor = model.body_pos[body] + _rotate(turn, model.jnt_pos[joint])
    if parent == 0:
        anchor = anchor - np.array([model.qpos0[0], 0.0, model.qpos0[1]])
    else:
        anchor = anchor - model.jnt_pos[_hinge_of(model, parent)]
    com = model.body_ipos[body] - model.jnt_pos[joint]
    frame = np.empty(9)
    mujoco.mju_quat2Mat(frame, model.body_iquat[body])
    inertia = frame.reshape(3, 3)[1] ** 2 @ model.body_inertia[body]
    angle = turn - axis * model.qpos0[joint]
    return Link(anchor[0], anchor[2], angle, axis, com[0], com[2], model.body_mass[body], inertia, _dof(model, joint, axis))


def _drive(model: mujoco.MjModel, body: int) -> Drive:
    joint = _hinge_of(model, body)
    motor, axis = joint - 3, float(np.sign(model.jnt_axis[joint, 1]))
    lower, upper = sorted(axis * model.jnt_range[joint]) if model.jnt_limited[joint] else (-_FAR, _FAR)
    low, high = model.actuator_ctrlrange[motor] if model.actuator_ctrllimited[motor] else (-_FAR, _FAR)
    limit = _soft(model, model.jnt_solref[joint], model.jnt_solimp[joint], model.dof_invweight0[joint], model.jnt_margin[joint])
    gear = axis * model.actuator_gear[motor, 0] * model.actuator_gainprm[motor, 0]
    return Drive(lower, upper, limit, gear, low, high)


def _soft(model: mujoco.MjModel, solref: np.ndarray, solimp: np.ndarray, compliance: float, margin: float) -> Soft:
    """Softness from solref (both forms; the first kept above two timesteps unless refsafe is off) and solimp."""
    low, high, midpoint = np.clip(solimp[[0, 1, 3]], _MIN_IMPEDANCE, _MAX_IMPEDANCE)
    if solref[0] > 0:
        unsafe = model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_REFSAFE
        time = solref[0] if unsafe else max(solref[0], 2 * model.opt.timestep)
        stiffness, damping = 1.0 / (high * time * solref[1]) ** 2, 2.0 / (high * time)
    else:
        stiffness, damping = -solref[0] / high**2, -solref[1] / high
    if solimp[2] <= mujoco.mjMINVAL:
        low = high = 0.5 * (low + high)
    width, power = max(solimp[2], mujoco.mjMINVAL), max(solimp[4], 1.0)
    return Soft(stiffness, damping, low, high, width, midpoint, power, compliance, margin)


def _level_contacts(model: mujoco.MjModel, level: Sequence[int], floor: int) -> Contacts:
    """Contacts `[P, C]` of the bodies of a level, all padded to the same power of two (what the kernel needs)."""
    bodies = [_contacts(model, body, floor) for body in level]
    width = max(c.x.shape[0] for c in bodies)
    padded = [_pad(c, 1 << (width - 1).bit_length(), axis=0) for c in bodies]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *padded)


def _contacts(model: mujoco.MjModel, body: int, floor: int) -> Contacts:
    """Contact points of one body: one a sphere, two a capsule, for geoms that collide with the floor."""
    points = []
    for geom in np.flatnonzero(model.geom_bodyid == body):
        if _collide(model, int(geom), floor):
            frame = np.empty(9)
            mujoco.mju_quat2Mat(frame, model.geom_quat[geom])
            capsule = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE
            for side in (1.0, -1.0) if capsule else (0.0,):
                centre = model.geom_pos[geom] + side * model.geom_size[geom, 1] * frame.reshape(3, 3)[:, 2]
                points.append(_contact(model, body, int(geom), floor, centre - model.jnt_pos[_hinge_of(model, body)]))
    return _columns(points or [_far_contact()])


def _collide(model: mujoco.MjModel, one: int, other: int) -> bool:
    kind, affinity = model.geom_contype, model.geom_conaffinity
    return bool((kind[one] & affinity[other]) | (kind[other] & affinity[one]))


def _contact(model: mujoco.MjModel, body: int, geom: int, floor: int, centre: np.ndarray) -> Contacts:
    """One point: the pair's parameters are mixed as MuJoCo mixes those of two geoms of equal priority."""
    weights = model.geom_solmix[[geom, floor]]
    share = weights[0] / weights.sum() if (weights >= mujoco.mjMINVAL).all() else 0.5
    solref, solimp = model.geom_solref[[geom, floor]], model.geom_solimp[[geom, floor]]
    mixed = share * solref[0] + (1 - share) * solref[1] if (solref[:, 0] > 0).all() else solref.min(axis=0)
    friction = max(model.geom_friction[[geom, floor], 0].max(), mujoco.mjMINMU)
    weight = model.body_invweight0[body, 0] + model.body_invweight0[0, 0]
    # Edges of the pyramid share one regularisation: that of the first edge, scaled by 2 mu^2 / impratio.
    compliance = weight * (1 + friction**2) * 2 * friction**2 / model.opt.impratio
    margin = model.geom_margin[geom] + model.geom_margin[floor]
    soft = _soft(model, mixed, share * solimp[0] + (1 - share) * solimp[1], compliance, margin)
    return Contacts(centre[0], centre[2], model.geom_size[geom, 0], friction, soft)


def _far_contact() -> Contacts:
    """A point that never touches the floor."""
    soft = Soft(1.0, 1.0, 0.5, 0.5, 1.0, 0.5, 2.0, 1.0, 0.0)
    return Contacts(0.0, 0.0, -_FAR, 1.0, soft)


def _pad(contacts: Contacts, points: int, axis: int) -> Contacts:
    """`contacts` with far points added along an axis until there are `points`."""

    def pad(leaf: np.ndarray, far: float) -> np.ndarray:
        shape = list(leaf.shape)
        shape[axis] = points - shape[axis]
        return np.concatenate([leaf, np.full(shape, far)], axis=axis)

    return jax.tree.map(pad, contacts, _far_contact())


def _is_quadratic(tree: PlanarTree) -> bool:
    softs = [contact.soft for contact in tree.contacts] + [drive.limit for drive in tree.drives]
    return all(bool((np.asarray(soft.power) == 2.0).all()) for soft in softs)
