"""What the planar dynamics can do: the first unsupported thing in a model is named and the model refused."""

from collections.abc import Iterator

import mujoco
import numpy as np

_SLIDE, _HINGE = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)
_PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)
_SPHERE, _CAPSULE = int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)
_TOLERANCE = 1e-9


def check_supported(model: mujoco.MjModel) -> None:
    """Refuse a model that is not a floating planar tree over a floor.

    Raises:
      ValueError: one line that names the first unsupported thing.
    """
    for check in (_options, _features, _joints, _chains, _bodies, _geoms, _collisions, _actuators):
        for problem in check(model):
            raise ValueError(f"the planar physics does not support {problem}")


def chains_of(model: mujoco.MjModel) -> list[list[int]]:
    """Bodies of each chain that the torso (body 1) carries, from the torso outwards."""
    chains = []
    for start in np.flatnonzero(model.body_parentid == 1):
        chain = [int(start)]
        while len(children := np.flatnonzero(model.body_parentid == chain[-1])):
            chain.append(int(children[0]))
        chains.append(chain)
    return chains


def _options(model: mujoco.MjModel) -> Iterator[str]:
    option, flag, integrator = model.opt, mujoco.mjtDisableBit, mujoco.mjtIntegrator
    if option.integrator not in (integrator.mjINT_EULER, integrator.mjINT_RK4):
        yield f"the integrator {integrator(option.integrator).name}: Euler and RK4 only"
    if option.cone != mujoco.mjtCone.mjCONE_PYRAMIDAL:
        yield "elliptic friction cones"
    allowed = flag.mjDSBL_AUTORESET | flag.mjDSBL_REFSAFE | flag.mjDSBL_WARMSTART
    if option.disableflags & ~int(allowed):
        yield f"the disable flags {option.disableflags & ~int(allowed)}"
    if option.enableflags:
        yield f"the enable flags {option.enableflags}"
    if option.density or option.viscosity or option.wind.any():
        yield "a medium (density, viscosity or wind)"
    if option.noslip_iterations:
        yield "the noslip solver"
    if abs(option.gravity[1]) > _TOLERANCE:
        yield "gravity out of the plane"


def _features(model: mujoco.MjModel) -> Iterator[str]:
    counts = {
        "equality constraints": "neq",
        "tendons": "ntendon",
        "contact pairs": "npair",
        "contact exclusions": "nexclude",
        "flexes": "nflex",
        "plugins": "nplugin",
        "mocap bodies": "nmocap",
        "activations": "na",
    }
    for what, field in counts.items():
        if getattr(model, field):
            yield what
    values = {
        "dry joint friction": "dof_frictionloss",
        "gravity compensation": "body_gravcomp",
        "nonlinear damping": "dof_dampingpoly",
        "nonlinear stiffness": "jnt_stiffnesspoly",
        "actuator damping": "actuator_damping",
        "actuator armature": "actuator_armature",
        "adhesion": "geom_adhesion",
        "moving surfaces": "geom_surfacevel",
        "limits on joint actuator forces": "jnt_actfrclimited",
        "delays": "actuator_delay",
    }
    for what, field in values.items():
        if np.any(getattr(model, field, 0)):
            yield what


def _joints(model: mujoco.MjModel) -> Iterator[str]:
    if model.nbody < 3:
        yield "a model without a torso and a chain"
        return
    wanted = [(_SLIDE, (1.0, 0.0, 0.0)), (_SLIDE, (0.0, 0.0, 1.0)), (_HINGE, None)]
    if model.body_parentid[1] != 0 or model.body_jntnum[1] != 3:
        yield "a torso that is not on slides along x and z and a hinge"
        return
    for joint in range(model.njnt):
        kind, axis = wanted[joint] if joint < 3 else (_HINGE, None)
        name = model.joint(joint).name or f"number {joint}"
        if model.jnt_type[joint] != kind:
            yield f"the type of joint {name}: slides along x and z, then hinges about y only"
        found = model.jnt_axis[joint]
        aligned = abs(abs(found[1]) - 1) < _TOLERANCE if axis is None else np.allclose(found, axis, atol=_TOLERANCE)
        if not aligned:
            yield f"the axis of joint {name}"
        if joint < 3 and model.jnt_limited[joint]:
            yield f"limits on root joint {name}"
        if abs(model.jnt_pos[joint, 1]) > _TOLERANCE:
            yield f"joint {name} out of the plane"
        if model.jnt_limited[joint] and model.jnt_range[joint, 1] - model.jnt_range[joint, 0] < 2 * model.jnt_margin[joint]:
            yield f"the range of joint {name}: both limits could be active at once"


