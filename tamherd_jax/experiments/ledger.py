"""Counting environment steps: what each arm may take and what it took (spec 4.7)."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """Environment steps that each part of an experiment may take; an environment step is one action.

    A herd's x-coordinate at its epoch e is `probe + embedding + herd_epoch e`, for during the probe's training the herd is
    the single learner. The oracle is not charged for a probe.

    Attributes:
      single_epoch: one epoch of the single learner.
      herd_epoch: one epoch of all K members together.
      oracle_epoch: one epoch of all of the oracle's learners together.
      probe: the probe's training.
      embedding: embedding the training tasks.
    """

    single_epoch: int
    herd_epoch: int
    oracle_epoch: int
    probe: int
    embedding: int

    def single(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the single learner."""
        return self.single_epoch * np.arange(1, epochs + 1)

    def herd(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the members, probe and embedding included."""
        return self.probe + self.embedding + self.herd_epoch * np.arange(1, epochs + 1)

    def oracle(self, epochs: int) -> np.ndarray:
        """`[epochs]` steps after each epoch of the oracle's learners."""
        return self.oracle_epoch * np.arange(1, epochs + 1)


def taken_steps(single: np.ndarray, embedding: np.ndarray, members: np.ndarray, probe_epochs: int) -> dict[str, np.ndarray]:
    """Steps really taken (an episode that ends early costs what it lasted), accumulated as in `Budget`.

    Args:
      single: `[S, E]` steps of each epoch of the single learner.
      embedding: `[S]` steps of embedding the training tasks.
      members: `[S, F]` steps of each epoch of all members together.
      probe_epochs: how many of the single learner's epochs trained the probe.

    Returns:
      `single` `[S, E]` and `herd` `[S, F]`.
    """
    probe = single[:, :probe_epochs].sum(1)
    return {"single": single.cumsum(1), "herd": (probe + embedding)[:, None] + members.cumsum(1)}
