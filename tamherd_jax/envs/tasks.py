"""Tasks as data, named task sets, and drawing a meta-batch from weights."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Integer, Real

from tamherd_jax.registry.bodies import BODIES, suite
from tamherd_jax.types import PyTree

_NAMES = tuple(body.name for body in BODIES)


@struct.dataclass
class Task:
    """One task of a locomotion task set; leading axes as the caller stacked them.

    Attributes:
      body: `[...]` int32 index into `tamherd_jax.physics.BODIES`.
      direction: `[...]` +1 to reward moving forward, -1 moving backward.
      target: `[...]` velocity (m/s) to be kept, in the task's direction; None to reward speed itself.
      variant: `[...]` int32, which of a `Locomotion`'s perturbed bodies; None for the nominal ones.
    """

    body: jax.Array | np.ndarray
    direction: jax.Array | np.ndarray
    target: jax.Array | np.ndarray | None = None
    variant: jax.Array | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """A named, versioned list of tasks with their true modes.

    Attributes:
      name, version: identify the set in result files; a changed task or reward is a new version.
      task_names: N names as the command line takes them.
      tasks: pytree of the N tasks, leaves `[N, ...]`; whatever the environment's `reset` takes.
      mode_names: names of the true modes (ML2: the two bodies). Only the oracle and the diagnostics know them.
      modes: `[N]` mode of each task.
    """

    name: str
    version: int
    task_names: tuple[str, ...]
    tasks: PyTree
    mode_names: tuple[str, ...]
    modes: np.ndarray

    def __len__(self) -> int:
        """N, number of tasks."""
        return len(self.task_names)

    def index(self, task_name: str) -> int:
        """Position of a task by name.

        Raises:
          ValueError: if the set has no task of that name.
        """
        if task_name not in self.task_names:
            raise ValueError(f"{self.name} has no task {task_name!r}; its tasks are {', '.join(self.task_names)}")
        return self.task_names.index(task_name)

    def task(self, task_name: str) -> Any:
        """Return one task.

        Raises:
          ValueError: there is none of that name.
        """
        index = self.index(task_name)
        return jax.tree.map(lambda leaf: leaf[index], self.tasks)

    def mode_weights(self) -> np.ndarray:
        """`[modes, N]` the oracle's training distributions: uniform over the tasks of each mode."""
        member = np.arange(len(self.mode_names))[:, None] == self.modes[None]
        return (member / member.sum(1, keepdims=True)).astype(np.float32)


def ml2() -> TaskSet:
    """Return ML2 version 1: its two bodies forward and backward (paper section 5)."""
    return _directions("ML2")


def ml3() -> TaskSet:
    """Return ML3 version 1: ML2's bodies and a smaller one, forward and backward; see `Locomotion` for how sizes are padded."""
    return _directions("ML3")


def _directions(name: str) -> TaskSet:
    """Return the task set of a suite's bodies, each forward and backward."""
    body, sign = _product(name, (1, -1))
    names = [f"{_NAMES[b]}-{'forward' if s > 0 else 'backward'}" for b, s in zip(body, sign, strict=True)]
    return _of_bodies(name, suite(name), names, Task(body, sign.astype(np.float32)))


VELOCITIES = (0.25, 0.75, 1.25, 1.75)
"""Target velocities of ML2-Vel, m/s; any other is a task of the same kind."""

VARIANTS = 4
"""Perturbed copies of each body in ML2-Params."""


def ml2_vel() -> TaskSet:
    """Return ML2-Vel version 1: ML2's bodies at four target velocities each, a continuum inside each mode.

    The reward for speed is `-abs(v - target)` (Finn et al. 2017, HalfCheetah goal velocity); bonus and control cost are ML2's.
    """
    return _target_velocities("ML2-Vel", VELOCITIES)


def ml2_vel_between() -> TaskSet:
    """Return ML2-Vel-Between version 1: the target velocities halfway between those of ML2-Vel, for tests of what it taught."""
    return _target_velocities("ML2-Vel-Between", [(low + high) / 2 for low, high in itertools.pairwise(VELOCITIES)])


def _target_velocities(name: str, velocities: Iterable[float]) -> TaskSet:
    """Return ML2's bodies at some target velocities each, m/s."""
    body, target = _product("ML2", velocities)
    names = [f"{_NAMES[b]}-{v}" for b, v in zip(body, target, strict=True)]
    tasks = Task(body, np.ones(len(body), np.float32), target=target.astype(np.float32))
    return _of_bodies(name, suite("ML2"), names, tasks)


