"""What an experiment records of each arm, epoch by epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

import numpy as np


@dataclasses.dataclass
class ArmCurves:
    """Records of one arm: an array per epoch and quantity, `[E]` of them; empty where a quantity is not measured.

    Axes: S seeds, A learners of the arm, N tasks, K members.

    Attributes:
      train_before, train_after: `[S, A, N]` training returns before and after adaptation, NaN for tasks that were not sampled.
      steps: `[S, A]` environment steps taken in training.
      nonfinite: `[S, A]` training episodes ended because their state stopped being finite.
      fault: `[S, A]` -1 for a finite learner, else the index of the first array of its state that is not.
      before, after: `[S, N]` meta-test returns before and after adaptation.
      test_steps, test_nonfinite: `[S]` the same counts of the meta-test.
      confidence, margin: `[S, N]` how clearly the test tasks were assigned; see `herd.clustering.Assignment`.
      assign_steps: `[S]` environment steps of the probe in the test tasks.
      share: `[S, N, K]` share of a task's repeated meta-tests in which it was assigned to each member.
      member: `[S, N]` the member to which it was assigned most often.
      diagnostics: The algorithm's own numbers by name, `[S, A]` each.
    """

    train_before: list[np.ndarray] = field(default_factory=list)
    train_after: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    nonfinite: list[np.ndarray] = field(default_factory=list)
    fault: list[np.ndarray] = field(default_factory=list)
    before: list[np.ndarray] = field(default_factory=list)
    after: list[np.ndarray] = field(default_factory=list)
    test_steps: list[np.ndarray] = field(default_factory=list)
    test_nonfinite: list[np.ndarray] = field(default_factory=list)
    confidence: list[np.ndarray] = field(default_factory=list)
    margin: list[np.ndarray] = field(default_factory=list)
    assign_steps: list[np.ndarray] = field(default_factory=list)
    share: list[np.ndarray] = field(default_factory=list)
    member: list[np.ndarray] = field(default_factory=list)
    diagnostics: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def record(self, **values: Any) -> None:
        """Append one epoch of some quantities, copied to the host; an unknown name is a diagnostic of the algorithm."""
        for name, value in values.items():
            self._list(name).append(np.asarray(value))

    def items(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Yield the name and the records of every quantity that was measured."""
        for name in QUANTITIES:
            if records := getattr(self, name):
                yield name, records
        yield from self.diagnostics.items()

    def stacked(self) -> dict[str, np.ndarray]:
        """Return every quantity measured as one array, `[S, E, ...]`."""
        return {name: np.stack(records, 1) for name, records in self.items()}

    @classmethod
    def unstacked(cls, arrays: Mapping[str, np.ndarray]) -> ArmCurves:
        """Return the records of which `stacked` made arrays."""
        curves = cls()
        for name, array in arrays.items():
            curves._list(name).extend(np.moveaxis(array, 1, 0))
        return curves

    def _list(self, name: str) -> list[np.ndarray]:
        if name in QUANTITIES:
            found: list[np.ndarray] = getattr(self, name)
            return found
        return self.diagnostics.setdefault(name, [])


QUANTITIES = tuple(entry.name for entry in dataclasses.fields(ArmCurves) if entry.name != "diagnostics")
"""What every algorithm is measured by."""
