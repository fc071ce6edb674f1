"""The command `tamherd`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tamherd_jax" / "xla"


class UserError(Exception):
    """A mistake of the user's: printed as one line, exit status 2."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Train and evaluate probe, herd, single learner and oracle on ML2, and print the paper's table."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = "quick"
    """quick (minutes on two cores), paper-maml (the paper's Table 3) or long-maml (300 epochs)."""
    seeds: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of seeds; all train together. By default the preset's."""
    first_seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """The seeds are this one and those that follow. By default 0."""
    algorithm: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The meta-learner. By default the preset's, maml."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Epochs of every herd member and oracle learner; the single learner's follow. By default the preset's."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run directory. By default a new one under runs/."""
    physics: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """auto, mujoco (MuJoCo C), planar or mjx. By default auto: mujoco on a CPU, planar on an accelerator."""
    compilation_cache: Annotated[str, tyro.conf.arg(metavar="DIR")] = str(CACHE)
    """Directory that keeps compiled programs between runs, or "off"."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Print the tables of a run and draw its figures again, from its result files alone."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run directory."""


Command = Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Report, tyro.conf.subcommand("report")]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit status 0 on success, 2 with one line on standard error for a mistake of the user's."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        if isinstance(command, Run):
            run(command)
        else:
            report(command)
    except UserError as error:
        sys.stderr.write(f"tamherd: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("tamherd: interrupted\n")
        sys.exit(130)


def parse(arguments: list[str]) -> Any:
    """The command that arguments name.

    Raises:
      UserError: for arguments that name none. (`--help` exits with status 0.)
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Command, args=arguments, prog="tamherd", description="Taming the Herd, on the accelerator.")
    except SystemExit as stop:
        if not stop.code:
            raise
        # Of the box that tyro draws, the first block between rules is the message.
        blocks: list[list[str]] = [[]]
        for line in complaint.getvalue().splitlines()[1:]:
            if set(line.strip()) & {"-", "─"} and not set(line.strip(" │|-─╭╮╰╯├┤")):
                blocks.append([])
            else:
                blocks[-1].append(line.strip(" │|"))
        message = next((" ".join(block) for block in blocks if any(block)), "bad arguments")
        raise UserError(f"{message} (see tamherd --help)") from None


def run(options: Run) -> None:
    """`tamherd run`."""
    from rich.console import Console

    console = Console()
    use_compilation_cache(options.compilation_cache)

    from tamherd_jax.experiments.config import get_preset
    from tamherd_jax.experiments.results import write_json, write_results
    from tamherd_jax.experiments.runner import Experiment
    from tamherd_jax.reporting.terminal import ProgressDisplay

    with mistakes_of_the_user():
        overrides = {"seeds": options.seeds, "first_seed": options.first_seed, "algorithm": options.algorithm}
        config = get_preset(options.preset, member_epochs=options.epochs, physics=options.physics, **overrides)
        experiment = Experiment(config)
    directory = new_run_directory(options.out, config.preset)
    write_json(directory / "config.json", config.to_json())
    task_set = experiment.task_set
    start = time.perf_counter()
    log = directory / "log.jsonl"
    with ProgressDisplay(console, log, task_set.mode_names, task_set.modes, experiment.total_work) as display:
        display.note(
            f"{config.preset}: {config.seeds} seed(s), {config.member_epochs} epochs, physics {experiment.env.backend}, "
            f"results in {directory}; compiling the first program"
        )
        for event in experiment.run():
            display.show(event)
    write_results(experiment, directory)
    show_report(directory, console)
    console.print(f"{time.perf_counter() - start:.0f} s. Results, curves and figures: {directory}", highlight=False)


def report(options: Report) -> None:
    """`tamherd report`."""
    from rich.console import Console

    show_report(options.directory, Console())


def show_report(directory: Path, console: Any) -> None:
    """Print a run's tables and draw its figures.

    Raises:
      UserError: if the directory does not hold a finished run.
    """
    from tamherd_jax.experiments.results import read_run
    from tamherd_jax.reporting import figures, tables

    with mistakes_of_the_user():
        results, curves, embeddings = read_run(directory)
    for table in (
        tables.returns_table(results),
        tables.returns_table(results, "last5"),
        tables.clusters_table(results),
        tables.ledger_table(results),
    ):
        console.print(table)
    figures.learning_curves(results, curves, directory / "figures" / "learning_curves.png")
    figures.embedding_map(results, embeddings, directory / "figures" / "embeddings.png")


@contextlib.contextmanager
def mistakes_of_the_user() -> Any:
    """Turn the `ValueError` and `OSError` of checking input into a `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def new_run_directory(out: Path | None, preset: str) -> Path:
    """An empty directory for a run, made here.

    Raises:
      UserError: if it holds something already or cannot be written.
    """
    if out is None:
        numbers = (Path("runs") / f"{preset}-{n}" for n in range(1, 10**6))
        out = next(path for path in numbers if not path.exists())
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    if occupied:
        raise UserError(f"{out} is not empty; name a new directory with --out")
    return out


def use_compilation_cache(directory: str) -> None:
    """Keep compiled programs in a directory between runs; "off" does not.

    Raises:
      UserError: if the directory cannot be made.
    """
    if directory == "off":
        return
    import jax

    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use the compilation cache {directory}: {error.strerror}; choose another or off") from error
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


if __name__ == "__main__":
    main()
