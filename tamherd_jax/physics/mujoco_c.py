"""MuJoCo C as a physics backend: batches of states stepped by a pool of threads behind `jax.pure_callback`."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout

from tamherd_jax.physics.base import PhysicsState
from tamherd_jax.physics.bodies import DEFAULT_BODIES, frame_skips, load_models

_ONE_CALLER = threading.Lock()  # several devices may call at once; the pool and its scratch states serve one
_CHUNK = 16  # states a thread takes at a time: small enough to balance two threads, large enough to amortise the hand-over


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> rollout.Rollout:
    """Return the process's thread pool."""
    # Divergence is reported to the caller as NaN; MuJoCo's own warnings would fill stderr and a log file.
    mujoco.set_mju_user_warning(lambda message: None)
    return rollout.Rollout(nthread=_threads())


class MujocoPhysics:
    """MuJoCo C in float64, solver run to its tolerance of 1e-8; state handed over in the caller's precision."""

    name = "mujoco"

    def __init__(self, models: Sequence[mujoco.MjModel] | None = None, frames: Sequence[int] | None = None):
        """Create a backend for some bodies, by default the paper's.

        Args:
          models: of one layout, which the `body` of `step` selects.
          frames: physics steps per environment step, of each.

        Raises:
          ValueError: the models differ in their numbers of coordinates or motors.
        """
        self._models = list(load_models(DEFAULT_BODIES) if models is None else models)
        self._frames = np.asarray(frame_skips(DEFAULT_BODIES) if frames is None else frames)
        sizes = {(model.nq, model.nv, model.nu) for model in self._models}
        if len(sizes) != 1:
            raise ValueError(f"models of one backend need equal sizes; (nq, nv, nu) are {sorted(sizes)}")
        ((self._nq, self._nv, _),) = sizes

    @classmethod
    def of_models(cls, models: Sequence[mujoco.MjModel], frames: Sequence[int]) -> MujocoPhysics:
        """Return the backend for other models."""
        return cls(models, frames)

    @classmethod
    def of_bodies(cls, bodies: tuple[str, ...]) -> MujocoPhysics:
        """Return the backend for bodies by name."""
        return cls(load_models(bodies), frame_skips(bodies))

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """See `tamherd_jax.types.Physics.step`."""
        x = jnp.concatenate([state.q, state.qd, control])
        result = jax.ShapeDtypeStruct((self._nq + self._nv,), x.dtype)
        out = jax.pure_callback(self._step_host, result, body, x, vmap_method="broadcast_all")
        return PhysicsState(q=out[: self._nq], qd=out[self._nq :], warmstart=jnp.zeros(self._nv, x.dtype))

    def _step_host(self, body: np.ndarray, x: np.ndarray) -> np.ndarray:
        """`[..., Q + Q + U]` (q, qd, control) to `[..., Q + Q]` (next q, next qd); states of no known body stay the same."""
        body, x = np.asarray(body), np.asarray(x)
        size = self._nq + self._nv
        flat_body, flat = np.broadcast_to(body, x.shape[:-1]).reshape(-1), x.reshape(-1, x.shape[-1])
        out = flat[:, :size].copy()
        known = (flat_body >= 0) & (flat_body < len(self._models))
        frames_of = np.where(known, self._frames[np.where(known, flat_body, 0)], 0)
        for frames in np.unique(self._frames):
            rows = np.flatnonzero(frames_of == frames)
            if len(rows):
                models = [self._models[b] for b in flat_body[rows]]
                out[rows] = self._roll_out(models, int(frames), flat[rows, :size], flat[rows, size:])
        return out.reshape(*x.shape[:-1], size)

    def _roll_out(self, models: list[mujoco.MjModel], frames: int, qv: np.ndarray, control: np.ndarray) -> np.ndarray:
        """Return positions and velocities `[B, 2 Q]` after `frames` physics steps, each state with its own of B models."""
        state = np.zeros((len(qv), 1 + qv.shape[1]))
        finite = np.isfinite(qv).all(axis=1) & np.isfinite(control).all(axis=1)
        state[:, 1:] = np.where(finite[:, None], qv, 0.0)
        controls = np.where(finite[:, None], control, 0.0).astype(np.float64)
        controls = np.repeat(controls[:, None], frames, axis=1)
        out = np.empty((len(qv), frames, 1 + qv.shape[1]))
        sensors = np.empty((len(qv), frames, 0))
        with _ONE_CALLER:
            _pool().rollout(
                models,
                self._scratch,
                state,
                controls,
                nstep=frames,
                state=out,
                sensordata=sensors,
                skip_checks=True,
                chunk_size=_CHUNK,
            )
        return np.where(finite[:, None], out[:, -1, 1:], np.nan)

    @functools.cached_property
    def _scratch(self) -> list[mujoco.MjData]:
        """One state per thread, allocated for the model with the most geoms: that fits the others too."""
        largest = max(self._models, key=lambda model: model.ngeom)
        return [mujoco.MjData(largest) for _ in range(_threads())]
