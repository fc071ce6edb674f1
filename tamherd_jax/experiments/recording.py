"""Episodes worth looking at: what a trained herd does on its tasks before and after adaptation, as positions over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from tamherd_jax.codec import write_arrays
from tamherd_jax.envs import Locomotion, Task, TaskSet
from tamherd_jax.envs.episodes import Episodes
from tamherd_jax.envs.locomotion import Terms
from tamherd_jax.experiments.herds import finite_herds, trained_herd
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.state import RunState
from tamherd_jax.herd.artefact import AdaptedPolicy, Herd
from tamherd_jax.types import LatentLearner


def task_key(herd: Herd, task: str, task_set: TaskSet | None = None) -> jax.Array:
    """The key that `tamherd evaluate` and `tamherd view` adapt to a task with: both see the same episodes."""
    return jax.random.fold_in(jax.random.key(herd.seed), (task_set or herd.task_set).index(task))


def record(herd: Herd, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Adapt a herd to tasks by name, and keep one exploration and one test episode of each, those of median return.

    Returns:
      What `episodes.npz` holds, B tasks: `q` `[B, 2, T + 1, Q]`, `rewards` and `valid` `[B, 2, T]` (before, after), `member`,
      `body` and `dt` (a step's seconds) `[B]`, `tasks` `[B]` their names, `seed` `[]`.

    Raises:
      ValueError: no such task, or an environment without bodies to draw.
    """
    env = herd.learner.env
    if not isinstance(env, Locomotion):
        raise ValueError(f"the environment {type(env).__name__} has no bodies that can be drawn")
    rows = [_record_task(herd, env, task) for task in tasks]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return arrays | {"tasks": np.array(tasks), "seed": np.asarray(herd.seed)}


def _record_task(herd: Herd, env: Locomotion, name: str) -> dict[str, np.ndarray]:
    task = jax.tree.map(lambda leaf: leaf[herd.task_set.index(name)], herd.task_set.tasks)
    adapted = herd.adapt(task_key(herd, name), name)
    chosen = [median_episode(episodes) for episodes in phases(adapted)]
    return {
        "q": np.stack([positions(episode, task, env) for episode in chosen]),
        "rewards": np.stack([episode.rewards for episode in chosen]),
        "valid": np.stack([episode.valid for episode in chosen]),
        "member": np.asarray(adapted.member),
        "body": np.asarray(task.body),
        "dt": np.asarray(env.terms(int(task.body)).dt),
    }


def phases(adapted: AdaptedPolicy) -> tuple[Episodes, Episodes]:
    """Exploration and test episodes, leaves `[R, T, ...]` on the host, as the environment saw them."""
    before = adapted.before
    if isinstance(adapted.learner, LatentLearner):  # it explored on more than the environment shows
        before = adapted.learner.observed(before)
    return jax.tree.map(np.asarray, (before, adapted.after))


def median_episode(episodes: Episodes) -> Episodes:
    """Of episodes `[R, T, ...]` the one of median return, the lower of the two in the middle."""
    order = np.argsort(np.asarray(episodes.returns), kind="stable")
    return jax.tree.map(lambda leaf: np.asarray(leaf)[order[(len(order) - 1) // 2]], episodes)


def positions(episode: Episodes, task: Task, env: Locomotion) -> np.ndarray:
    """Positions `[T + 1, Q]` over an episode `[T, ...]` of one task, from x = 0; after its end the last ones again."""
    terms, steps = env.terms(int(task.body)), int(episode.valid.sum())
    shown = np.concatenate([episode.obs[:steps], episode.next_obs[max(steps - 1, 0) : max(steps, 1)]])[: steps + 1]
    coordinates = env.coordinates
    q = np.zeros((len(episode.valid) + 1, coordinates), np.float32)
    q[1 : steps + 1, 0] = np.cumsum(_speeds(episode, task, terms, env)[:steps] * terms.dt)
    q[: steps + 1, 1:] = shown[:, : coordinates - 1]
    q[: steps + 1, 1] -= terms.rest_height
    q[steps + 1 :] = q[steps]
    return q


def _speeds(episode: Episodes, task: Task, terms: Terms, env: Locomotion) -> np.ndarray:
    """`[T]` mean speed over each step (m/s), which observations lack but rewards tell: `d v = r - bonus + cost |a|^2`."""
    direction = float(task.direction)
    control = env.own_controls(int(task.body), np.clip(episode.actions / env.expected_action_scale, -1.0, 1.0))
    progress = episode.rewards - terms.alive_bonus + terms.control_cost * np.sum(control**2, axis=-1)
    if task.target is None:
        return np.asarray(direction * progress)
    # The reward is `-abs(d v - target)`: of the two speeds, the one nearer to the velocity seen at both ends of the step.
    # Close to the target it may be the wrong one, which moves the drawing by centimetres.
    slower, faster = (direction * (float(task.target) + sign * progress) for sign in (1.0, -1.0))
    root_speed = env.coordinates - 1
    seen = (episode.obs[:, root_speed] + episode.next_obs[:, root_speed]) / 2
    return np.where(np.abs(slower - seen) < np.abs(faster - seen), slower, faster)


def write_episodes(plan: Plan, state: RunState, directory: Path) -> None:
    """Record the first finite herd on all its tasks to `episodes.npz`; nothing if there is none, or no bodies to draw."""
    finite = finite_herds(plan, state) if isinstance(plan.env, Locomotion) else []
    if finite:
        herd = trained_herd(plan, state, finite[0])
        write_arrays(directory / "episodes.npz", record(herd, herd.task_set.task_names))
