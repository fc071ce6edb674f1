"""`tamherd sweep`: an experiment at many settings, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tamherd_jax.commands import UserError, check_count, mistakes_of_the_user, new_console, writing_to
from tamherd_jax.commands.compilation_cache import use_compilation_cache
from tamherd_jax.commands.run import Run, new_config, new_run_directory, start_devices, train

if TYPE_CHECKING:
    import jax

    from tamherd_jax.experiments.plan import Plan
    from tamherd_jax.experiments.sweep import Group
    from tamherd_jax.experiments.sweep import Sweep as SweepSettings

_OF_A_PART = ("out", "resume", "checkpoint_every", "devices", "learners_per_call", "log_to", "compilation_cache")
_OF_PROCESSES = ("coordinator", "processes", "process_id")


@dataclasses.dataclass(frozen=True)
class Sweep(Run):
    """Train an experiment at many settings side by side, and rank the settings."""

    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES"), tyro.conf.UseAppendAction] = ()
    """What to vary, such as maml.inner_step_size=0.05,0.1,0.2 or maml.trpo.max_kl=0.01:0.2:log5 (or lin5); may be given
    several times. Lists have ; between them. tamherd config lists all settings."""
    random: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Try N random combinations in place of all; of a range LOW:HIGH:log or :lin, any value."""
    log_to: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "none"
    """Where means over all settings go while they train: tensorboard, wandb, trackio, several with commas, or none."""


def sweep(options: Sweep) -> int:
    """Run `tamherd sweep`; return the exit status."""
    from tamherd_jax.reporting.trackers import parse_names

    use_compilation_cache(options.compilation_cache)
    with mistakes_of_the_user():
        parse_names(options.log_to)
        check_count("random", options.random)
        devices = start_devices(options)

    import jax

    from tamherd_jax.experiments.lifecycle import barrier, locked
    from tamherd_jax.experiments.results import is_finished
    from tamherd_jax.experiments.sweep import group_plan, make_groups, setting_directory

    console, start = new_console(quiet=jax.process_index() > 0), time.perf_counter()
    with mistakes_of_the_user(), barrier():
        settings = read_sweep(options) if options.resume else new_sweep(options)
        mine = range(jax.process_index(), len(settings.settings), jax.process_count())
        groups = make_groups(settings, mine)
        check_memory_of([group_plan(group) for group in groups], devices)
    with contextlib.ExitStack() as stack:
        with mistakes_of_the_user(), barrier():
            directory = sweep_directory(options, settings)
        with mistakes_of_the_user(), barrier():  # process 0 found it empty
            own = directory / f"process-{jax.process_index()}"
            own.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(own))
        console.print(described(settings, groups), highlight=False, soft_wrap=True)
        for group in groups:
            if all(is_finished(setting_directory(directory, index)) for index in group.indices):
                continue
            if status := train_group(options, settings, group, directory, devices, console):
                return status
        with barrier():
            pass
        if jax.process_index() == 0:
            page = show_sweep_report(directory, console)
            took = f"{time.perf_counter() - start:.0f} s. Results: {directory}. Report: {page}"
            console.print(took, highlight=False, soft_wrap=True, markup=False)
    return 0


def new_sweep(options: Sweep) -> SweepSettings:
    """Return the sweep that options ask for.

    Raises:
      ValueError: In one line, naming the first option at fault.
    """
    from tamherd_jax.experiments.sweep import make_sweep, parse_axes

    base = new_config(dataclasses.replace(options, set=()))
    return make_sweep(base, parse_axes(options.set, base, options.random is not None), options.random)


def read_sweep(options: Sweep) -> SweepSettings:
    """Return the sweep that is to go on.

    Raises:
      ValueError: There is none, or an option is given that only a new one takes.
    """
    from tamherd_jax.experiments.sweep import Sweep as SweepSettings

    if options.out is None:
        raise ValueError("--resume needs --out DIR, the sweep to go on with")
    for field in dataclasses.fields(options):
        if field.name not in (*_OF_A_PART, *_OF_PROCESSES) and getattr(options, field.name) != field.default:
            raise ValueError(f"--{field.name.replace('_', '-')} is for new sweeps; leave it out to go on with {options.out}")
    return SweepSettings.of_directory(options.out)


def check_memory_of(plans: list[Plan], devices: list[jax.Device]) -> None:
    """Refuse a sweep whose learners do not fit into memory.

    Raises:
      ValueError: In one line that says what to change.
    """
    from tamherd_jax.experiments.programs import check_memory
    from tamherd_jax.experiments.sweep import state_bytes
    from tamherd_jax.parallel import free_memory

    for plan in plans:
        check_memory(plan, devices)
        need, free = state_bytes(plan), free_memory(devices[0]) or _host_memory()
        if free is not None and need > free:
            raise ValueError(
                f"the learners of {len(plan.seeds)} runs take {need / 1e9:.1f} GB, of which {free / 1e9:.1f} are free; "
                "sweep fewer settings or seeds at once"
            )


def _host_memory() -> int | None:
    """Return the bytes of free memory, None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def sweep_directory(options: Sweep, settings: SweepSettings) -> Path:
    """Return the directory of a sweep; process 0 makes that of a new one, with its sweep.json."""
    import jax

    if options.out is None and jax.process_count() > 1:
        raise ValueError("a sweep of several processes needs --out DIR, which all of them see")
    directory = options.out
    if not options.resume and jax.process_index() == 0:
        directory = new_run_directory(options.out, f"sweep-{settings.base.preset}")
        settings.write(directory)
    return Path(str(directory))


def described(settings: SweepSettings, groups: list[Group]) -> str:
    """Return a line that says what a sweep is going to do."""
    count, seeds = len(settings.settings), settings.base.seeds
    programs = "one set of compiled programs" if len(groups) == 1 else f"{len(groups)} sets of compiled programs"
    return f"{count} settings of {', '.join(settings.settings[0])}, {seeds} seed(s) each, {programs}"


def train_group(
    options: Sweep, settings: SweepSettings, group: Group, directory: Path, devices: list[jax.Device], console: Any
) -> int:
    """Train the settings of a group, from its newest checkpoint on, and write their results; return the exit status."""
    from tamherd_jax.experiments.runner import Experiment
    from tamherd_jax.experiments.sweep import write_settings

    again = f"go on with: tamherd sweep --resume --out {shlex.quote(str(directory))}"
    where = directory / "groups" / f"{group.indices[0]:03d}"
    with mistakes_of_the_user():
        where.mkdir(parents=True, exist_ok=True)
    per_call, rows = options.learners_per_call, group.rows
    experiment = Experiment(group.config, seeds=group.seeds, devices=devices, per_call=per_call, settings=rows)
    if status := train(experiment, experiment.run(), where, options, console, again):
        return status
    with writing_to(directory, f"make room, then {again}"):
        write_settings(settings, group, experiment.plan, experiment.state, directory)
    return 0


def show_sweep_report(directory: Path, console: Any) -> Path:
    """Print the ranking of a sweep's settings and write its report; return the page's path.

    Raises:
      UserError: The directory does not hold a finished sweep, or cannot be written.
    """
    with mistakes_of_the_user():
        from tamherd_jax.reporting.sweep import make_sweep_report

        try:
            return make_sweep_report(directory, console)
        except OSError as error:
            raise UserError(f"cannot write to {error.filename or directory}: {error.strerror}") from error
