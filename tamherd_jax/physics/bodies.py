"""Compiled MuJoCo models of the registry's bodies, and the padding that lets bodies of different size share one program.

Models come from the XML files that Brax ships (masses, joints, gears and friction equal gymnasium's to machine precision), with
three changes: every geom of the body collides with the floor and with nothing else, joint ranges of whole degrees are exact
instead of radians of six digits, and Brax's own tuning parameters are dropped.

**Padding.** A set of bodies shares one layout: the largest number of chains and of links per chain among them. A smaller body
gets weightless links (mass and inertia 0, armature 1 kg m^2, no geoms, motors of gear 0) until it has that layout. They exert
no force on the rest of the body, and a padded coordinate that starts at rest stays at 0.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from tamherd_jax.registry import bodies as registry

BODIES = tuple(body.name for body in registry.BODIES)
"""Names of all bodies; a task names one by its position."""

DEFAULT_BODIES = registry.suite("ML2")
"""The paper's bodies, which environments and backends have unless told otherwise."""

FRAME_SKIP = tuple(body.frame_skip for body in registry.BODIES)
"""Physics steps per environment step, by body."""

TIMESTEP = tuple(body.timestep for body in registry.BODIES)
"""Seconds per physics step, by body."""

ROOT = 3
"""Coordinates of the root: x, z and pitch; the hinges of chain after chain follow."""

_INERT = "inert"
_NEVER = 1e4  # rad: half-width of the range of a padded joint


def _asset(name: str) -> str:
    """Return the text of one of Brax's XML files, found without importing Brax."""
    spec = importlib.util.find_spec("brax")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("brax is not installed: it carries the models of the bodies")
    return (Path(next(iter(spec.submodule_search_locations))) / "envs" / "assets" / name).read_text()


def body_spec(body: str, layout: tuple[int, int] | None = None) -> mujoco.MjSpec:
    """Return the editable model of a body: semi-implicit Euler, every body geom against the floor.

    Args:
      body: name of a registry entry.
      layout: number of chains and of links per chain to pad to; the body's own by default.

    Raises:
      ValueError: there is no such body, or it does not fit the layout.
    """
    entry = registry.get_body(body)
    spec = mujoco.MjSpec.from_string(_asset(entry.model))
    _restore_whole_degrees(spec)
    for geom in spec.geoms:
        if geom.type != mujoco.mjtGeom.mjGEOM_PLANE:
            geom.contype, geom.conaffinity = 1, 0
    for numeric in list(spec.numerics):
        spec.delete(numeric)
    spec.option.timestep = entry.timestep
    spec.option.iterations = 100
    # A diverging state must show itself as non-finite numbers, not be replaced by a fresh reset.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    if layout is not None and layout != layout_of(spec):
        _pad(spec, layout)
    return spec


def _restore_whole_degrees(spec: mujoco.MjSpec) -> None:
    """Make joint ranges in radians that round whole degrees, such as -2.61799 for -150, exact."""
    if spec.compiler.degree:
        return
    for joint in spec.joints:
        degrees = np.degrees(joint.range)
        whole = np.round(degrees)
        joint.range = np.where(np.abs(degrees - whole) < 1e-3, np.radians(whole), joint.range)


def compile_spec(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Return the compiled model; padded links lose the mass that the compiler insists on.

    The XML attribute `settotalmass`, deprecated in MuJoCo 4, is applied by the function that replaces it.
    """
    total_mass, spec.compiler.settotalmass = spec.compiler.settotalmass, -1.0
    model = spec.compile()
    inert = [i for i in range(model.nbody) if model.body(i).name.startswith(_INERT)]
    if inert:
        model.body_mass[inert], model.body_inertia[inert] = 0.0, 0.0
    if total_mass > 0:
        mujoco.mj_setTotalmass(model, total_mass)
    if inert or total_mass > 0:
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def _chains(spec: mujoco.MjSpec) -> list[list[Any]]:
    """Return the bodies of each chain that the torso carries, from the torso outwards."""

    def follow(body: Any) -> Iterator[Any]:
        yield body
        for child in body.bodies[:1]:
            yield from follow(child)

    torso = spec.worldbody.bodies[0]
    return [list(follow(start)) for start in torso.bodies]


def layout_of(spec: mujoco.MjSpec) -> tuple[int, int]:
    """Return the number of chains of a model, and of links in the longest."""
    chains = _chains(spec)
    return len(chains), max(len(chain) for chain in chains)


@functools.cache
def common_layout(bodies: tuple[str, ...]) -> tuple[int, int]:
    """Return the layout that a set of bodies shares: the largest number of chains, and of links per chain."""
    chains, levels = zip(*(layout_of(body_spec(body)) for body in bodies), strict=True)
    return max(chains), max(levels)


def _pad(spec: mujoco.MjSpec, layout: tuple[int, int]) -> None:
    """Add weightless links to a model until it has a layout.

    Raises:
      ValueError: the model is larger than the layout.
    """
    chains, levels = layout
    own = _chains(spec)
    if len(own) > chains or max(len(chain) for chain in own) > levels:
        raise ValueError(f"a body of {layout_of(spec)} chains and links does not fit {layout}")
    motors = {motor.target: (np.array(motor.gear), np.array(motor.ctrlrange)) for motor in spec.actuators}
    for motor in list(spec.actuators):
        spec.delete(motor)
    torso = spec.worldbody.bodies[0]
    for index in range(chains):
        chain = own[index] if index < len(own) else []
        tip = chain[-1] if chain else torso
        for level in range(len(chain), levels):
            tip = _add_inert_link(tip, f"{_INERT}-{index}-{level}")
    for chain in _chains(spec):  # motors in the order of the hinges
        for link in chain:
            gear, limits = motors.get(link.joints[0].name, (np.zeros(6), np.array([-1.0, 1.0])))
            _add_motor(spec, link.joints[0].name, gear, limits)


def _add_inert_link(parent: Any, name: str) -> Any:
    """Add a link without weight at the parent's origin; its mass is set to 0 after compilation."""
    link = parent.add_body(name=name, mass=1e-9, inertia=[1e-9] * 3, ipos=[0.0, 0.0, 0.0], explicitinertial=True)
    joint = link.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0.0, 1.0, 0.0], pos=[0.0, 0.0, 0.0])
    joint.armature, joint.frictionloss = 1.0, 0.0
    joint.damping, joint.stiffness = 0.0 * joint.damping, 0.0 * joint.stiffness  # numbers, or polynomials from MuJoCo 4 on
    joint.limited, joint.range = mujoco.mjtLimited.mjLIMITED_TRUE, np.array([-_NEVER, _NEVER])
    return link


