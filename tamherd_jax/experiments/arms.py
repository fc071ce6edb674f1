"""The arms of an experiment, as data: who trains on what, and who is given which test task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tamherd_jax.herd.algorithm import EmbeddedTasks
from tamherd_jax.herd.clustering import Clusters

PROBE, EMBEDDINGS, MEMBERS, SINGLE = STAGES = ("probe", "embeddings", "herd and oracle", "single")
"""Stages, in the order of a run."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One line of the results. A training arm trains learners of its own; any other tests those of a training arm.

    Axes: S seeds, A learners of the arm, N tasks, B = N R test tasks (each of the N, R times in a row).

    Attributes:
      name: in result files.
      stages: in which it trains and is tested.
      source: the arm that trains its learners: itself, or another of the same stages.
      learner: the `MetaLearner` that trains; None where `source` is another.
      size: A.
      role: whose random numbers its learners have, in training and testing. Arms of one role differ in nothing but what
        they are compared for.
      weights: the learners' distributions over training tasks, `[S, A, N]`; asked for once its stages begin.
      assign: epoch -> the learner that each test task is given to, `[S, B]`.
      explore: exploration episodes of a meta-test.
      budget: epochs -> environment steps that may have been taken after each, `[epochs]`.
      charged: what its steps begin with, of "probe" and "embedding".
      inherits: its learners start with the probe's replay of their tasks and collect none of their own before the first epoch.
      grouped: every seed has its own number of learners, at most A; the others of the A are never trained or given a task.
    """

    name: str
    stages: tuple[str, ...]
    source: str
    learner: Any
    size: int
    role: str
    weights: Callable[[], np.ndarray]
    assign: Callable[[int], Any]
    explore: int
    budget: Callable[[int], np.ndarray]
    charged: tuple[str, ...] = ()
    inherits: bool = False
    grouped: bool = False

    @property
    def trains(self) -> bool:
        """Whether it trains learners of its own."""
        return self.source == self.name


@dataclasses.dataclass(frozen=True)
class Partition:
    """What a herd's assignment needs, for S seeds.

    Attributes:
      probe: states `[S, ...]` of the probe.
      embedded: the training tasks as it saw them, `[S, ...]`.
      clusters: `[S]` of them.
      failures: index of a seed -> why its tasks could not be clustered.
    """

    probe: Any
    embedded: EmbeddedTasks
    clusters: Sequence[Clusters]
    failures: dict[int, str]
