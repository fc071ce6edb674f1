"""`tamherd sweep`: an experiment at many settings, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tamherd_jax.commands import UserError, check_count, mistakes_of_the_user, new_console, writing_to
from tamherd_jax.commands.compilation_cache import use_compilation_cache
from tamherd_jax.commands.options import by_name
from tamherd_jax.commands.run import Run, new_config, new_run_directory, start_devices, train
from tamherd_jax.commands.run_options import ScaleOptions, SweepOutputOptions, VariedOptions

if TYPE_CHECKING:
    import jax

    from tamherd_jax.experiments.plan import Plan
    from tamherd_jax.experiments.sweep import Group
    from tamherd_jax.experiments.sweep import Sweep as SweepSettings


@dataclasses.dataclass(frozen=True)
class Sweep(Run):
    """Train an experiment at many settings side by side, and rank the settings."""

    training: tyro.conf.OmitArgPrefixes[VariedOptions] = VariedOptions()
    output: tyro.conf.OmitArgPrefixes[SweepOutputOptions] = SweepOutputOptions()


def sweep(options: Sweep) -> int:
    """Run `tamherd sweep`; return the exit status."""
    from tamherd_jax.reporting.trackers import parse_names

    use_compilation_cache(options.scale.compilation_cache)
    with mistakes_of_the_user():
        parse_names(options.output.log_to)
        check_count("random", options.training.random)
        devices = start_devices(options)

    import jax

    from tamherd_jax.experiments.lifecycle import barrier, locked
    from tamherd_jax.experiments.results import is_finished
    from tamherd_jax.experiments.sweep import group_plan, make_groups, setting_directory

    console, start = new_console(quiet=jax.process_index() > 0), time.perf_counter()
    with mistakes_of_the_user(), barrier():
        settings = read_sweep(options) if options.output.resume else new_sweep(options)
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

    asked = options.training
    base = new_config(dataclasses.replace(options, training=dataclasses.replace(asked, set=())))
    return make_sweep(base, parse_axes(asked.set, base, asked.random is not None), asked.random)


def read_sweep(options: Sweep) -> SweepSettings:
    """Return the sweep that is to go on.

    Raises:
      ValueError: There is none, or an option is given that only a new one takes.
    """
    from tamherd_jax.experiments.sweep import Sweep as SweepSettings

    directory = options.output.out
    if directory is None:
        raise ValueError("--resume needs --out DIR, the sweep to go on with")
    asked, unset = (by_name(part.training, part.method, part.testing, part.scale) for part in (options, Sweep()))
    of_this_process = by_name(ScaleOptions()).keys() - {"epochs_per_call"}
    for name, value in asked.items():
        if name not in of_this_process and value != unset[name]:
            raise ValueError(f"--{name.replace('_', '-')} is for new sweeps; leave it out to go on with {directory}")
    return SweepSettings.of_directory(directory)


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

    if options.output.out is None and jax.process_count() > 1:
        raise ValueError("a sweep of several processes needs --out DIR, which all of them see")
    directory = options.output.out
    if not options.output.resume and jax.process_index() == 0:
        with new_run_directory(options.output.out, f"sweep-{settings.base.preset}") as directory:
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
    per_call, rows = options.scale.learners_per_call, group.rows
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
