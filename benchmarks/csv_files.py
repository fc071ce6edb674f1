"""CSV files of studies that grow while they run, and lines of Markdown tables."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_rows(columns: Sequence[str], rows: Iterable[Sequence[object]], into: Path | None) -> None:
    """Write every row as soon as it is there.

    Args:
      columns: Names, the first line of a new file.
      rows: As they come.
      into: A file to append to; None prints.
    """
    with into.open("a", newline="") if into else contextlib.nullcontext(sys.stdout) as file:
        writer = csv.writer(file)
        if not into or not file.tell():
            writer.writerow(columns)
        for row in rows:
            writer.writerow(row)
            file.flush()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown_line(cells: Sequence[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"
