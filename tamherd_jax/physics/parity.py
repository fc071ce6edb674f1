"""Accuracy of physics backends: states of every kind a body gets into, MuJoCo C's converged answer, and the error.

Used by the tests (few states) and by `python -m benchmarks.physics_accuracy` (thousands).
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import mujoco
import numpy as np
from mujoco import rollout

from tamherd_jax.physics.bodies import ROOT, load_model
from tamherd_jax.registry.bodies import get_body

_ROUNDING = 1e-7  # a few operations of float32


class States(NamedTuple):
    """Positions `[B, Q]`, velocities `[B, Q]` and controls `[B, U]`, float64 holding float32 values."""

    q: np.ndarray
    qd: np.ndarray
    control: np.ndarray


def converged_model(body: str, integrator: str = "euler") -> mujoco.MjModel:
    """A body's model with the solver run until nothing changes, and the integrator asked for (`"euler"` or `"rk4"`)."""
    model = converged(load_model(body))
    kinds = {"euler": mujoco.mjtIntegrator.mjINT_EULER, "rk4": mujoco.mjtIntegrator.mjINT_RK4}
    model.opt.integrator = int(kinds[integrator])
    return model


def converged(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of a model whose solver runs until nothing changes."""
    model = copy.copy(model)
    model.opt.iterations, model.opt.tolerance = 200, 1e-16
    model.opt.ls_iterations, model.opt.ls_tolerance = 100, 1e-8
    return model


def simulate(model: mujoco.MjModel, states: States, frames: int) -> np.ndarray:
    """States `[B, frames, 18]` that MuJoCo C visits under each control, in float64 (`nq + nv` for another model)."""
    start = np.concatenate([np.zeros((len(states.q), 1)), states.q, states.qd], axis=1)
    controls = np.repeat(states.control[:, None], frames, axis=1)
    data = [mujoco.MjData(model), mujoco.MjData(model)]
    visited, _ = rollout.rollout([model] * len(start), data, start, controls)
    return visited[..., 1:]


def reference(body: str, states: States, integrator: str = "euler") -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities `[B, Q]` one environment step later, by MuJoCo C."""
    model = converged_model(body, integrator)
    last = simulate(model, states, get_body(body).frame_skip)[:, -1]
    return last[:, : model.nq], last[:, model.nq :]


def velocity_error(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Relative error `[B]` of velocities: max-norm of the difference over 1 + max-norm; infinite where not finite."""
    error = np.abs(np.asarray(found, np.float64) - wanted).max(-1) / (1 + np.abs(wanted).max(-1))
    return np.where(np.isfinite(error), error, np.inf)


def well_posed(body: str, states: States, draws: int = 8, bound: float = 1e-4, seed: int = 0) -> np.ndarray:
    """Whether MuJoCo C itself, in float64, stays within `bound` when the state is jittered by float32's rounding, `[B]`.

    A contact's force jumps as it touches, so a state with a point within rounding of the floor has no answer in float32: no
    float32 program can be held to one.
    """
    rng, fine = np.random.default_rng(seed), np.ones(len(states.q), bool)
    wanted = reference(body, states)[1]
    for _ in range(draws):
        q = states.q + _ROUNDING * rng.standard_normal(states.q.shape) * (1 + np.abs(states.q))
        fine &= velocity_error(reference(body, states._replace(q=q))[1], wanted) <= bound
    return fine


def scenarios(body: str, count: int, seed: int = 0) -> dict[str, States]:
    """About `count` states of a body in all, by kind of situation.

    Kinds: fresh resets; along episodes of random policies of three scales; falls from all attitudes; lying on the back; hard
    landings; every joint at each limit; fast spins.
    """
    rng = np.random.default_rng(seed)
    kinds: dict[str, Callable[[str, int, np.random.Generator], States]] = {
        "reset": _resets,
        "policy 0.1": _policy(0.1),
        "policy 0.5": _policy(0.5),
        "policy 1": _policy(1.0),
        "fall": _falls,
        "on the back": _backs,
        "hard landing": _landings,
        "joint limits": _limits,
        "fast spin": _spins,
    }
    each = -(-count // len(kinds))
    return {name: _single(make(body, each, rng)) for name, make in kinds.items()}


def _single(states: States) -> States:
    return States(*(np.asarray(x, np.float32).astype(np.float64) for x in states))


def _random_controls(body: str, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (count, load_model(body).nu))


def _normal(body: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Standard normal velocities `[B, Q]`."""
    return rng.standard_normal((count, load_model(body).nv))


def _resets(body: str, count: int, rng: np.random.Generator) -> States:
    """Gymnasium's reset distribution."""
    entry, size = get_body(body), (count, load_model(body).nq)
    noise, spread = entry.reset_position, entry.reset_velocity
    qd = spread * rng.standard_normal(size) if spread else rng.uniform(-noise, noise, size)
    return States(rng.uniform(-noise, noise, size), qd, _random_controls(body, count, rng))


def _policy(scale: float) -> Callable[[str, int, np.random.Generator], States]:
    """States along episodes under clipped Gaussian controls, up to 100 environment steps after a reset."""

    def make(body: str, count: int, rng: np.random.Generator) -> States:
        model, frames = load_model(body), get_body(body).frame_skip
        states, visited = _resets(body, 1 + count // 10, rng), []
        for step in range(100):
            control = np.clip(scale * rng.standard_normal(states.control.shape), -1, 1)
            states = states._replace(control=control)
            if step % 10 == 9:
                visited.append(states)
            last = simulate(model, states, frames)[:, -1]
            states = States(last[:, : model.nq], last[:, model.nq :], control)
        return States(*(np.concatenate(parts)[:count] for parts in zip(*visited, strict=True)))

    return make


def _lowest(body: str, q: np.ndarray) -> np.ndarray:
    """Height `[B]` of the lowest point of each pose above the floor (m)."""
    model = load_model(body)
    data, lowest = mujoco.MjData(model), np.empty(len(q))
    moving = np.flatnonzero(model.geom_bodyid)
    for i, pose in enumerate(q):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        reach = np.abs(data.geom_xmat[moving, 8]) * model.geom_size[moving, 1] + model.geom_size[moving, 0]
        lowest[i] = (data.geom_xpos[moving, 2] - reach).min()
    return lowest


def _pose(body: str, count: int, rng: np.random.Generator, height: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Positions with joints anywhere in their ranges, the lowest point at `height` and the torso at `pitch`."""
    low, high = load_model(body).jnt_range[ROOT:].T
    q = np.zeros((count, ROOT + len(low)))
    q[:, 2], q[:, ROOT:] = pitch, rng.uniform(low, high, (count, len(low)))
    q[:, 1] = height - _lowest(body, q)
    return q


def _falls(body: str, count: int, rng: np.random.Generator) -> States:
    """Some time into a fall, up to half a second, from any attitude."""
    q = _pose(body, count, rng, rng.uniform(0, 0.3, count), rng.uniform(-np.pi, np.pi, count))
    states = States(q, _normal(body, count, rng), _random_controls(body, count, rng))
    model = load_model(body)
    frames = int(0.5 / model.opt.timestep)
    visited = simulate(model, states, frames)[np.arange(count), rng.integers(0, frames, count)]
    return states._replace(q=visited[:, : model.nq], qd=visited[:, model.nq :])


def _backs(body: str, count: int, rng: np.random.Generator) -> States:
    """Upside down, in contact."""
    pitch = np.pi + 0.4 * rng.standard_normal(count)
    q = _pose(body, count, rng, rng.uniform(-0.01, 0.005, count), pitch)
    return States(q, 0.5 * _normal(body, count, rng), _random_controls(body, count, rng))


def _landings(body: str, count: int, rng: np.random.Generator) -> States:
    """Just above the floor, or already in it, at 2 to 8 m/s downwards."""
    q = _pose(body, count, rng, rng.uniform(-0.01, 0.1, count), 0.5 * rng.standard_normal(count))
    qd = _normal(body, count, rng)
    qd[:, 1] = -rng.uniform(2, 8, count)
    return States(q, qd, _random_controls(body, count, rng))


def _limits(body: str, count: int, rng: np.random.Generator) -> States:
    """Each joint in turn at, or a little beyond, each of its limits and moving into it; now and then all joints at once."""
    low, high = load_model(body).jnt_range[ROOT:].T
    hinges = len(low)
    q = _pose(body, count, rng, rng.uniform(-0.005, 0.5, count), 0.3 * rng.standard_normal(count))
    qd, index = _normal(body, count, rng), np.arange(count)
    chosen = np.zeros((count, hinges), bool)
    chosen[index, index % hinges] = True
    chosen |= (index % 13 == 0)[:, None]
    upper = np.broadcast_to((index // hinges % 2 == 0)[:, None], chosen.shape)
    beyond, speed = rng.uniform(-0.002, 0.03, chosen.shape), rng.uniform(0, 5, chosen.shape)
    q[:, 3:] = np.where(chosen, np.where(upper, high + beyond, low - beyond), q[:, 3:])
    qd[:, 3:] = np.where(chosen, np.where(upper, speed, -speed), qd[:, 3:])
    return States(q, qd, _random_controls(body, count, rng))


def _spins(body: str, count: int, rng: np.random.Generator) -> States:
    """The whole body at up to 20 rad/s, joints at up to 30, near the floor and in the air."""
    q = _pose(body, count, rng, rng.uniform(-0.005, 0.5, count), rng.uniform(-np.pi, np.pi, count))
    qd = rng.uniform(-3, 3, (count, q.shape[1]))
    qd[:, 2], qd[:, ROOT:] = rng.uniform(-20, 20, count), rng.uniform(-30, 30, (count, q.shape[1] - ROOT))
    return States(q, qd, _random_controls(body, count, rng))
