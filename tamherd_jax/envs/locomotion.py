"""Planar running as a Brax environment whose task (body, direction, target) is data; bodies come from the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tamherd_jax.envs._brax import Env, State
from tamherd_jax.envs.tasks import Task, TaskSet, bodies_of
from tamherd_jax.physics import BODIES, DEFAULT_BODIES, Physics, get_physics, init_state, load_models, perturbed_models
from tamherd_jax.physics.bodies import ROOT, common_layout, own_hinges
from tamherd_jax.registry.bodies import ADJUSTABLE_FRAME_SKIP, Body, get_body

PARKED = -1
"""Body index handed to the physics for an episode that is over: a backend may skip such batch elements."""

_HUGE = 1e10  # MuJoCo's own bound on a state that still counts as finite

Number: TypeAlias = Any
"""Array with a leading axis of bodies, or one body's number."""


class Terms(NamedTuple):
    """Reward, observation, reset and termination terms of the registry's entries, a row per body; `dt` is a step's seconds."""

    dt: Number
    control_cost: Number
    alive_bonus: Number
    reset_position: Number
    reset_velocity: Number
    rest_height: Number
    velocity_clip: Number
    min_height: Number
    max_height: Number
    max_angle: Number
    max_state: Number

    def of(self, body: Any, dtype: Any) -> Terms:
        """Return the terms of one body, scalars of a floating-point type."""
        return Terms(*(jnp.asarray(x, dtype)[body] for x in self))


def _terms(entries: Sequence[Body], frames: Sequence[int]) -> Terms:
    """Stack the entries' terms, float64."""
    dt = np.multiply(frames, [entry.timestep for entry in entries])
    return Terms(dt, *(np.array([getattr(entry, name) for entry in entries], float) for name in Terms._fields[1:]))


