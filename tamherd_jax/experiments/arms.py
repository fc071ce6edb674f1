"""The arms of an experiment as data: which learners train on which tasks, and which learner is tested on which task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.ledger import ArmBudget, Budget
from tamherd_jax.types import MetaLearner

PROBE, EMBEDDINGS, MEMBERS, SINGLE = STAGES = ("probe", "embeddings", "herd and oracle", "single")
"""Stages, in the order of a run."""

Weights = Literal["all", "modes", "clusters"]
Assignment = Literal["only", "mode", "nearest", "random", "majority"]
ClusteredName = Literal["trained", "random", "untrained"]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One line of the results. A training arm trains learners of its own; any other tests those of a training arm.

    Attributes:
      name: In result files.
      source: The arm that trains its learners: itself, or another of the same stages.
      role: Whose random numbers its learners have, in training and testing. Arms of one role differ in nothing but what they
        are compared for.
      stages: In which it trains and is tested.
      learner: The `MetaLearner` that trains; for a grouped arm the one of as many members as there can be.
      size: A, learners of a seed.
      weights: What its learners train on: `all` tasks, the `modes` of the task set, one each, or the `clusters` of the
        training tasks, one each.
      assign: Which learner meets a test task: the `only` one, that of the task's `mode`, the member with the `nearest`
        centroid, one at `random`, or the member whose training tasks are in their `majority` of the task's mode.
      explore: Exploration episodes of a meta-test.
      budget: Environment steps that it may take.
      clustered: Which clusters of the training tasks: the `trained` probe's, `random` ones of equal size, or those of an
        `untrained` probe.
      charged: What is charged before its own steps, stages by name.
      copies_replay: Its learners start with the probe's replay of their tasks and collect none before the first epoch.
      grouped: Every seed has its own number of learners, at most A; the others of the A are never trained or tested.
    """

    name: str
    source: str
    role: str
    stages: tuple[str, ...]
    learner: MetaLearner
    size: int
    weights: Weights
    assign: Assignment
    explore: int
    budget: ArmBudget
    clustered: ClusteredName = "trained"
    charged: tuple[str, ...] = ()
    copies_replay: bool = False
    grouped: bool = False

    @property
    def trains(self) -> bool:
        """Whether it trains learners of its own."""
        return self.source == self.name


@dataclasses.dataclass(frozen=True)
class ArmLearners:
    """The meta-learners of the arms: they differ in how many tasks an epoch samples, and in settings.

    Attributes:
      single: Alone on an epoch's sampled tasks.
      expert: One of the oracle's, which share them.
      member: One of a herd of as many members as there can be.
      probe: Of a probe that is a learner of its own, else None.
      doubled: The single learner with twice the gradient steps, where that control is asked for, else None.
    """

    single: MetaLearner
    expert: MetaLearner
    member: MetaLearner
    probe: MetaLearner | None = None
    doubled: MetaLearner | None = None


def make_arms(config: ExperimentConfig, learners: ArmLearners, modes: int, members: int, budget: Budget) -> dict[str, Arm]:
    """Return all arms of an experiment by name, the paper's three first."""
    single, oracle, herd = main_arms(config, learners, modes, members, budget)
    probes = []
    if learners.probe is not None:
        probe = dataclasses.replace(
            single, name=config.probe, source=config.probe, role="probe", stages=(PROBE,), learner=learners.probe
        )
        single, probes = dataclasses.replace(single, stages=(SINGLE,)), [probe]
    controls = [CONTROL_ARMS[name](single, herd, learners, budget) for name in CONTROL_ARMS if name in config.controls]
    return {arm.name: arm for arm in (single, oracle, herd, *probes, *controls)}


def main_arms(
    config: ExperimentConfig, learners: ArmLearners, modes: int, members: int, budget: Budget
) -> tuple[Arm, Arm, Arm]:
    """Return the paper's three arms: the single learner, the oracle and the herd."""
    single = Arm(
        name="single",
        source="single",
        role="single",
        stages=(PROBE, SINGLE),
        learner=learners.single,
        size=1,
        weights="all",
        assign="only",
        explore=config.explore_episodes,
        budget=budget.single,
    )
    oracle = dataclasses.replace(
        single,
        name="oracle",
        source="oracle",
        role="oracle",
        stages=(MEMBERS,),
        learner=learners.expert,
        size=modes,
        weights="modes",
        assign="mode",
        budget=budget.oracle,
    )
    herd = dataclasses.replace(
        oracle,
        name="herd",
        source="herd",
        role="herd",
        learner=learners.member,
        size=members,
        grouped=config.clustering.clusters == "auto",
        weights="clusters",
        assign="nearest",
        explore=config.explore_episodes - config.probe_test_episodes,
        budget=budget.copying_herd if config.reuse_probe else budget.herd,
        charged=(PROBE, EMBEDDINGS),
        copies_replay=config.reuse_probe,
    )
    return single, oracle, herd


def _trained(arm: Arm, name: str, **changes: Any) -> Arm:
    return dataclasses.replace(arm, name=name, source=name, **changes)


CONTROL_ARMS: Mapping[str, Callable[[Arm, Arm, ArmLearners, Budget], Arm]] = {
    "random-assignment": lambda single, herd, learners, budget: dataclasses.replace(
        herd, name="random-assignment", assign="random"
    ),
    "oracle-assignment": lambda single, herd, learners, budget: dataclasses.replace(
        herd, name="oracle-assignment", assign="majority"
    ),
    "random-clusters": lambda single, herd, learners, budget: _trained(herd, "random-clusters", clustered="random"),
    "untrained-probe": lambda single, herd, learners, budget: _trained(
        herd,
        "untrained-probe",
        clustered="untrained",
        budget=budget.untrained_herd,
        charged=(EMBEDDINGS,),
        copies_replay=False,
    ),
    "double-gradient": lambda single, herd, learners, budget: _trained(single, "double-gradient", learner=learners.doubled),
}
"""By the name of a control, its arm: the one it is compared with, and what differs from it."""
