"""Transitions of every task in ring buffers on the device, as pure functions."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Integer, Shaped

from tamherd_jax.envs.episodes import Episodes
from tamherd_jax.types import PyTree


@struct.dataclass
class Transition:
    """Steps of an environment; leading axes as the caller stacked them.

    Attributes:
      obs: `[..., O]`.
      action: `[..., A]` as the environment got it.
      reward: `[...]`, not scaled.
      next_obs: `[..., O]`.
      terminated: `[...]` 1 where the episode ended here; a time limit is no termination.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array


@struct.dataclass
class ReplayBuffer:
    """One ring per task. The oldest transition of a full ring is the next to be overwritten.

    Attributes:
      experience: leaves `[N, C, ...]`.
      cursor: `[N]` int32 where each task's next transition goes.
      size: `[N]` int32 transitions held for each task.
    """

    experience: PyTree
    cursor: jax.Array
    size: jax.Array


def init(example: PyTree, tasks: int, capacity: int) -> ReplayBuffer:
    """Empty rings.

    Args:
      example: one transition, leaves `[...]`; gives shapes and dtypes.
      tasks: N.
      capacity: C, transitions held per task.
    """
    experience = jax.tree.map(lambda leaf: jnp.zeros((tasks, capacity, *leaf.shape), leaf.dtype), example)
    return ReplayBuffer(experience, jnp.zeros(tasks, jnp.int32), jnp.zeros(tasks, jnp.int32))


def add(buffer: ReplayBuffer, transitions: PyTree, task: Integer[Array, " B"], valid: Shaped[Array, " B"]) -> ReplayBuffer:
    """Append transitions, each to its task's ring, in order; the oldest are overwritten.

    Args:
      buffer: donate it where it is large, or it is copied.
      transitions: leaves `[B, ...]`.
      task: `[B]` which ring.
      valid: `[B]` 1 for those to keep; the others leave no gap.
    """
    tasks, capacity = jax.tree.leaves(buffer.experience)[0].shape[:2]
    chosen = (task[:, None] == jnp.arange(tasks)[None]) & (valid[:, None] > 0)
    running = jnp.cumsum(chosen, axis=0, dtype=jnp.int32)
    count = running[-1]
    order = jnp.take_along_axis(running, task[:, None], axis=1)[:, 0] - 1
    # Of more transitions than a ring holds only the last are written: a scatter's order is not defined.
    written = (valid > 0) & (order >= count[task] - capacity)
    position = jnp.where(written, (buffer.cursor[task] + order) % capacity, capacity)
    experience = jax.tree.map(lambda ring, new: ring.at[task, position].set(new, mode="drop"), buffer.experience, transitions)
    return ReplayBuffer(experience, (buffer.cursor + count) % capacity, jnp.minimum(buffer.size + count, capacity))


def clear(buffer: ReplayBuffer, tasks: Bool[Array, " N"]) -> ReplayBuffer:
    """Forget all transitions of the tasks marked in `tasks` `[N]`."""
    return ReplayBuffer(buffer.experience, jnp.where(tasks, 0, buffer.cursor), jnp.where(tasks, 0, buffer.size))


def sample(buffer: ReplayBuffer, key: jax.Array, task: Integer[Array, ""], size: int) -> PyTree:
    """Draw uniformly, with replacement, from one task's ring.

    Args:
      buffer: the rings.
      key: consumed.
      task: `[]` whose ring; of an empty one (see `filled`) the draw means nothing.
      size: B, static.

    Returns:
      Transitions with leaves `[B, ...]`.
    """
    index = jax.random.randint(key, (size,), 0, jnp.maximum(buffer.size[task], 1))
    return jax.tree.map(lambda ring: ring[task, index], buffer.experience)


