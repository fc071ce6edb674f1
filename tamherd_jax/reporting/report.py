"""The files of a report, made from the result files alone and written beside them."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from rich.console import Console

from tamherd_jax.experiments.results import Results, ReturnRow
from tamherd_jax.reporting import figures, html, statistics, tables
from tamherd_jax.reporting.run_files import RunFiles, left_out, read_run_files


def print_tables(run: RunFiles, analysis: statistics.Analysis, console: Console) -> None:
    """The paper's table, the unbiased statistics, the comparison, clusters and steps, for a terminal."""
    results = run.results
    console.print(tables.returns_table(results, "best", analysis.summaries))
    console.print(tables.returns_table(results, "last5", analysis.summaries))
    if analysis.comparisons:
        console.print(tables.comparison_table(analysis.comparisons))
    if (shots := tables.shots_table(results)) is not None:
        console.print(shots)
    console.print(tables.clusters_table(results))
    console.print(tables.ledger_table(results))


def write_report(run: RunFiles, analysis: statistics.Analysis) -> Path:
    """Write figures, CSV files and `report.html` into the run's directory; return the page's path.

    Raises:
      OSError: they cannot be written.
    """
    results, where = run.results, run.directory
    drawn = {
        "learning_curves": figures.learning_curves(results, run.curves),
        "controls": figures.control_curves(results, run.curves),
        "embeddings": figures.embedding_map(results, run.embeddings),
    }
    for name, figure in drawn.items():
        figures.save_figure(figure, where / "figures" / f"{name}.png")
    write_rows_csv(results, where / "rows.csv")
    write_curves_csv(run, where / "curves.csv")
    return html.write_page(html.report_page(run, analysis), where / "report.html")


def make_report(directory: Path, console: Console) -> Path:
    """Print a run's tables and write its report.

    Raises:
      ValueError: the directory does not hold a finished run, or a file is damaged.
      OSError: the report cannot be written.
    """
    run = read_run_files(directory)
    try:
        analysis = statistics.analyse(run.results, run.curves)
        print_tables(run, analysis, console)
        return write_report(run, analysis)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(directory)) from error


def write_rows_csv(results: Results, path: Path) -> None:
    """The rows of results.json: `seed, arm, body, statistic, value`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(ReturnRow))
        writer.writerows(map(dataclasses.astuple, results.rows))


def write_curves_csv(run: RunFiles, path: Path) -> None:
    """Learning curves in long form, a line per arm, seed, epoch and task.

    `budget` and `taken` are the arm's environment steps after the epoch; `excluded` marks seeds that no statistic counts.
    """
    names, bodies = run.results.task_set.tasks, run.results.task_set.body_of_task
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arm", "seed", "epoch", "budget", "taken", "task", "body", "before", "after", "excluded"))
        for arm in run.results.arms:
            before, after, budget = (run.curves[f"{arm}/{key}"] for key in ("before", "after", "budget"))
            taken, lost = run.curves[f"{arm}/taken"], left_out(run.results, arm)
            for s, seed in enumerate(run.results.seeds.tolist()):
                writer.writerows(
                    (
                        arm,
                        seed,
                        e + 1,
                        budget[e],
                        int(taken[s, e]),
                        names[n],
                        bodies[n],
                        before[s, e, n],
                        after[s, e, n],
                        int(seed in lost),
                    )
                    for e in range(after.shape[1])
                    for n in range(len(names))
                )
