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
    """Measure benchmarks, print their tables as they are done, write the file.

    Returns:
      1 if a case failed, otherwise 0.
    """
    start, started = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    out = out or RESULTS / default_name(mode.name, names, started)
    if not out.parent.exists() and out.parent != RESULTS:
        raise ValueError(f"cannot write {out}: there is no directory {out.parent}")
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
    for benchmark in selected:
        rows = measured(benchmark, mode, start, console, document["rows"], screen)
        document["rows"] += rows
        console.print(benchmark_table(benchmark.name, rows))
    rates = {row["case"]: row["rate"] for row in document["rows"] if row["benchmark"] == "machine" and "rate" in row}
    seconds = round(time.perf_counter() - start, 1)
    document |= {"ceilings": rates, "seconds": seconds, "load_after": machine.load()}
    document["definitions"] = definitions_of(document["rows"])
    write_document(document, out)
    console.print(notes(document))
    console.print(f"{headline(document)}\n{seconds:.0f} s. {out}", highlight=False, markup=False)
    return 1 if any(row["status"] == "failed" for row in document["rows"]) else 0


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
