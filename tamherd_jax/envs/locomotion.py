"""Cheetah and Walker as Brax environments whose task (body, direction) is data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.envs._brax import Env, State
from tamherd_jax.envs.tasks import Task, TaskSet
from tamherd_jax.physics import BODIES, FRAME_SKIP, TIMESTEP, Physics, get_physics, init_state, load_model, perturbed_models
from tamherd_jax.physics.bodies import CHEETAH, NQ, NU, NV, WALKER

PARKED = -1
"""Body index handed to the physics for an episode that is over: a backend may skip such lanes."""

_HUGE = 1e10  # MuJoCo's own bound on a state that still counts as sound


class Terms(NamedTuple):
    """Reward, observation, reset and termination terms: (cheetah, walker), or of one body; `dt` is a step's seconds."""

    dt: Any
    control_cost: Any = np.array([0.05, 1e-3], np.float32)
    alive_bonus: Any = np.array([0.0, 1.0], np.float32)
    reset_position: Any = np.array([0.1, 0.005], np.float32)  # half-width of the uniform noise
    rest_height: Any = np.array([0.0, 1.25], np.float32)  # what observation 0 adds to q[1]
    velocity_clip: Any = np.array([np.inf, 10.0], np.float32)
    min_height: Any = np.array([-np.inf, 0.8], np.float32)
    max_height: Any = np.array([np.inf, 2.0], np.float32)
    max_angle: Any = np.array([np.inf, 1.0], np.float32)

    def of(self, body: Any) -> Terms:
        """The terms of one body, scalars."""
        return Terms(*(jnp.asarray(x)[body] for x in self))


class Locomotion(Env):
    """Planar running, either body in one program: `r = d (x' - x) / dt + bonus - cost |a|^2`.

    | | cheetah | walker |
    | --- | --- | --- |
    | time step dt | 5 x 0.01 s | 4 x 0.002 s (see `walker_frame_skip`) |
    | bonus, cost | 0, 0.05 | 1, 0.001 |
    | ends | never | height outside (0.8, 2) m or abs(pitch) >= 1 rad |
    | reset noise | q U(-0.1, 0.1), qd 0.1 N(0, 1) | q and qd U(-0.005, 0.005) |
    | observation `[17]` | q[1:], qd | q[1] + 1.25, q[2:], clip(qd, -10, 10) |

    A task with a target velocity is paid `-abs(d (x' - x) / dt - target)` for its speed instead.
    `d` is the task's direction, x = q[0] and `a = clip(action / expected_action_scale, -1, 1)`. A step that ends an episode is
    paid. Once `done`, a state stays as it is and pays nothing; nothing is reset behind the caller's back. A state that stops
    being finite ends the episode: its reward is 0, the last sound state is kept and `metrics["nonfinite"]` is 1.

    Args:
      physics: backend name (see `tamherd_jax.physics.get_physics`) or backend.
      expected_action_scale: divides actions; garage's `normalize(env, expected_action_scale=10)` for MAML, 1 for PEARL.
      default_task: what `reset` runs when not told.
      variants: number of perturbed copies of each body that tasks may name (see `tamherd_jax.physics.perturbed_models`); then
        `physics` must be a name.
      walker_frame_skip: physics steps of 0.002 s in an environment step of the walker: gymnasium's 4, or ProMP's 8; other than
        4, `physics` must be a name.

    Raises:
      ValueError: there is no such physics backend, or it does not take these bodies or time steps.

    Source: spec 3.4; garage `HalfCheetahDirEnv`, gymnasium `Walker2d-v4`.
    """

    def __init__(
        self,
        physics: str | Physics = "auto",
        expected_action_scale: float = 1.0,
        default_task: Task | None = None,
        variants: int = 0,
        walker_frame_skip: int = FRAME_SKIP[WALKER],
    ):
        if walker_frame_skip < 1:
            raise ValueError(f"walker frame skip must be at least 1, not {walker_frame_skip}")
        frames = (FRAME_SKIP[CHEETAH], walker_frame_skip)
        if isinstance(physics, str):
            models = (*map(load_model, BODIES), *perturbed_models(variants)) if variants else None
            physics = get_physics(physics, models, frames * (1 + variants))
        elif frames != FRAME_SKIP:
            raise ValueError("a walker frame skip other than the default needs physics by its name")
        self._physics, self.variants, self.walker_frame_skip = physics, variants, walker_frame_skip
        self._terms = Terms(dt=np.multiply(frames, TIMESTEP).astype(np.float32))
        self._action_scale = float(expected_action_scale)
        self._default_task = default_task if default_task is not None else _task(CHEETAH)

    def reset(self, rng: jax.Array, task: Task | None = None) -> State:
        """Fresh initial state of a task; `rng` is consumed."""
        task = jax.tree.map(jnp.asarray, self._default_task if task is None else task)
        position_key, velocity_key = jax.random.split(rng)
        terms = self._terms.of(task.body)
        q = jax.random.uniform(position_key, (NQ,), minval=-1.0, maxval=1.0) * terms.reset_position
        uniform = jax.random.uniform(velocity_key, (NV,), minval=-1.0, maxval=1.0) * terms.reset_position
        qd = jnp.where(task.body == CHEETAH, 0.1 * jax.random.normal(velocity_key, (NV,)), uniform)
        zero = jnp.zeros(())
        return State(
            pipeline_state=init_state(q, qd),
            obs=_observe(terms, q, qd),
            reward=zero,
            done=zero,
            metrics={"nonfinite": zero},
            info={"task": task},
        )

    def step(self, state: State, action: jax.Array) -> State:
        """State after one action `[6]`; the same state, unpaid, where `state.done` is 1 already."""
        task, before = state.info["task"], state.pipeline_state
        terms = self._terms.of(task.body)
        over = state.done > 0
        control = jnp.clip(action / self._action_scale, -1.0, 1.0)
        row = task.body if task.variant is None else task.body + len(BODIES) * (1 + task.variant)
        after = self._physics.step(jnp.where(over, PARKED, row), before, control)
        sound = jnp.all(jnp.abs(jnp.concatenate([after.q, after.qd])) < _HUGE) & jnp.all(jnp.isfinite(after.warmstart))
        keep = over | ~sound
        after = jax.tree.map(lambda new, old: jnp.where(keep, old, new), after, before)
        speed = (after.q[0] - before.q[0]) / terms.dt
        progress = task.direction * speed if task.target is None else -jnp.abs(task.direction * speed - task.target)
        reward = progress + terms.alive_bonus - terms.control_cost * jnp.sum(control**2)
        return state.replace(
            pipeline_state=after,
            obs=_observe(terms, after.q, after.qd),
            reward=jnp.where(keep, 0.0, reward),
            done=jnp.where(keep | ~_healthy(terms, after.q), 1.0, 0.0),
            metrics={"nonfinite": jnp.where(over, 0.0, jnp.where(sound, 0.0, 1.0))},
        )

    def terms(self, body: int) -> Terms:
        """The terms of one body as numbers, for who reads episodes afterwards."""
        return Terms(*(float(values[body]) for values in self._terms))

    @property
    def observation_size(self) -> int:
        """O = 17."""
        return NQ - 1 + NV

    @property
    def action_size(self) -> int:
        """A = 6."""
        return NU

    @property
    def expected_action_scale(self) -> float:
        """What divides actions."""
        return self._action_scale

    @property
    def backend(self) -> str:
        """Name of the physics backend."""
        return self._physics.name


