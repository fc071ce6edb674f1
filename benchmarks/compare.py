"""Two runs side by side: ratios of the time a unit takes, and which differ by more than their spread."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.results import summary_of
from benchmarks.statistics import Summary, verdict
from benchmarks.tables import seconds

REGRESSIONS = ("slower", "broken")


@dataclasses.dataclass(frozen=True)
class Change:
    """One figure in two runs.

    Attributes:
      benchmark, case: which.
      verdict: as of `statistics.verdict`, or `broken` (measured before, failed now), `mended`, `new`, `gone`, `not measured`.
      ratio: time of a unit now over before; None where one is missing.
      old, new: seconds of a unit, where measured.
    """

    benchmark: str
    case: str
    verdict: str
    ratio: float | None = None
    old: Summary | None = None
    new: Summary | None = None


def compare(old: dict[str, Any], new: dict[str, Any], floor: float = 0.05) -> list[Change]:
    """Changes from one run to another, in the order of the new one; quoted figures are left out."""
    before, after = (_measurable(document) for document in (old, new))
    changes = [_change(before.get(key), row, floor) for key, row in after.items()]
    return changes + [Change(*key, "gone") for key in before if key not in after]


def _measurable(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["benchmark"], row["case"]): row for row in document["rows"] if row["status"] != "quoted"}


def _change(old: dict[str, Any] | None, new: dict[str, Any], floor: float) -> Change:
    key = new["benchmark"], new["case"]
    if old is None:
        return Change(*key, "new")
    states = old["status"], new["status"]
    if states != ("measured", "measured"):
        named = {("measured", "failed"): "broken", ("failed", "measured"): "mended"}
        return Change(*key, named.get(states, "not measured"))
    was, now = _of_a_unit(old), _of_a_unit(new)
    return Change(*key, verdict(was, now, floor), now.median / was.median, was, now)


def _of_a_unit(row: dict[str, Any]) -> Summary:
    """Seconds a unit: runs may differ in how much they did, as walkers fall sooner or later."""
    summary, work = summary_of(row), row["work"]
    scaled = {name: getattr(summary, name) / work for name in ("min", "q25", "median", "q75", "max")}
    return Summary(count=summary.count, **scaled)


def warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why the two may not be comparable."""
    found = []
    for field in ("device", "python"):
        if old["machine"][field] != new["machine"][field]:
            found.append(f"{field} differs: {old['machine'][field]} before, {new['machine'][field]} now")
    if old["mode"] != new["mode"]:
        found.append(f"mode differs: {old['mode']} before, {new['mode']} now")
    for name, document in (("before", old), ("now", new)):
        load, cores = document["load_before"], document["machine"]["cores"]
        if load > 0.5 * cores:
            found.append(f"the machine was busy {name}: load average {load:.1f} at the start on {cores} cores")
    return found


def comparison_table(changes: list[Change]) -> Table:
    """Changes for the terminal."""
    table = Table()
    for column in ("benchmark", "case", "before", "now", "now / before", "spread", "verdict"):
        table.add_column(column, justify="left" if column in ("benchmark", "case", "verdict") else "right")
    for change in changes:
        style = "bold red" if change.verdict in REGRESSIONS else "green" if change.verdict == "faster" else ""
        figures = [""] * 4
        if change.old and change.new:
            spread = max(change.old.spread, change.new.spread) / change.old.median
            figures = [seconds(change.old.median), seconds(change.new.median), f"{change.ratio:.3f}", f"{100 * spread:.0f}%"]
        table.add_row(change.benchmark, Text(change.case), *figures, Text(change.verdict, style=style))
    return table
