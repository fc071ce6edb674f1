"""Statistics of repeated timings, and when two of them differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

FEWEST = 3
"""Runs below which a spread says nothing and no verdict is given."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Order statistics of the seconds of `count` runs."""

    count: int
    min: float
    q25: float
    median: float
    q75: float
    max: float

    @property
    def iqr(self) -> float:
        """Interquartile range: what half of the runs lie within."""
        return self.q75 - self.q25

    @property
    def spread(self) -> float:
        """Slowest run less the fastest: of few runs, quartiles would promise more than the next process keeps."""
        return self.max - self.min


def summarize(seconds: Sequence[float]) -> Summary:
    """Order statistics of some runs.

    Raises:
      ValueError: there is none, or one is no finite number from 0.
    """
    values = np.asarray(seconds, np.float64)
    if not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("a summary needs the seconds of at least one run")
    return Summary(values.size, *(float(q) for q in np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))))


def verdict(old: Summary, new: Summary, floor: float = 0.05) -> str:
    """`slower`, `faster` or `same`: medians differ by more than either side's spread and than `floor` of the old median.

    The floor stands for what two processes differ by (memory layout, the machine's mood), which no spread of one process
    holds. With fewer than `FEWEST` runs on a side it is `too few runs`.
    """
    if min(old.count, new.count) < FEWEST:
        return "too few runs"
    difference = new.median - old.median
    if abs(difference) <= max(old.spread, new.spread, floor * old.median):
        return "same"
    return "slower" if difference > 0 else "faster"