class Locomotion(Env):
    """Planar running of several bodies in one program: `r = d (x' - x) / dt + bonus - cost |a|^2`.

    `d` is the task's direction, x = q[0] and `a = clip(action / expected_action_scale, -1, 1)`. A task with a target velocity
    has the reward `-abs(d (x' - x) / dt - target)` for its speed instead. Time step, bonus, cost, reset noise and the states
    that end an episode are those of each body's registry entry.

    A step that ends an episode has its reward. Once `done`, a state stays as it is with reward 0; nothing is reset behind the
    caller's back. A state that stops being finite ends the episode: its reward is 0, the last finite state is kept and
    `metrics["nonfinite"]` is 1.

    The observation is `[q[1] + rest_height, q[2:], clip(qd)]`. Its size O and the number A of actions are those of the bodies'
    common layout, chain after chain. **Padding**: where a body has fewer chains or links than another, the observations of the
    missing joints are 0, and their actions neither move anything nor enter the reward. An environment of one body has that
    body's own sizes, which are gymnasium's.

    Args:
      physics: backend name (see `tamherd_jax.physics.get_physics`) or backend of the same bodies in the same order.
      expected_action_scale: scale by which actions are divided; garage's `normalize(env, expected_action_scale=10)` for MAML, 1
        for PEARL.
      default_task: what `reset` runs when not told; by default the first body forward.
      variants: number of perturbed copies of each body that tasks may name (see `tamherd_jax.physics.perturbed_models`); then
        `physics` must be a name.
      walker_frame_skip: frame skip of the body whose entry has `other_frame_skips`: gymnasium's 4, or ProMP's 8; other than
        the entry's, `physics` must be a name.
      bodies: names of the bodies, by default the paper's. A task's body is an index into the registry, `physics.BODIES`, and
        must be one of these.

    Raises:
      ValueError: there is no such physics backend or body, or the backend does not take these bodies or time steps.

    Source: garage `HalfCheetahDirEnv`, gymnasium's locomotion environments.
    """

    def __init__(
        self,
        physics: str | Physics = "auto",
        expected_action_scale: float = 1.0,
        default_task: Task | None = None,
        variants: int = 0,
        walker_frame_skip: int = ADJUSTABLE_FRAME_SKIP,
        bodies: Sequence[str] = DEFAULT_BODIES,
    ):
        if walker_frame_skip < 1:
            raise ValueError(f"walker frame skip must be at least 1, not {walker_frame_skip}")
        entries = [get_body(body) for body in bodies]
        frames = tuple(walker_frame_skip if entry.other_frame_skips else entry.frame_skip for entry in entries)
        self.bodies = tuple(bodies)
        if isinstance(physics, str):
            models = (*load_models(self.bodies), *perturbed_models(variants, bodies=self.bodies)) if variants else None
            physics = get_physics(physics, models, frames * (1 + variants), self.bodies)
        elif frames != tuple(entry.frame_skip for entry in entries):
            raise ValueError("a walker frame skip other than the default needs physics by its name")
        self._physics, self.variants, self.walker_frame_skip = physics, variants, walker_frame_skip
        self._terms = _terms(entries, frames)
        self._rows = np.array([self.bodies.index(body) if body in self.bodies else PARKED for body in BODIES], np.int32)
        self._hinges = _own_hinges(self.bodies)
        self._action_scale = float(expected_action_scale)
        self._default_task = default_task if default_task is not None else _task(BODIES.index(self.bodies[0]))

    def reset(self, rng: jax.Array, task: Task | None = None) -> State:
        """Return a fresh initial state of a task; `rng` is consumed."""
        task = jax.tree.map(jnp.asarray, self._default_task if task is None else task)
        row = self._row(task.body)
        position_key, velocity_key = jax.random.split(rng)
        zero = jnp.zeros(())
        terms, shape = self._terms.of(row, zero.dtype), (self.coordinates,)
        q = jax.random.uniform(position_key, shape, minval=-1.0, maxval=1.0) * terms.reset_position
        uniform = jax.random.uniform(velocity_key, shape, minval=-1.0, maxval=1.0) * terms.reset_position
        normal = terms.reset_velocity * jax.random.normal(velocity_key, shape)
        qd = jnp.where(terms.reset_velocity > 0, normal, uniform)
        if not self._hinges.all():
            own = jnp.concatenate([jnp.ones(ROOT, bool), jnp.asarray(self._hinges)[row]])
            q, qd = (jnp.where(own, x, 0.0) for x in (q, qd))
        return State(
            pipeline_state=init_state(q, qd),
            obs=_observe(terms, q, qd),
            reward=zero,
            done=zero,
            metrics={"nonfinite": zero},
            info={"task": task},
        )

    def _row(self, body: Any) -> Any:
        """Return a body's row among those of this environment, from its index in the registry.

        Raises:
          ValueError: the body is known while tracing, and the environment has none such.
        """
        if not isinstance(body, jax.core.Tracer) and (self._rows[np.asarray(body)] == PARKED).any():
            raise ValueError(f"the task's body is {BODIES[int(body)]}; this environment has {', '.join(self.bodies)}")
        if (self._rows[: len(self.bodies)] == np.arange(len(self.bodies))).all():
            return body
        return jnp.asarray(self._rows)[body]

    def step(self, state: State, action: jax.Array) -> State:
        """Return the state after one action `[A]`; the same state with reward 0 where `state.done` is 1 already."""
        task, before = state.info["task"], state.pipeline_state
        body = self._row(task.body)
        terms = self._terms.of(body, before.q.dtype)
        over = state.done > 0
        control = jnp.clip(action / self._action_scale, -1.0, 1.0)
        if not self._hinges.all():
            control = jnp.where(jnp.asarray(self._hinges)[body], control, 0.0)
        row = body if task.variant is None else body + len(self.bodies) * (1 + task.variant)
        after = self._physics.step(jnp.where(over, PARKED, row), before, control)
        finite = jnp.all(jnp.abs(jnp.concatenate([after.q, after.qd])) < _HUGE) & jnp.all(jnp.isfinite(after.warmstart))
        keep = over | ~finite
        after = jax.tree.map(lambda new, old: jnp.where(keep, old, new), after, before)
        speed = (after.q[0] - before.q[0]) / terms.dt
        progress = task.direction * speed if task.target is None else -jnp.abs(task.direction * speed - task.target)
        reward = progress + terms.alive_bonus - terms.control_cost * jnp.sum(control**2)
        return state.replace(
            pipeline_state=after,
            obs=_observe(terms, after.q, after.qd),
            reward=jnp.where(keep, 0.0, reward),
            done=jnp.where(keep | ~self._healthy(terms, after.q, after.qd), 1.0, 0.0),
            metrics={"nonfinite": jnp.where(over, 0.0, jnp.where(finite, 0.0, 1.0))},
        )

    def _healthy(self, terms: Terms, q: Float[Array, " Q"], qd: Float[Array, " Q"]) -> Bool[Array, ""]:
        """Return whether the episode goes on at positions `q` and velocities `qd`."""
        height = q[1] + terms.rest_height
        healthy = (height > terms.min_height) & (height < terms.max_height) & (jnp.abs(q[2]) < terms.max_angle)
        if np.isfinite(self._terms.max_state).any():
            healthy &= jnp.all(jnp.abs(jnp.concatenate([q[2:], qd])) < terms.max_state)
        return healthy

    def terms(self, body: int) -> Terms:
        """Return the terms of one body of the registry as numbers, for reading recorded episodes."""
        return Terms(*(float(values[self._rows[body]]) for values in self._terms))

    def own_controls(self, body: int, control: np.ndarray) -> np.ndarray:
        """Return the controls `[..., A]` with 0 for the hinges that a body of the registry lacks."""
        return np.where(self._hinges[self._rows[body]], control, 0.0)

    @property
    def coordinates(self) -> int:
        """Q, degrees of freedom of the bodies' common layout."""
        return ROOT + self._hinges.shape[1]

    @property
    def observation_size(self) -> int:
        """O = 2 Q - 1."""
        return 2 * self.coordinates - 1

    @property
    def action_size(self) -> int:
        """A, hinges of the bodies' common layout."""
        return int(self._hinges.shape[1])

    @property
    def expected_action_scale(self) -> float:
        """Scale by which actions are divided."""
        return self._action_scale

    @property
    def backend(self) -> str:
        """Name of the physics backend."""
        return self._physics.name


