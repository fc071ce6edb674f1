"""Counting environment steps: what each arm may take and what it took (spec 4.7)."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """Environment steps that each part of an experiment may take; an environment step is one action.

    A herd's x-coordinate at its epoch e is `probe + embedding + preparation + herd_epoch e`, for during the probe's training
    the herd is the single learner. The oracle is not charged for a probe.

    Attributes:
      single_epoch: one epoch of the single learner.
      herd_epoch: one epoch of all K members together.
      oracle_epoch: one epoch of all of the oracle's learners together.
      probe: the probe's training, its preparation included.
      embedding: embedding the training tasks.
      preparation: what an arm takes before its first epoch, all its learners together, if each task is trained on by one.
    """

    single_epoch: int
    herd_epoch: int
    oracle_epoch: int
    probe: int
    embedding: int
    preparation: int = 0

    def single(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the single learner."""
        return self.preparation + self.single_epoch * np.arange(1, epochs + 1)

    def herd(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the members, probe and embedding included."""
        return self.probe + self.untrained_herd(epochs)

    def untrained_herd(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the members of a herd whose probe was not trained."""
        return self.embedding + self.preparation + self.herd_epoch * np.arange(1, epochs + 1)

    def oracle(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the oracle's learners."""
        return self.preparation + self.oracle_epoch * np.arange(1, epochs + 1)


def taken_steps(steps: np.ndarray, *before: np.ndarray) -> np.ndarray:
    """Steps really taken (an episode that ends early costs what it lasted), accumulated as in `Budget`.

    Args:
      steps: `[S, E]` steps of each epoch of an arm, all its learners together, its preparation in the first.
      *before: `[S]` steps that the arm's begin with: the probe's training, embedding the training tasks.

    Returns:
      `[S, E]` after each epoch.
    """
    return steps.cumsum(1) + sum(before, np.zeros(len(steps), steps.dtype))[:, None]