def _chains(model: mujoco.MjModel) -> Iterator[str]:
    children = np.bincount(model.body_parentid[1:], minlength=model.nbody)
    if children[0] != 1:
        yield "more than one body on the world"
    for body in range(2, model.nbody):
        name = model.body(body).name or f"number {body}"
        if model.body_jntnum[body] != 1:
            yield f"body {name} with {model.body_jntnum[body]} joints"
        if children[body] > 1:
            yield f"body {name} with {children[body]} children"
    lengths = {len(chain) for chain in chains_of(model)}
    if len(lengths) > 1:
        yield f"chains of different lengths {sorted(lengths)}"
    elif [body for chain in chains_of(model) for body in chain] != list(range(2, model.nbody)):
        yield "bodies that are not in the order of their chains"


def _bodies(model: mujoco.MjModel) -> Iterator[str]:
    for body in range(1, model.nbody):
        name, quat = model.body(body).name or f"number {body}", model.body_quat[body]
        if abs(quat[1]) > _TOLERANCE or abs(quat[3]) > _TOLERANCE or (body == 1 and abs(quat[2]) > _TOLERANCE):
            yield f"the orientation of body {name}"
        if abs(model.body_pos[body, 1]) > _TOLERANCE or abs(model.body_ipos[body, 1]) > _TOLERANCE:
            yield f"body {name} out of the plane"


def _geoms(model: mujoco.MjModel) -> Iterator[str]:
    for geom in range(model.ngeom):
        name, kind = model.geom(geom).name or f"number {geom}", int(model.geom_type[geom])
        if model.geom_bodyid[geom] == 0:
            if kind != _PLANE or np.abs(model.geom_quat[geom, 1:3]).max() > _TOLERANCE:
                yield f"the fixed geom {name}: one horizontal floor only"
        elif not _collides(model, geom):
            continue
        elif kind not in (_SPHERE, _CAPSULE):
            yield f"the shape of geom {name}: capsules and spheres only"
        elif abs(model.geom_pos[geom, 1]) > _TOLERANCE or _leaves_plane(model, geom):
            yield f"geom {name} out of the plane"
    if (model.geom_type == _PLANE).sum() != 1:
        yield f"{(model.geom_type == _PLANE).sum()} floors: one only"


def _collides(model: mujoco.MjModel, geom: int) -> bool:
    return bool(model.geom_contype[geom] or model.geom_conaffinity[geom])


def _leaves_plane(model: mujoco.MjModel, geom: int) -> bool:
    """Whether a capsule's axis leaves the plane."""
    frame = np.empty(9)
    mujoco.mju_quat2Mat(frame, model.geom_quat[geom])
    return model.geom_type[geom] == _CAPSULE and abs(frame[5]) > _TOLERANCE


def _collisions(model: mujoco.MjModel) -> Iterator[str]:
    for geom in range(model.ngeom):
        name = model.geom(geom).name or f"number {geom}"
        if not _collides(model, geom):
            continue
        if model.geom_condim[geom] != 3:
            yield f"condim {model.geom_condim[geom]} of geom {name}: 3 only"
        if model.geom_priority[geom] != 0:
            yield f"the priority of geom {name}"
        if model.geom_gap[geom] != 0:
            yield f"the gap of geom {name}"
    moving = np.flatnonzero(model.geom_bodyid)
    kind, affinity = model.geom_contype, model.geom_conaffinity
    for one in moving:
        for other in moving:
            meet = (kind[one] & affinity[other]) | (kind[other] & affinity[one])
            if one < other and model.geom_bodyid[one] != model.geom_bodyid[other] and meet:
                yield f"contact between geoms {model.geom(one).name} and {model.geom(other).name} (contype, conaffinity)"


def _actuators(model: mujoco.MjModel) -> Iterator[str]:
    if model.nu != model.njnt - 3:
        yield f"{model.nu} actuators for {model.njnt - 3} chain hinges: one motor each"
        return
    for motor in range(model.nu):
        name = model.actuator(motor).name or f"number {motor}"
        plain = (
            model.actuator_trntype[motor] == mujoco.mjtTrn.mjTRN_JOINT
            and model.actuator_gaintype[motor] == mujoco.mjtGain.mjGAIN_FIXED
            and model.actuator_biastype[motor] == mujoco.mjtBias.mjBIAS_NONE
            and model.actuator_dyntype[motor] == mujoco.mjtDyn.mjDYN_NONE
            and not model.actuator_forcelimited[motor]
        )
        if not plain:
            yield f"actuator {name}: plain motors only"
        if model.actuator_trnid[motor, 0] != motor + 3:
            yield f"actuator {name} out of the order of the hinges"
