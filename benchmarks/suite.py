"""A whole run: the machine first, then benchmark after benchmark, the tables and the file."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.cases import Mode
from benchmarks.measure import Row, add_ceilings, measure_benchmark
from benchmarks.registry import Benchmark
from benchmarks.results import RESULTS, SCHEMA, write_document
from benchmarks.tables import benchmark_table, definitions_of, headline, notes


def measure_suite(selected: Sequence[Benchmark], names: Sequence[str], mode: Mode, out: Path | None) -> int:
    """Measure benchmarks, print their tables as they are done, write the file; a user's interrupt keeps what is done.

    Returns:
      0, 1 if a case failed, 130 if interrupted.

    Raises:
      ValueError, OSError: the file cannot be written; said before anything is measured.
    """
    start, started = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    out = out or RESULTS / default_name(mode.name, names, started)
    check_writable(out)
    console = Console(width=None if (screen := Console().is_terminal) else 200)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "mode": mode.name,
        "names": list(names),
        "machine": machine.describe(),
        "started": started.isoformat(timespec="seconds"),
        "load_before": machine.load(),
        "rows": [],
    }
    status = 0
    try:
        for benchmark in selected:
            rows = measured(benchmark, mode, start, console, document["rows"], screen)
            document["rows"] += rows
            console.print(benchmark_table(benchmark.name, rows))
    except KeyboardInterrupt:
        console.print(f"interrupted during {benchmark.name}; what was done before is kept")
        status = 130
    complete(document, start)
    write_document(document, out)
    console.print(notes(document))
    console.print(f"{headline(document)}\n{document['seconds']:.0f} s. {out}", highlight=False, markup=False)
    return status or int(any(row["status"] == "failed" for row in document["rows"]))


def complete(document: dict[str, Any], start: float) -> None:
    """Add what is known only at the end of a run."""
    rates = {row["case"]: row["rate"] for row in document["rows"] if row["benchmark"] == "machine" and "rate" in row}
    seconds = round(time.perf_counter() - start, 1)
    document |= {"ceilings": rates, "seconds": seconds, "load_after": machine.load()}
    document["definitions"] = definitions_of(document["rows"])


def check_writable(path: Path) -> None:
    """Whether a new file can be written.

    Raises:
      ValueError, OSError: it exists already, its directory does not, or may not be written to.
    """
    if path.exists():
        raise ValueError(f"{path} exists; name another with --out")
    if path.parent == RESULTS:
        RESULTS.mkdir(exist_ok=True)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no directory {path.parent}")
    probe = path.with_suffix(".partial")
    probe.touch()
    probe.unlink()


def measured(
    benchmark: Benchmark, mode: Mode, start: float, console: Console, before: Sequence[Row], screen: bool
) -> list[Row]:
    """One benchmark's rows, with their fraction of the ceilings measured before."""

    def clock() -> float:
        return time.perf_counter() - start

    if screen:
        with console.status(benchmark.name) as status:
            rows = measure_benchmark(benchmark.name, benchmark.cases(mode), mode, clock, status.update)
    else:
        rows = measure_benchmark(benchmark.name, benchmark.cases(mode), mode, clock, lambda text: None)
    found = {row["case"]: row["rate"] for row in [*before, *rows] if row["benchmark"] == "machine" and "rate" in row}
    if benchmark.name != "machine":
        add_ceilings(rows, found.get("copy"), found.get("matrix product"))
    return rows


def default_name(mode: str, names: Sequence[str], started: datetime.datetime) -> str:
    """`DEVICE-MODE[-NAMES]-TIME.json`."""
    device = re.sub(r"[^a-z0-9]+", "-", machine.device_name().lower()).strip("-")
    scope = "-".join(["", *names]) if names else ""
    return f"{device}-{mode}{scope}-{started:%Y%m%d-%H%M%S}.json"
