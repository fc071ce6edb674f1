"""Episodes worth looking at: a herd's members on every task before and after adaptation, as positions over time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tamherd_jax.experiments.results import excluded, write_arrays
from tamherd_jax.herd.learner import MetaLearner, ReplayLearner

_ROLE = 2**20
"""Sets these random numbers apart from those of training and tests, whose roles are small integers."""


@struct.dataclass
class Recording:
    """One episode as it can be drawn; leading axes as the caller vmapped them.

    Attributes:
      q: `[..., T + 1, 9]` positions at reset and after each step.
      rewards: `[..., T]`, 0 where not valid.
      valid: `[..., T]` 1 while the episode had not ended before this step.
    """

    q: jax.Array
    rewards: jax.Array
    valid: jax.Array


def record_episode(
    env: Any, act: Callable[[jax.Array, jax.Array], jax.Array], task: Any, key: jax.Array, length: int
) -> Recording:
    """One episode of a `Locomotion` task with its positions.

    Args:
      env: its states carry `pipeline_state.q`.
      act: `(obs [O], key) -> action [A]`.
      task: one task.
      key: consumed; equal keys give equal resets.
      length: T, static.
    """
    reset_key, action_key = jax.random.split(key)

    def step(state, step_key):
        after = env.step(state, act(state.obs, step_key))
        valid = 1.0 - state.done
        return after, (after.pipeline_state.q, jnp.where(valid > 0, after.reward, 0.0), valid)

    state = env.reset(reset_key, task)
    _, (q, rewards, valid) = jax.lax.scan(step, state, jax.random.split(action_key, length))
    return Recording(jnp.concatenate([state.pipeline_state.q[None], q]), rewards, valid)


def record_adaptation(learner: MetaLearner, key: jax.Array, state: Any, task: Any, explore: int) -> Recording:
    """One task's episodes before and after adaptation, from the same reset: leaves `[2, ...]`.

    Args:
      learner: the meta-learner.
      key: consumed.
      state: of the member that the task is given to.
      task: one task.
      explore: static number of exploration episodes the member adapts to.
    """
    adapt_key, probe_key, episode_key = jax.random.split(key, 3)
    before, _ = learner.probe(probe_key, state, task, 1)
    after, _ = learner.adapt(adapt_key, state, task, explore)

    def record(policy):
        return record_episode(learner.env, lambda obs, k: learner.act(policy, obs, k), task, episode_key, learner.horizon)

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), record(before), record(after))


def record_herd(experiment: Any) -> dict[str, np.ndarray] | None:
    """What `episodes.npz` holds: the first sound seed's herd on every task, each with the member it was last assigned to.

    Returns:
      `q` `[N, 2, T + 1, 9]`, `rewards` and `valid` `[N, 2, T]` (before, after), `member` and `body` `[N]`, `tasks` `[N]`,
      `seed` `[]`; None where no seed has a sound herd, or the environment has no bodies to draw.
    """
    tasks = experiment.task_set.tasks
    curves = {name: np.stack(values, 1) for name, values in experiment.curves.items()}
    lost = {entry["seed"] for entry in excluded(experiment, curves) if entry["arm"] == "herd"}
    sound = [index for index, seed in enumerate(experiment.seeds) if int(seed) not in lost]
    if not sound or not hasattr(tasks, "body"):
        return None
    index, learner, config = sound[0], experiment.member, experiment.config
    states = experiment.states["herd"]
    if isinstance(learner, ReplayLearner):
        states = learner.snapshot(states)
    member = curves["herd/member"][index, -1].astype(np.int32)
    chosen = jax.tree.map(lambda leaf: np.asarray(leaf[index])[member], states)
    key = jax.random.fold_in(jax.random.key(int(experiment.seeds[index])), _ROLE)
    arrays = record_tasks(learner, key, chosen, tasks, config.explore_episodes - config.probe_test_episodes)
    names = np.array(experiment.task_set.task_names)
    return arrays | {"member": member, "tasks": names, "seed": np.asarray(experiment.seeds[index])}


def record_tasks(learner: MetaLearner, key: jax.Array, states: Any, tasks: Any, explore: int) -> dict[str, np.ndarray]:
    """`record_adaptation` of B tasks, each with its own state: `q`, `rewards`, `valid` `[B, 2, ...]` and `body` `[B]`."""
    bodies = np.asarray(tasks.body)

    @jax.jit
    def record(keys, states, tasks):
        return jax.vmap(lambda k, state, task: record_adaptation(learner, k, state, task, explore))(keys, states, tasks)

    recording = record(jax.random.split(key, len(bodies)), states, jax.tree.map(jnp.asarray, tasks))
    return {name: np.asarray(getattr(recording, name)) for name in ("q", "rewards", "valid")} | {"body": bodies}


def write_episodes(experiment: Any, directory: Path) -> None:
    """Write `episodes.npz`, unless there is nothing to draw."""
    arrays = record_herd(experiment)
    if arrays is not None:
        write_arrays(directory / "episodes.npz", arrays)