def body_environment(body: str) -> Callable[..., Locomotion]:
    """Return the constructor of `Locomotion` with one body, of its own sizes; takes the other arguments of `Locomotion`."""

    def make(physics: str | Physics = "auto", expected_action_scale: float = 1.0, **others: Any) -> Locomotion:
        return Locomotion(physics, expected_action_scale, bodies=(body,), **others)

    return make


def make_environment(
    task_set: TaskSet,
    physics: str = "auto",
    expected_action_scale: float = 1.0,
    walker_frame_skip: int = ADJUSTABLE_FRAME_SKIP,
) -> Locomotion:
    """Return the environment of one of the package's task sets, with the bodies and perturbed copies that its tasks name.

    Raises:
      ValueError: see `Locomotion`.
    """
    variant = task_set.tasks.variant
    variants = 0 if variant is None else int(np.max(variant)) + 1
    return Locomotion(
        physics, expected_action_scale, variants=variants, walker_frame_skip=walker_frame_skip, bodies=bodies_of(task_set)
    )


def _own_hinges(bodies: tuple[str, ...]) -> np.ndarray:
    """`[bodies, A]` bool, which hinges of the common layout each body has."""
    layout = common_layout(bodies)
    return np.array([np.isin(np.arange(layout[0] * layout[1]), own_hinges(body, layout)) for body in bodies])


def _task(body: int) -> Task:
    return Task(body=np.array(body, np.int32), direction=np.array(1.0, np.float32))


def _observe(terms: Terms, q: Float[Array, " Q"], qd: Float[Array, " Q"]) -> Float[Array, " O"]:
    """Return the observation `[O]`, without the distance covered."""
    height = q[1] + terms.rest_height
    return jnp.concatenate([height[None], q[2:], jnp.clip(qd, -terms.velocity_clip, terms.velocity_clip)])
