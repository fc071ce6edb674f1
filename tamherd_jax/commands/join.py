"""`tamherd join`: finished runs of different seeds as one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tamherd_jax.commands import mistakes_of_the_user, new_console, writing_to
from tamherd_jax.commands.options import option
from tamherd_jax.commands.report import show_report


@dataclasses.dataclass(frozen=True)
class Join:
    """Join finished runs of the same command with different seeds (--first-seed) into one run, and report it."""

    directories: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR DIR [...]", help_behavior_hint="(required)")
    ]
    """The directories of the runs, whose seeds follow each other."""
    out: Annotated[Path | None, option("DIR")] = None
    """Where the joined run goes. By default a new directory under runs/."""


def join(options: Join) -> None:
    """Run `tamherd join`; return the exit status."""
    from tamherd_jax.commands.run import new_run_directory
    from tamherd_jax.experiments.joining import join_runs, read_runs

    console = new_console(highlight=False)
    with mistakes_of_the_user():
        runs = read_runs(options.directories)
        with (
            new_run_directory(options.out, f"{runs[0].results.config.preset}-joined") as directory,
            writing_to(directory),
        ):
            join_runs(runs, directory)
    console.print(f"Report: {show_report(directory, console)}", soft_wrap=True)
