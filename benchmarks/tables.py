"""Runs and comparisons as tables, for a terminal and as Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.definitions import UNITS, lines

HEADER = ("case", "compile", "min", "median", "spread", "CPU", "rate", "memory", "ops", "bytes", "ceiling")
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, unit: str = "") -> str:
    """Three digits with a decimal prefix; empty for None."""
    if value is None:
        return ""
    for scale, prefix in _SCALES:
        if abs(value) >= 0.9995 * scale:
            digits = ".3g" if abs(value) < 999.5 * scale else ",.0f"
            return f"{value / scale:{digits}} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float | None) -> str:
    """Three digits in s, ms or us; empty for None."""
    if value is None:
        return ""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= 0.9995 * scale or unit == "us":
            return f"{value / scale:,.0f} {unit}" if value >= 99.95 * scale else f"{value / scale:.3g} {unit}"
    raise AssertionError


def percent(fraction: float) -> str:
    """Two digits in per cent."""
    return f"{100 * fraction:.0f}%" if fraction >= 0.095 else f"{100 * fraction:.2g}%"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table, under `HEADER`."""
    if row["status"] in ("failed", "skipped"):
        return (row["case"], f"{row['status']}: {row['note']}", *[""] * (len(HEADER) - 2))
    rate = f"{number(row['rate'])} {row['unit']}s/s"
    if row["status"] == "quoted":
        return (f"{row['case']} ({row['note']})", "", "", seconds(row["seconds"]["median"]), "", "", rate, "", "", "", "")
    if "against" in row:
        rate += f" ({row['against']['ratio']:.1f} x {row['against']['name']}, quoted)"
    time, at_least = row["seconds"], "" if row.get("operations_complete", True) else ">= "
    fraction = row.get("ceiling_fraction")
    return (
        row["case"],
        compile_time(row),
        seconds(time["min"]),
        seconds(time["median"]),
        seconds(time["max"] - time["min"]) if time["count"] > 1 else "one run",
        seconds(row.get("cpu_s")),
        rate,
        number(row.get("memory"), "B"),
        at_least + number(row["operations"]) if row.get("operations") else "",
        number(row.get("bytes"), "B"),
        "" if fraction is None else f"{at_least}{percent(fraction)}",
    )


def compile_time(row: dict[str, Any]) -> str:
    """Seconds before the first run; ~ where it was inferred from the first call."""
    if "compile_s" not in row:
        return ""
    return ("" if "trace_s" in row else "~") + seconds(row["compile_s"] + row.get("trace_s", 0.0))


def headline(document: dict[str, Any]) -> str:
    """Device, versions and load of a run in a line."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("jax", "mujoco") if name in machine["versions"])
    load = f"load average {document['load_before']:.1f} before, {document['load_after']:.1f} after"
    when = f"{document['started'][:10]}, commit {machine['commit']}"
    return f"{machine['device']}; {versions}; Python {machine['python']}; {document['mode']} mode; {when}; {load}"


def by_benchmark(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows in their order, a benchmark at a time."""
    for name, group in itertools.groupby(rows, lambda row: str(row["benchmark"])):
        yield name, list(group)


def benchmark_table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One benchmark for the terminal."""
    table = Table(title=name, title_justify="left", expand=False)
    for column in HEADER:
        table.add_column(column, justify="left" if column == "case" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in cells(row)))
    return table


def notes(document: dict[str, Any]) -> Group:
    """The definitions, for the terminal."""
    return Group(*(Text(line, style="dim") for line in document["definitions"]))


def definitions_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The words that rows use."""
    return lines({row["unit"] for row in rows} & set(UNITS))


def markdown(document: dict[str, Any], names: Sequence[str] = ()) -> str:
    """Return a run as Markdown, as the documentation shows it.

    Args:
      document: the run.
      names: of benchmarks; all by default.
    """
    parts = [headline(document) + "."]
    for name, rows in by_benchmark(document["rows"]):
        if names and name not in names:
            continue
        parts.append(f"`python -m benchmarks {name}`\n\n" + _markdown_table(HEADER, map(cells, rows)))
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table)