def ml2_params() -> TaskSet:
    """Return ML2-Params version 1: ML2's bodies forward, four perturbed copies of each; see `physics.perturbed_models`.

    Its environment is `Locomotion(..., variants=VARIANTS)`.
    """
    body, variant = _product("ML2", range(VARIANTS))
    names = [f"{_NAMES[b]}-variant-{v}" for b, v in zip(body, variant, strict=True)]
    return _of_bodies(
        "ML2-Params", suite("ML2"), names, Task(body, np.ones(len(body), np.float32), variant=variant.astype(np.int32))
    )


def _product(name: str, values: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """`[N]` body and value of every pair of a suite's bodies with a value."""
    bodies, values = zip(*itertools.product(map(_NAMES.index, suite(name)), values), strict=True)
    return np.array(bodies, np.int32), np.array(values)


def _of_bodies(name: str, bodies: tuple[str, ...], task_names: Sequence[str], tasks: Task) -> TaskSet:
    """Return the first version of a task set whose modes are its bodies."""
    modes = [bodies.index(_NAMES[body]) for body in np.asarray(tasks.body)]
    return TaskSet(name, 1, tuple(task_names), tasks, bodies, np.array(modes))


def bodies_of(task_set: TaskSet) -> tuple[str, ...]:
    """Return the names of the bodies that a task set's locomotion tasks have, in the registry's order."""
    return tuple(_NAMES[body] for body in np.unique(np.asarray(task_set.tasks.body)))


TASK_SETS: dict[str, Callable[[], TaskSet]] = {
    "ml2": ml2,
    "ml2-vel": ml2_vel,
    "ml2-vel-between": ml2_vel_between,
    "ml2-params": ml2_params,
    "ml3": ml3,
}
"""The package's own task sets, by their name in lower case."""


def get_task_set(name: str) -> TaskSet:
    """One of the package's task sets.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in TASK_SETS:
        raise ValueError(f"unknown task set {name!r}; choose from {', '.join(TASK_SETS)}")
    return TASK_SETS[name]()


def take_tasks(tasks: PyTree, index: jax.Array | np.ndarray) -> Any:
    """The tasks at `index`: leaves `[N, ...]` become `[*index.shape, ...]`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tasks)


def systematic_resample(key: jax.Array, weights: Real[Array, " N"], size: int) -> Integer[Array, " M"]:
    """Stratified draw of task indices: `index_m = min {n : sum_{j<=n} w_j > (m + u) / size}`, `u ~ U[0, 1)` shared.

    Every task is drawn `floor(size w_n)` or `ceil(size w_n)` times, so equal weights with N dividing `size` give an exactly
    balanced meta-batch.

    Args:
      key: consumed.
      weights: `[N]` non-negative, not all zero; normalised here.
      size: M, static.

    Returns:
      `[M]` int32 indices in ascending order, never one of weight zero.

    Source: Kitagawa (1996), systematic resampling.
    """
    # Positions are kept off the strata's edges, where rounding of the cumulative sum would break exact balance.
    u = jax.random.uniform(key, (), weights.dtype, minval=1e-3, maxval=1.0 - 1e-3)
    cumulative = jnp.cumsum(weights) / jnp.sum(weights)
    positions = (jnp.arange(size, dtype=weights.dtype) + u) / size
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.size), 0))
    return jnp.minimum(jnp.searchsorted(cumulative, positions, side="right"), last).astype(jnp.int32)


def mean_by_task(index: Integer[Array, " M"], values: Real[Array, " M"], tasks: int) -> Float[Array, " N"]:
    """Return the means `[N]` of `values` `[M]` over the entries of each task, `index` `[M]`; NaN for a task with none.

    Under `JAX_DEBUG_NANS=1`, which stops at every NaN that a program returns, minus infinity takes the place of these.
    """
    mine = jnp.arange(tasks)[:, None] == index[None]
    count = jnp.sum(mine, axis=1)
    means = jnp.sum(jnp.where(mine, values[None], 0.0), axis=1) / jnp.maximum(count, 1)
    debugging: bool = jax.config.jax_debug_nans  # type: ignore[attr-defined]
    return jnp.where(count > 0, means, -jnp.inf if debugging else jnp.nan)