def sample_episodes(
    buffer: ReplayBuffer, key: jax.Array, task: Integer[Array, ""], size: int, episodes: int, horizon: int
) -> PyTree:
    """Draw uniformly, with replacement, from a few episodes of one task's ring, themselves drawn with replacement.

    Args:
      buffer: the rings; their capacity is a multiple of `horizon`, and what they hold are runs of so many steps.
      key: consumed.
      task: `[]` whose ring; of one with less than an episode the draw means nothing.
      size: B, static.
      episodes: E, static; 0 for all that the ring holds.
      horizon: T, steps of a run.

    Returns:
      Transitions with leaves `[B, ...]`.
    """
    if episodes == 0:
        return sample(buffer, key, task, size)
    run_key, choice_key, step_key = jax.random.split(key, 3)
    runs = jax.random.randint(run_key, (episodes,), 0, jnp.maximum(buffer.size[task] // horizon, 1))
    chosen = runs[jax.random.randint(choice_key, (size,), 0, episodes)]
    index = chosen * horizon + jax.random.randint(step_key, (size,), 0, horizon)
    return jax.tree.map(lambda ring: ring[task, index], buffer.experience)


def filled(buffer: ReplayBuffer) -> Bool[Array, " N"]:
    """`[N]` whether a task has any transition."""
    return buffer.size > 0


def trim(buffer: ReplayBuffer) -> ReplayBuffer:
    """Rings, or a batch of them, on the host and cut to what the fullest holds: a ring is filled from its start.

    What a ring holds beyond its size, transitions of before it was cleared, is lost; nothing ever samples it.
    """
    held, axis = int(np.max(buffer.size, initial=0)), buffer.size.ndim
    cut = (slice(None),) * axis + (slice(held),)
    experience = jax.tree.map(lambda ring: np.ascontiguousarray(np.asarray(ring)[cut]), buffer.experience)
    numbers: Any = jax.tree.map(np.asarray, (buffer.cursor, buffer.size))
    return ReplayBuffer(experience, *numbers)


def widen(buffer: ReplayBuffer, capacity: int) -> ReplayBuffer:
    """Rings, or a batch of them, with room for C transitions again after `trim`; zeros where there are none."""
    axis = buffer.size.ndim

    def padded(ring: jax.Array) -> jax.Array:
        width = [(0, 0)] * ring.ndim
        width[axis] = (0, capacity - ring.shape[axis])
        return jnp.pad(ring, width)

    return ReplayBuffer(jax.tree.map(padded, buffer.experience), buffer.cursor, buffer.size)


def capacity_of(buffer: ReplayBuffer) -> int:
    """C of rings or of a batch of them, which may be of shapes alone."""
    return int(jax.tree.leaves(buffer.experience)[0].shape[len(buffer.size.shape)])


def to_transitions(episodes: Episodes) -> tuple[Transition, jax.Array]:
    """The steps `[..., T]` of episodes side by side as transitions `[B, ...]`, and which are valid, `[B]`."""
    batch = episodes.valid.size
    steps = Transition(episodes.obs, episodes.actions, episodes.rewards, episodes.next_obs, episodes.terminated)
    return jax.tree.map(lambda leaf: leaf.reshape(batch, *leaf.shape[episodes.valid.ndim :]), steps), episodes.valid.ravel()


def buffer_bytes(example: PyTree, tasks: int, capacity: int) -> int:
    """Bytes that `init` would allocate for these arguments; `example` may be of shapes alone."""
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(example))
    return tasks * (capacity * row + 2 * jnp.dtype(jnp.int32).itemsize)


def device_memory(device: jax.Device | None = None) -> int | None:
    """Bytes a device may hold, the machine's memory for a CPU, None where it does not tell."""
    device = jax.devices()[0] if device is None else device
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return (device.memory_stats() or {}).get("bytes_limit")


def check_memory(needed: int, available: int | None, advice: str) -> None:
    """Refuse what a device cannot hold, before anything is allocated.

    Args:
      needed: bytes.
      available: bytes, or None where unknown: then nothing is refused.
      advice: what to change.

    Raises:
      ValueError: one line with both sizes and the advice.
    """
    if available is not None and needed > available:
        raise ValueError(
            f"the replay buffers need {needed / 2**30:.1f} GiB but the device has {available / 2**30:.1f} GiB: {advice}"
        )