class Cheetah(Locomotion):
    """`Locomotion` that runs the cheetah forward unless told another task."""


class Walker(Locomotion):
    """`Locomotion` that runs the walker forward unless told another task."""

    def __init__(
        self,
        physics: str | Physics = "auto",
        expected_action_scale: float = 1.0,
        default_task: Task | None = None,
        walker_frame_skip: int = FRAME_SKIP[WALKER],
    ):
        task = _task(WALKER) if default_task is None else default_task
        super().__init__(physics, expected_action_scale, task, walker_frame_skip=walker_frame_skip)


def make_environment(
    task_set: TaskSet,
    physics: str = "auto",
    expected_action_scale: float = 1.0,
    walker_frame_skip: int = FRAME_SKIP[WALKER],
) -> Locomotion:
    """The environment of one of the package's task sets, with the perturbed bodies that its tasks name.

    Raises:
      ValueError: see `Locomotion`.
    """
    variant = task_set.tasks.variant
    variants = 0 if variant is None else int(np.max(variant)) + 1
    return Locomotion(physics, expected_action_scale, variants=variants, walker_frame_skip=walker_frame_skip)


def _task(body: int) -> Task:
    return Task(body=np.array(body, np.int32), direction=np.array(1.0, np.float32))


def _observe(terms: Terms, q: jax.Array, qd: jax.Array) -> jax.Array:
    """Observation `[17]`, without the distance covered."""
    height = q[1] + terms.rest_height
    return jnp.concatenate([height[None], q[2:], jnp.clip(qd, -terms.velocity_clip, terms.velocity_clip)])


def _healthy(terms: Terms, q: jax.Array) -> jax.Array:
    """Whether the episode goes on at positions `q`."""
    height = q[1] + terms.rest_height
    return (height > terms.min_height) & (height < terms.max_height) & (jnp.abs(q[2]) < terms.max_angle)
