"""Table of what `benchmarks.pearl_learning` measured: `python -m benchmarks.pearl_recipes FILE.csv`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.csv_files import markdown_line, read_rows

LAST = 5
"""Number of last tests that a mean and a spread are over."""
EARLY = slice(13, 18)
"""Tests around 20,000 updates in epochs of 1,250: those after epochs 14 to 18."""
TITLES = ("recipe", "around 20,000 updates", "last five", "spread", "by seed", "best", "before", "distance")
_MEASURED = ("after", "before", "belief_distance")


def curves(rows: Sequence[dict[str, str]]) -> dict[tuple[str, str], np.ndarray]:
    """Return tests by body and recipe, means over the tasks of a body.

    Args:
      rows: Lines of the CSV.

    Returns:
      Arrays `[S, E, 3]` for S seeds and E epochs: returns after and before adaptation, and the distance between the beliefs of
      the two tasks. E is the number of epochs that every learner has.
    """
    found: dict[tuple[str, str], dict[tuple[int, int], list[list[float]]]] = {}
    for row in rows:
        tests = found.setdefault((row["tasks"], row["recipe"]), {})
        tests.setdefault((int(row["seed"]), int(row["epoch"])), []).append([float(row[name]) for name in _MEASURED])
    epochs = min(_last_epoch(tests, seed) for tests in found.values() for seed in _seeds(tests))
    return {
        key: np.array([[np.mean(tests[seed, epoch], 0) for epoch in range(1, epochs + 1)] for seed in _seeds(tests)])
        for key, tests in found.items()
    }


def _seeds(tests: dict[tuple[int, int], list[list[float]]]) -> list[int]:
    return sorted({seed for seed, _ in tests})


def _last_epoch(tests: dict[tuple[int, int], list[list[float]]], seed: int) -> int:
    return max(epoch for other, epoch in tests if other == seed)


def summary(tests: np.ndarray) -> tuple[str, ...]:
    """Return the cells of one line of the table.

    Args:
      tests: Array `[S, E, 3]` of `curves`.

    Returns:
      Mean return around 20,000 updates; mean and standard deviation of the last five tests, the latter averaged over seeds; the
      mean of the last five by seed; median over seeds of the best test; mean return before adaptation in the last five tests;
      median distance between beliefs in the last five tests.
    """
    after, last = tests[:, :, 0], tests[:, -LAST:]
    numbers = [
        np.mean(after[:, EARLY]),
        np.mean(last[..., 0]),
        np.mean(np.std(last[..., 0], axis=1)),
        np.mean(last[..., 0], axis=1),
        np.median(np.max(after, axis=1)),
        np.mean(last[..., 1]),
        np.median(last[..., 2]),
    ]
    return tuple(", ".join(f"{value:.0f}" for value in np.atleast_1d(number)) for number in numbers)


def table(rows: Sequence[dict[str, str]], body: str) -> Iterator[str]:
    """Return the lines of a body's table in Markdown, best mean of the last five tests first."""
    found = [(name, tests) for (tasks, name), tests in curves(rows).items() if tasks == body]
    yield markdown_line(TITLES)
    yield markdown_line(("---", *("---:" for _ in TITLES[1:])))
    for name, tests in sorted(found, key=lambda pair: -float(np.mean(pair[1][:, -LAST:, 0]))):
        yield markdown_line((f"`{name}`", *summary(tests)))


def main(paths: Sequence[str]) -> None:
    """Print a table for each file and body."""
    for path in paths:
        rows = read_rows(Path(path))
        for body in dict.fromkeys(row["tasks"] for row in rows):
            print(f"{path}, {body}\n", *table(rows, body), "", sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
