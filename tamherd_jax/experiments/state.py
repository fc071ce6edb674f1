"""Everything that changes while an experiment runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from tamherd_jax.experiments.arms import STAGES, Arm
from tamherd_jax.experiments.curves import ArmCurves
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.herd.algorithm import EmbeddedTasks
from tamherd_jax.herd.clustering import Clusters, membership_weights
from tamherd_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class ClusteredTasks:
    """Training tasks as a probe saw and clustered them: what members train on and test tasks are assigned by. S seeds.

    Attributes:
      probe: States `[S, ...]` of the probe; None where they are not needed any more.
      embedded: The embedded training tasks, `[S, ...]`.
      clusters: `[S]` clusters of each seed.
      failures: Index of a seed -> why its tasks could not be clustered. Equal shares stand in for its clusters.
    """

    probe: PyTree
    embedded: EmbeddedTasks
    clusters: Sequence[Clusters]
    failures: dict[int, str]


@dataclasses.dataclass
class RunState:
    """An experiment between two epochs. It changes in place: states of learners may be too large for two.

    Attributes:
      done: Epochs done of each stage.
      learners: By arm that trains, states of its learners, `[S, A, ...]`.
      probe: States `[S, ...]` of the frozen probes; None before the first stage is done.
      clustered: By name, see `Arm.clustered`; empty before tasks are clustered.
      curves: By arm, what was recorded.
    """

    done: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    learners: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe: PyTree = None
    clustered: dict[str, ClusteredTasks] = dataclasses.field(default_factory=dict)
    curves: dict[str, ArmCurves] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Epochs of all stages together."""
        return sum(self.done.values())

    def curves_of(self, arm: str) -> ArmCurves:
        """Return the records of an arm, empty ones at first."""
        return self.curves.setdefault(arm, ArmCurves())


def member_counts(plan: Plan, state: RunState, clustered: str = "trained") -> Integer[np.ndarray, " S"]:
    """Return how many members each seed's herd has, `[S]`."""
    max_members = plan.arms["herd"].size
    return np.array([found.k if plan.grouped else max_members for found in state.clustered[clustered].clusters], np.int32)


def member_weights(plan: Plan, state: RunState, clustered: str = "trained") -> Float[np.ndarray, "S K N"]:
    """Return each member's distribution over tasks `[S, K, N]`: the empirical one of its cluster, however impure."""
    max_members, clusters = plan.arms["herd"].size, state.clustered[clustered].clusters
    rows = [membership_weights(found.labels, plan.embedded_task, len(plan.task_set), max_members) for found in clusters]
    return np.stack(rows).astype(np.float32)


def training_weights(plan: Plan, state: RunState, arm: Arm) -> Float[np.ndarray, "S A N"]:
    """Return the distributions over training tasks of an arm's learners, `[S, A, N]`."""
    seeds = len(plan.seeds)
    if arm.weights == "clusters":
        return member_weights(plan, state, arm.clustered)
    if arm.weights == "modes":
        return np.tile(plan.task_set.mode_weights(), (seeds, 1, 1))
    return np.ones((seeds, 1, len(plan.task_set)), np.float32)


def budget_steps(plan: Plan, state: RunState, arm: Arm, epochs: int) -> np.ndarray:
    """Return the environment steps that an arm may have taken after each epoch, `[epochs]`.

    Members of impure clusters each prefill a task that they share; the seed with the most such pairs counts.
    """
    tasks = len(plan.task_set)
    if arm.budget.prefill and arm.weights == "clusters":
        tasks = int((training_weights(plan, state, arm) > 0).sum((1, 2)).max())
    return arm.budget.after(epochs, tasks)


def learner_faults(plan: Plan, state: RunState, arm: Arm) -> Integer[np.ndarray, "S A"]:
    """Return -1 for each finite learner of an arm, else the index of the array for which it was frozen, `[S, A]`."""
    recorded = state.curves_of(arm.name).fault
    return recorded[-1] if recorded else np.full((len(plan.seeds), arm.size), -1, np.int32)
