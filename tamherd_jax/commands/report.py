"""`tamherd report`: tables, figures and the page of a finished run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from tamherd_jax.commands import mistakes_of_the_user, new_console


@dataclasses.dataclass(frozen=True)
class Report:
    """Print the tables of a run or sweep and write its figures, CSV files and report.html again, from its result files."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The directory of the run or sweep."""


def report(options: Report) -> None:
    """Run `tamherd report`; return the exit status."""
    from tamherd_jax.commands.sweep import show_sweep_report

    console = new_console(highlight=False)
    show = show_sweep_report if (options.directory / "sweep.json").exists() else show_report
    console.print(f"Report: {show(options.directory, console)}", soft_wrap=True)


def show_report(directory: Path, console: Any) -> Path:
    """Print a run's tables and write its report; return the page's path.

    Raises:
      UserError: if the directory does not hold a finished run, or cannot be written.
    """
    with mistakes_of_the_user():
        from tamherd_jax.reporting.report import make_report

        return make_report(directory, console)
