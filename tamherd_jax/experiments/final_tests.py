"""Tests of the learners after their last epoch: with other numbers of exploration episodes, and on tasks of another set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from tamherd_jax.envs import TaskSet, get_task_set
from tamherd_jax.experiments.assignment import assign_test_tasks
from tamherd_jax.experiments.keys import FINAL_EPOCH, role_keys
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import make_programs, settings_of
from tamherd_jax.experiments.state import RunState
from tamherd_jax.types import without_replay

ARMS = ("oracle", "single", "herd")


@dataclasses.dataclass(frozen=True)
class FinalTests:
    """Returns after k exploration episodes, for several k.

    Attributes:
      task_set: Name of the tasks' set.
      tasks: `[N]` their names.
      bodies: `[N]` the body of each.
      shots: `[k]` numbers of exploration episodes. A herd's are those of the member, after the probe's.
      returns: By arm, `[S, N, k]`.
    """

    task_set: str
    tasks: tuple[str, ...]
    bodies: tuple[str, ...]
    shots: tuple[int, ...]
    returns: dict[str, np.ndarray]


def run_final_tests(
    plan: Plan, state: RunState, devices: Sequence[jax.Device] | None = None, per_call: int | None = None
) -> FinalTests | None:
    """Test the paper's arms as `ExperimentConfig.shots` and `.test_tasks` ask for; None where they ask for nothing.

    Args:
      plan, state: A finished experiment.
      devices, per_call: As in `make_programs`.

    Raises:
      ValueError: See `final_plan`.
    """
    shots = plan.config.shots
    if not shots:
        return None
    plan = final_plan(plan)
    programs = make_programs(plan, devices, per_call, shots)
    seed, settings = np.arange(len(plan.seeds))[:, None], settings_of(plan, 1)
    returns = {}
    for name in ARMS:
        arm = plan.arms[name]
        learner = np.asarray(assign_test_tasks(plan, programs, state, arm, int(FINAL_EPOCH)).learner)
        trained = without_replay(plan.learner, state.learners[arm.source])
        states = jax.tree.map(lambda leaf, learner=learner: leaf[seed, learner], trained)
        keys = role_keys(plan.seeds, f"test_{arm.role}")
        results = [programs.test[count](keys, FINAL_EPOCH, states, settings) for count in shots]
        returns[name] = np.stack([np.asarray(result.after) for result in results], -1)
    task_set = plan.task_set
    bodies = tuple(task_set.mode_names[mode] for mode in task_set.modes)
    return FinalTests(task_set.name, tuple(task_set.task_names), bodies, tuple(shots), returns)


def final_plan(plan: Plan) -> Plan:
    """Return a plan whose tests are of the tasks of `ExperimentConfig.test_tasks`.

    Raises:
      ValueError: Those tasks are of another kind than those trained on, or leave out a body.
    """
    name = plan.config.test_tasks
    if name is None:
        return plan
    task_set = same_kind(plan.task_set, name)
    if len(task_set.mode_names) < len(plan.task_set.mode_names):
        raise ValueError(f"the tasks of {name} leave out a body of those trained on, {plan.task_set.name}")
    return dataclasses.replace(plan, task_set=task_set, test_task=np.repeat(np.arange(len(task_set)), plan.config.test_repeats))


def same_kind(trained: TaskSet, name: str) -> TaskSet:
    """Return a task set whose tasks a learner of another one can be tested on.

    Raises:
      ValueError: There is none of that name, its tasks are others, or its bodies are not the first ones of those trained on.
    """
    task_set = get_task_set(name)
    before, after = (jax.tree.map(lambda leaf: leaf.shape[1:], one.tasks) for one in (trained, task_set))
    names = tuple(task_set.mode_names)
    if before != after or names != tuple(trained.mode_names)[: len(names)]:
        raise ValueError(f"the tasks of {name} are of another kind than those trained on, {trained.name}")
    return task_set
