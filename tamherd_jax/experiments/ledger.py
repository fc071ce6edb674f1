"""Counting environment steps: what each arm may take and what it took.

An environment step is one action, however many physics steps it takes. Learners are compared at equal environment steps, with
what a herd spends on its probe and on embedding the training tasks charged to it.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArmBudget:
    """Environment steps that one arm may take.

    Attributes:
      start: Steps charged before its learners take any: probe and embedding.
      prefill: Steps that a learner collects in each of its tasks before its first epoch.
      epoch: Steps of one epoch of all its learners together.
    """

    start: int
    prefill: int
    epoch: int

    def after(self, epochs: int, tasks: int) -> np.ndarray:
        """Return the steps that may have been taken after each epoch, `[epochs]`.

        Args:
          epochs: Number of epochs.
          tasks: Pairs of a learner and a task that it trains on. Each is prefilled by itself, so that a task of two impure
            clusters counts twice.
        """
        return self.start + self.prefill * tasks + self.epoch * np.arange(1, epochs + 1)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Environment steps that each part of an experiment may take.

    A herd's x-coordinate at its epoch e is `probe + embedding + prefill tasks + herd_epoch e`, for during the probe's training
    the herd is the single learner. The oracle is not charged for a probe.

    Attributes:
      single_epoch: One epoch of the single learner.
      herd_epoch: One epoch of all K members together.
      oracle_epoch: One epoch of all of the oracle's learners together.
      probe: Training the probe, its prefill included.
      embedding: Embedding the training tasks.
      prefill: What a learner collects in each of its tasks before its first epoch.
    """

    single_epoch: int
    herd_epoch: int
    oracle_epoch: int
    probe: int
    embedding: int
    prefill: int = 0

    @property
    def single(self) -> ArmBudget:
        """Budget of the single learner."""
        return ArmBudget(0, self.prefill, self.single_epoch)

    @property
    def oracle(self) -> ArmBudget:
        """Budget of the oracle."""
        return ArmBudget(0, self.prefill, self.oracle_epoch)

    @property
    def herd(self) -> ArmBudget:
        """Budget of a herd whose members collect experience of their own."""
        return ArmBudget(self.probe + self.embedding, self.prefill, self.herd_epoch)

    @property
    def copying_herd(self) -> ArmBudget:
        """Budget of a herd whose members start with the probe's replay, which is charged with the probe."""
        return dataclasses.replace(self.herd, prefill=0)

    @property
    def untrained_herd(self) -> ArmBudget:
        """Budget of a herd whose probe was not trained."""
        return dataclasses.replace(self.herd, start=self.embedding)


def taken_steps(steps: np.ndarray, *before: np.ndarray) -> np.ndarray:
    """Accumulate the steps really taken, as in `ArmBudget`; an episode that ends early costs what it lasted.

    Args:
      steps: `[S, E]` steps of each epoch of an arm, all its learners together, its prefill in the first.
      *before: `[S]` steps that are charged to the arm first: training the probe, embedding the training tasks.

    Returns:
      `[S, E]` steps after each epoch.
    """
    return steps.cumsum(1) + sum(before, np.zeros(len(steps), steps.dtype))[:, None]
