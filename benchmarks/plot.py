"""Cost against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables import by_benchmark, headline

XLABELS = {
    "physics": "bodies at once",
    "environment": "episodes at once",
    "fisher_gram": "scores",
    "table1": "seeds",
    "scaling, CPU devices": "CPU devices",
    "scaling": "learners",
}

Panels = dict[str, dict[str, list[dict[str, Any]]]]


def curves(document: dict[str, Any]) -> Panels:
    """Panel -> series -> measured rows by size, a panel for each benchmark and unit; series of one point are left out."""
    found: Panels = {}
    for name, rows in by_benchmark(document["rows"]):
        placed = [row for row in rows if row["status"] == "measured" and row.get("size")]
        for unit in dict.fromkeys(row["unit"] for row in placed):
            series: dict[str, list[dict[str, Any]]] = {}
            for row in sorted(placed, key=lambda row: row["size"]):
                if row["unit"] == unit:
                    series.setdefault(row["series"], []).append(row)
            lines = {label: points for label, points in series.items() if len(points) > 1}
            if lines:
                found[f"{name}, {next(iter(lines))}" if name in found else name] = lines
    return found


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw seconds a unit against size, a panel a benchmark, quartiles as bars.

    Raises:
      ValueError: the run has no figure at several sizes.
    """
    from matplotlib.figure import Figure

    panels = curves(document)
    if not panels:
        raise ValueError("the run measured nothing at several sizes; run physics, environment or scaling")
    figure = Figure(figsize=(4.5 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, rows in lines.items():
            _line(axis, label, rows)
        unit = next(iter(lines.values()))[0]["unit"]
        axis.set(xscale="log", yscale="log", title=name, xlabel=XLABELS.get(name, "size"), ylabel=f"seconds per {unit}")
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle(headline(document), fontsize="x-small")
    figure.savefig(path, dpi=150)


def _line(axis: Any, label: str, rows: list[dict[str, Any]]) -> None:
    median, low, high = ([row["seconds"][q] / row["work"] for row in rows] for q in ("median", "q25", "q75"))
    below = [m - q for m, q in zip(median, low, strict=True)]
    above = [q - m for m, q in zip(median, high, strict=True)]
    axis.errorbar([row["size"] for row in rows], median, yerr=(below, above), marker="o", capsize=3, label=label)
