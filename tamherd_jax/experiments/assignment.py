"""Which learner is tested on which task: pure functions of plan, state and epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.experiments.arms import Arm
from tamherd_jax.experiments.keys import role_keys
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, mean_by_task, settings_of
from tamherd_jax.experiments.state import RunState, member_counts, member_weights


@dataclasses.dataclass(frozen=True)
class AssignedTasks:
    """Which learner each test task is assigned to.

    Attributes:
      learner: `[S, B]` index among the arm's learners.
      records: What is recorded of it, fields of `ArmCurves` by name.
    """

    learner: Any
    records: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def assign_test_tasks(plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch: int) -> AssignedTasks:
    """Assign every test task to a learner of an arm, as the arm says."""
    return ASSIGNMENTS[arm.assign](plan, programs, state, arm, epoch)


def to_the_only_learner(plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch: int) -> AssignedTasks:
    """Assign all tasks to the one learner there is."""
    return AssignedTasks(np.zeros((len(plan.seeds), len(plan.test_task)), np.int32))


def to_the_mode(plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch: int) -> AssignedTasks:
    """Assign each task to the learner of its own mode, which only an oracle knows."""
    return AssignedTasks(np.tile(plan.task_set.modes[plan.test_task].astype(np.int32), (len(plan.seeds), 1)))


def to_the_majority(plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch: int) -> AssignedTasks:
    """Assign each task to the member whose training tasks are most often of its mode."""
    of_mode = member_weights(plan, state, arm.clustered) @ (plan.task_set.mode_weights() > 0).T.astype(np.float32)
    exists = np.arange(arm.size) < member_counts(plan, state, arm.clustered)[:, None]
    member = np.where(exists[..., None], of_mode, -1.0).argmax(1)  # [S, modes]
    return AssignedTasks(member[:, plan.task_set.modes[plan.test_task]])


def to_random_members(plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch: int) -> AssignedTasks:
    """Assign each task to a member at random."""

    def sample(key: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, epoch), plan.test_task.shape, 0, count)

    counts = jnp.asarray(member_counts(plan, state, arm.clustered))
    return AssignedTasks(jax.vmap(sample)(role_keys(plan.seeds, "random_assignment"), counts))


def to_the_nearest(plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch: int) -> AssignedTasks:
    """Assign each task to the member with the nearest centroid, from fresh probe episodes in the task."""
    found = state.clustered[arm.clustered]
    membership = np.stack([np.eye(arm.size, dtype=np.float32)[clusters.labels] for clusters in found.clusters])
    keys = role_keys(plan.seeds, "assign")
    settings = settings_of(plan, 1)
    assignment, steps = programs.assign(keys, np.uint32(epoch), found.probe, found.embedded, membership, settings)
    sure = {name: mean_by_task(plan, np.asarray(getattr(assignment, name))) for name in ("confidence", "margin")}
    return AssignedTasks(np.asarray(assignment.nearest), {**sure, "assign_steps": steps})


ASSIGNMENTS: Mapping[str, Callable[[Plan, Programs, RunState, Arm, int], AssignedTasks]] = {
    "only": to_the_only_learner,
    "mode": to_the_mode,
    "majority": to_the_majority,
    "random": to_random_members,
    "nearest": to_the_nearest,
}
"""By `Arm.assign`."""
