"""The report of a sweep: settings ranked by arm, their learning curves, and the command line of the best."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tamherd_jax.codec import one_line
from tamherd_jax.experiments.settings import run_command, setting_text
from tamherd_jax.experiments.sweep import Sweep, setting_directory
from tamherd_jax.reporting import figures, html
from tamherd_jax.reporting.run_files import RunFiles, arm_curve, arm_title, read_run_files, seed_values
from tamherd_jax.reporting.statistics import Estimate, estimate
from tamherd_jax.reporting.tables import body_name, interval, number
from tamherd_jax.reporting.views import Row, TableView, row, with_interval

SHOWN = 8
"""Settings in a figure, the best of them."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One setting of an arm, of which there are as many as settings, the best first.

    Attributes:
      index: Of the setting.
      overall: Return after adaptation, mean of the last five epochs and of bodies, mean over seeds.
      bodies: The same of each body.
    """

    index: int
    overall: Estimate
    bodies: tuple[Estimate, ...]


@dataclasses.dataclass(frozen=True)
class SweepFiles:
    """A finished sweep as its files have it.

    Attributes:
      directory: Where it is.
      sweep: What was run.
      runs: The results of every setting, `[V]`.
    """

    directory: Path
    sweep: Sweep
    runs: tuple[RunFiles, ...]


def read_sweep_files(directory: Path) -> SweepFiles:
    """Read a sweep and the results of its settings.

    Raises:
      ValueError: In one line, if the sweep is not finished or a file is damaged.
    """
    sweep = Sweep.of_directory(directory)
    try:
        runs = tuple(read_run_files(setting_directory(directory, index)) for index in range(len(sweep.settings)))
    except ValueError as error:
        raise ValueError(f"the sweep in {directory} is not finished: {one_line(error)}") from error
    return SweepFiles(directory, sweep, runs)


def ranking(files: SweepFiles, arm: str) -> list[Ranked]:
    """Return the settings of an arm from the best to the worst; those without any finite seed come last."""
    bodies = files.runs[0].results.task_set.bodies
    ranked = []
    for index, run in enumerate(files.runs):
        strata = [np.array(list(seed_values(run.results, arm, body, "last5").values())) for body in bodies]
        each = tuple(estimate([values], np.mean) for values in strata)
        ranked.append(Ranked(index, estimate(strata, np.mean), each))
    return sorted(ranked, key=lambda one: (not np.isfinite(one.overall.value), -one.overall.value, one.index))


def ranking_table(files: SweepFiles, arm: str) -> Table:
    """Return the settings of an arm, best first, for a terminal."""
    results, names = files.runs[0].results, list(files.sweep.settings[0])
    table = Table(title=f"{arm_title(results, arm)}: return after adaptation, mean of the last five epochs")
    for name in names:
        table.add_column(name.replace(".", ".\n", 1))
    for body in [*results.task_set.bodies, None]:
        table.add_column(body_name(body), justify="right")
    for one in ranking(files, arm):
        cells = [setting_text(files.sweep.settings[one.index][name]) for name in names]
        values = [f"{number(value.value)} {interval(value)}".strip() for value in (*one.bodies, one.overall)]
        table.add_row(*cells, *values)
    return table


def ranking_view(files: SweepFiles, arm: str) -> TableView:
    """Return the same table for a page."""
    results, names = files.runs[0].results, list(files.sweep.settings[0])
    head = (*names, *(body_name(body) for body in [*results.task_set.bodies, None]))

    def line(one: Ranked) -> Row:
        cells = [setting_text(files.sweep.settings[one.index][name]) for name in names]
        return row(*cells, *(with_interval(value) for value in (*one.bodies, one.overall)))

    rows = tuple(map(line, ranking(files, arm)))
    title = f"{arm_title(results, arm)}: mean of the last five epochs, mean over seeds with its 95% interval"
    return TableView(caption=title, head=head, rows=rows, labels=len(names))


def curve_panel(files: SweepFiles, arm: str) -> figures.Draw:
    """Return a function that plots the learning curves of an arm's best settings, the mean over seeds and tasks."""

    def on(axis: Any) -> None:
        for place, one in enumerate(ranking(files, arm)[:SHOWN]):
            run = files.runs[one.index]
            steps, returns = arm_curve(run.results, run.curves, arm)
            if len(returns):
                label = ", ".join(setting_text(value) for value in files.sweep.settings[one.index].values())
                axis.plot(steps / 1e6, returns.mean(0), label=label, color=figures.COLOURS[place % len(figures.COLOURS)])
        axis.set(xlabel="million environment steps (budget)", ylabel="return after adaptation")
        axis.legend(frameon=False, title=", ".join(name.rsplit(".", 1)[-1] for name in files.sweep.settings[0]))

    return on


def write_sweep_csv(files: SweepFiles, path: Path) -> None:
    """Write every setting's rows: its values, then `arm, body, seed, statistic, value`."""
    names = list(files.sweep.settings[0])
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("setting", *names, "arm", "body", "seed", "statistic", "value"))
        for index, (setting, run) in enumerate(zip(files.sweep.settings, files.runs, strict=True)):
            values = [setting_text(setting[name]) for name in names]
            for row in run.results.rows:
                writer.writerow((index, *values, row.arm, row.body, row.seed, row.statistic, row.value))


def make_sweep_report(directory: Path, console: Console) -> Path:
    """Print the rankings of a sweep, write `sweep.csv`, figures and `report.html`; return the page's path.

    Raises:
      ValueError: The sweep is not finished, or a file is damaged.
      OSError: The report cannot be written.
    """
    files = read_sweep_files(directory)
    results = files.runs[0].results
    names = results.arms
    for arm in names:
        console.print(ranking_table(files, arm))
    best = {arm: ranking(files, arm)[0].index for arm in names}
    commands = [(arm_title(results, arm), run_command(files.sweep.config(index))) for arm, index in best.items()]
    for title, command in commands:
        console.print(f"Best for {title}: {command}", highlight=False, soft_wrap=True, markup=False)
    write_sweep_csv(files, directory / "sweep.csv")
    panels = {arm_title(results, arm): curve_panel(files, arm) for arm in names}
    figures.save_figure(figures.row_of_panels(panels, 3.8), directory / "sweep.png")
    page = html.render(
        "sweep.html.j2",
        title=f"Sweep of {', '.join(files.sweep.settings[0])}",
        subtitle=f"{len(files.runs)} settings. {html.subtitle(results)}",
        tables=[ranking_view(files, arm) for arm in names],
        figures=[
            html.Figure(figures.svg(curve_panel(files, arm), f"sweep-{arm}", arm_title(results, arm)), arm_title(results, arm))
            for arm in names
        ],
        commands=commands,
    )
    return html.write_page(page, directory / "report.html")