def _add_motor(spec: mujoco.MjSpec, joint: str, gear: np.ndarray, limits: np.ndarray) -> None:
    motor = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    motor.set_to_motor()
    motor.gear, motor.ctrlrange, motor.ctrllimited = gear, limits, mujoco.mjtLimited.mjLIMITED_TRUE


@functools.cache
def load_model(body: str, layout: tuple[int, int] | None = None) -> mujoco.MjModel:
    """Return the compiled model of a body. It is shared: copy it before changing it.

    Args:
      body: name of a registry entry.
      layout: number of chains and of links per chain to pad to; the body's own by default.

    Raises:
      ValueError: there is no such body, or it does not fit the layout.

    Source: gymnasium 1.x models (v4 friction), Brax 0.14 assets.
    """
    return compile_spec(body_spec(body, layout))


def load_models(bodies: Sequence[str]) -> tuple[mujoco.MjModel, ...]:
    """Return the models of a set of bodies, padded to their common layout.

    Raises:
      ValueError: there is no such body.
    """
    layout = common_layout(tuple(bodies))
    own = [load_model(body) for body in bodies]
    hinges = layout[0] * layout[1]
    return tuple(model if model.nu == hinges else load_model(body, layout) for body, model in zip(bodies, own, strict=True))


@functools.cache
def own_hinges(body: str, layout: tuple[int, int]) -> tuple[int, ...]:
    """Return the positions of a body's own hinges among the `chains * links` of a layout, ascending."""
    lengths = [len(chain) for chain in _chains(body_spec(body))]
    return tuple(chain * layout[1] + level for chain, length in enumerate(lengths) for level in range(length))


def own_coordinates(body: str, x: np.ndarray, layout: tuple[int, int]) -> np.ndarray:
    """Return the `[..., nq]` of a body's own coordinates among those of a layout, `[..., Q]`."""
    return x[..., [*range(ROOT), *(ROOT + hinge for hinge in own_hinges(body, layout))]]


def pad_coordinates(body: str, x: np.ndarray, layout: tuple[int, int], root: int = ROOT) -> np.ndarray:
    """Return a body's coordinates `[..., nq]` among those of a layout, `[..., Q]`, others zero; `root` is 0 for controls."""
    out = np.zeros((*x.shape[:-1], root + layout[0] * layout[1]), x.dtype)
    out[..., [*range(root), *(root + hinge for hinge in own_hinges(body, layout))]] = x
    return out


def frame_skips(bodies: Sequence[str]) -> tuple[int, ...]:
    """Return the physics steps per environment step of each of a set of bodies."""
    return tuple(registry.get_body(body).frame_skip for body in bodies)


def perturbed_models(
    variants: int, limit: float = 1.0, seed: int = 0, bodies: Sequence[str] = DEFAULT_BODIES
) -> tuple[mujoco.MjModel, ...]:
    """Return bodies with other masses, damping and friction: for each variant in turn, one model of every body.

    Every link's mass and inertia (together) and every geom's friction are multiplied by `1.5^u`, every joint's damping by
    `1.3^u`, each with its own `u ~ U(-limit, limit)`. The floor's friction is left alone.

    Args:
      variants: V.
      limit: largest exponent; 3 in the source, of which many bodies cannot walk.
      seed: of the samples; a variant's numbers do not depend on how many there are.
      bodies: names.

    Source: oyster `rand_param_envs` (Rakelly et al. 2019).
    """
    return tuple(
        _perturbed(model, np.random.default_rng([seed, variant, BODIES.index(body)]), limit)
        for variant in range(variants)
        for body, model in zip(bodies, load_models(bodies), strict=True)
    )


def _perturbed(nominal: mujoco.MjModel, rng: np.random.Generator, limit: float) -> mujoco.MjModel:
    """A copy of a model with scaled masses, damping and friction."""
    model = copy.copy(nominal)
    masses = 1.5 ** rng.uniform(-limit, limit, model.nbody)
    model.body_mass[:] *= masses
    model.body_inertia[:] *= masses[:, None]
    model.dof_damping[:] *= 1.3 ** rng.uniform(-limit, limit, model.nv)
    friction = 1.5 ** rng.uniform(-limit, limit, model.ngeom)
    model.geom_friction[:] *= np.where(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, 1.0, friction)[:, None]
    mujoco.mj_setConst(model, mujoco.MjData(model))  # what follows from masses, such as the solver's inverse weights
    return model
