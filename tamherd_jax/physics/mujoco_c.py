"""MuJoCo C as a physics backend: batches of states stepped by a pool of threads behind `jax.pure_callback`."""

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
from tamherd_jax.physics.bodies import BODIES, FRAME_SKIP, NQ, NU, NV, load_model

_ONE_CALLER = threading.Lock()  # several devices may call at once; the pool and its scratch states serve one
_CHUNK = 16  # states a thread takes at a time: small enough to balance two threads, large enough to amortise the hand-over


@functools.cache
def _pool() -> tuple[rollout.Rollout, list[mujoco.MjData]]:
    """The process's thread pool and one scratch state a thread."""
    # Divergence is reported to the caller as NaN; MuJoCo's own warnings would fill stderr and a log file.
    mujoco.set_mju_user_warning(lambda message: None)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return rollout.Rollout(nthread=threads), [mujoco.MjData(load_model("cheetah")) for _ in range(threads)]


def _roll_out(models: list[mujoco.MjModel], frames: int, qv: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Positions and velocities `[B, 18]` after `frames` physics steps, each lane with its own of B models."""
    with _ONE_CALLER:  # made once, though several devices may ask first
        pool, data = _pool()
    state = np.zeros((len(qv), 1 + NQ + NV))
    finite = np.isfinite(qv).all(axis=1) & np.isfinite(control).all(axis=1)
    state[:, 1:] = np.where(finite[:, None], qv, 0.0)
    controls = np.where(finite[:, None], control, 0.0).astype(np.float64)
    controls = np.repeat(controls[:, None], frames, axis=1)
    out = np.empty((len(qv), frames, 1 + NQ + NV))
    sensors = np.empty((len(qv), frames, 0))
    with _ONE_CALLER:
        pool.rollout(
            models,
            data,
            state,
            controls,
            nstep=frames,
            state=out,
            sensordata=sensors,
            skip_checks=True,
            chunk_size=_CHUNK,
        )
    return np.where(finite[:, None], out[:, -1, 1:], np.nan)


class MujocoPhysics:
    """MuJoCo C in float64, solver run to its tolerance of 1e-8; state handed over in the caller's precision."""

    name = "mujoco"

    def __init__(self, models: Sequence[mujoco.MjModel] | None = None, frames: Sequence[int] = FRAME_SKIP):
        """A backend for some bodies, by default `BODIES`.

        Args:
          models: of 9 degrees of freedom and 6 motors, which the `body` of `step` selects.
          frames: physics steps per environment step, of each.
        """
        self._models = [load_model(body) for body in BODIES] if models is None else list(models)
        self._frames = np.asarray(frames)

    @classmethod
    def of_models(cls, models: Sequence[mujoco.MjModel], frames: Sequence[int]) -> "MujocoPhysics":
        """The backend for other bodies."""
        return cls(models, frames)

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """See `tamherd_jax.physics.base.Physics.step`."""
        x = jnp.concatenate([state.q, state.qd, control])
        result = jax.ShapeDtypeStruct((NQ + NV,), x.dtype)
        out = jax.pure_callback(self._step_host, result, body, x, vmap_method="broadcast_all")
        return PhysicsState(q=out[:NQ], qd=out[NQ:], warmstart=jnp.zeros(NV, x.dtype))

    def _step_host(self, body: np.ndarray, x: np.ndarray) -> np.ndarray:
        """`[..., 24]` (q, qd, control) to `[..., 18]` (next q, next qd); bodies may mix, lanes of no known body stay put."""
        body, x = np.asarray(body), np.asarray(x)
        flat_body, flat = np.broadcast_to(body, x.shape[:-1]).reshape(-1), x.reshape(-1, NQ + NV + NU)
        out = flat[:, : NQ + NV].copy()
        known = (flat_body >= 0) & (flat_body < len(self._models))
        lane_frames = np.where(known, self._frames[np.where(known, flat_body, 0)], 0)
        for frames in np.unique(self._frames):
            lanes = np.flatnonzero(lane_frames == frames)
            if len(lanes):
                models = [self._models[b] for b in flat_body[lanes]]
                out[lanes] = _roll_out(models, int(frames), flat[lanes, : NQ + NV], flat[lanes, NQ + NV :])
        return out.reshape(*x.shape[:-1], NQ + NV)
