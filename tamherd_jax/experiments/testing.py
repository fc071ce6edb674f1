"""The meta-test of an arm: every test task's learner explores, adapts and is measured."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float, Integer

from tamherd_jax.experiments.arms import Arm
from tamherd_jax.experiments.assignment import assign_test_tasks
from tamherd_jax.experiments.keys import role_keys
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, settings_of
from tamherd_jax.experiments.state import RunState
from tamherd_jax.parallel import one_program
from tamherd_jax.types import PyTree


def meta_test_arm(
    plan: Plan, programs: Programs, state: RunState, arm: Arm, epoch_states: PyTree, epoch: int, index: int
) -> None:
    """Meta-test an arm and record its returns.

    Args:
      plan, programs, state: The experiment.
      arm: The arm.
      epoch_states: States `[S, A, E, ...]` of the learners of the arm's source after each epoch of the last call.
      epoch: Number of the epoch, from 1.
      index: Its place among the last call's.
    """
    assigned = assign_test_tasks(plan, programs, state, arm, epoch)
    # Every test task's learner is picked out here, so that arms of any number of learners share one program.
    seed, learner = np.arange(len(plan.seeds))[:, None], np.asarray(assigned.learner)
    states = _picked(epoch_states, seed, learner, index)
    keys, settings = role_keys(plan.seeds, f"test_{arm.role}"), settings_of(plan, 1)
    result = programs.test[arm.explore](keys, np.uint32(epoch), states, settings)
    curves = state.curves_of(arm.name)
    curves.record(**assigned.records)
    curves.record(before=result.before, after=result.after, test_steps=result.steps, test_nonfinite=result.nonfinite)
    if arm.weights == "clusters":
        share = assignment_shares(plan, learner, arm.size)
        curves.record(share=share, member=share.argmax(-1).astype(np.int32))


def assignment_shares(plan: Plan, learner: Integer[np.ndarray, "S B"], size: int) -> Float[np.ndarray, "S N A"]:
    """Return the share `[S, N, A]` of a task's repeats that were assigned `[S, B]` to each of A learners."""
    repeats = learner.reshape(len(plan.seeds), len(plan.task_set), -1, 1)
    shares: np.ndarray = (repeats == np.arange(size)).mean(2, dtype=np.float32)
    return shares


@one_program
def _picked(tree: PyTree, *index: int | slice | np.ndarray | jax.Array) -> PyTree:
    """Return elements of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
