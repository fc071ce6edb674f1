"""The two bodies of ML2 as compiled MuJoCo models, and their time steps.

Both come from the XML files that Brax ships (masses, joints, gears and friction equal gymnasium's to machine precision), with
two changes: every geom of the body collides with the floor, as in gymnasium, and Brax's own tuning parameters are dropped.
"""

import copy
import functools
import importlib.util
from pathlib import Path

import mujoco
import numpy as np

BODIES = ("cheetah", "walker")
CHEETAH, WALKER = range(2)

NQ = NV = 9
"""Degrees of freedom: root x, root z, root pitch, two chains of three hinges."""
NU = 6
"""Motors, one a hinge, each with controls in [-1, 1]."""

FRAME_SKIP = (5, 4)
"""Physics steps per environment step, by body."""
TIMESTEP = (0.01, 0.002)
"""Seconds per physics step, by body."""

_XML = {"cheetah": "half_cheetah.xml", "walker": "walker2d.xml"}


def _asset(name: str) -> str:
    """Text of one of Brax's XML files, found without importing Brax."""
    spec = importlib.util.find_spec("brax")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("brax is not installed: it carries the models of the two bodies")
    return (Path(next(iter(spec.submodule_search_locations))) / "envs" / "assets" / name).read_text()


def body_spec(body: str) -> mujoco.MjSpec:
    """Editable model of a body, `"cheetah"` or `"walker"`: semi-implicit Euler, every body geom against the floor.

    Raises:
      ValueError: for any other name.
    """
    if body not in BODIES:
        raise ValueError(f"unknown body {body!r}; the bodies are {', '.join(BODIES)}")
    spec = mujoco.MjSpec.from_string(_asset(_XML[body]))
    for geom in spec.geoms:
        if geom.type != mujoco.mjtGeom.mjGEOM_PLANE:
            geom.contype, geom.conaffinity = 1, 0
    for numeric in list(spec.numerics):
        spec.delete(numeric)
    spec.option.timestep = TIMESTEP[BODIES.index(body)]
    spec.option.iterations = 100
    # A diverging state must show itself as non-finite numbers, not be replaced by a fresh reset.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    return spec


def compile_spec(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compiled model; the XML attribute `settotalmass`, deprecated in MuJoCo 4, is applied by the function that replaces it."""
    total_mass, spec.compiler.settotalmass = spec.compiler.settotalmass, -1.0
    model = spec.compile()
    if total_mass > 0:
        mujoco.mj_setTotalmass(model, total_mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


@functools.cache
def load_model(body: str) -> mujoco.MjModel:
    """Compiled model of a body, `"cheetah"` (5 x 0.01 s an environment step) or `"walker"` (4 x 0.002 s).

    Returns:
      An `mujoco.MjModel` with 9 degrees of freedom and 6 motors. It is shared: copy it before changing it.

    Raises:
      ValueError: for any other name.

    Source: gymnasium 1.x `half_cheetah.xml` and `walker2d.xml` (v4 friction), Brax 0.14 assets.
    """
    return compile_spec(body_spec(body))


def perturbed_models(variants: int, limit: float = 1.0, seed: int = 0) -> tuple[mujoco.MjModel, ...]:
    """Both bodies with other masses, damping and friction: `2 V` models, (cheetah, walker) for each variant in turn.

    Every link's mass and inertia (together) and every geom's friction are multiplied by `1.5^u`, every joint's damping by
    `1.3^u`, each with its own `u ~ U(-limit, limit)`. The floor's friction is left alone.

    Args:
      variants: V.
      limit: largest exponent; 3 in the source, of which many bodies cannot walk.
      seed: of the draws; a variant's numbers do not depend on how many there are.

    Source: oyster `rand_param_envs` (Rakelly et al. 2019).
    """
    return tuple(
        _perturbed(load_model(body), np.random.default_rng([seed, variant, index]), limit)
        for variant in range(variants)
        for index, body in enumerate(BODIES)
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
