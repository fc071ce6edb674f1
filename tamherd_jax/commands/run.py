"""`tamherd run`: train and evaluate a whole experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

import tamherd_jax
from tamherd_jax.commands import (
    UserError,
    check_count,
    mistakes_of_the_user,
    new_console,
    numbered_directory,
    parse_shots,
    writing_to,
)
from tamherd_jax.commands.compilation_cache import use_compilation_cache
from tamherd_jax.commands.report import show_report
from tamherd_jax.commands.run_options import MethodOptions, OutputOptions, ScaleOptions, TestingOptions, TrainingOptions

if TYPE_CHECKING:
    import jax
    from rich.console import Console

    from tamherd_jax.experiments.checkpoints import Checkpoints
    from tamherd_jax.experiments.config import ExperimentConfig
    from tamherd_jax.experiments.run import Progress
    from tamherd_jax.experiments.runner import Experiment

MOST_DEVICES = 1024
_OPTION_OF = {"member_epochs": "epochs"}
"""Option that sets a field of the configuration, where their names differ."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Train and evaluate probe, herd, single learner and oracle on ML2, and print the paper's table."""

    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = TrainingOptions()
    method: tyro.conf.OmitArgPrefixes[MethodOptions] = MethodOptions()
    testing: tyro.conf.OmitArgPrefixes[TestingOptions] = TestingOptions()
    output: tyro.conf.OmitArgPrefixes[OutputOptions] = OutputOptions()
    scale: tyro.conf.OmitArgPrefixes[ScaleOptions] = ScaleOptions()


def run(options: Run) -> int:
    """Run `tamherd run`; return the exit status."""
    from tamherd_jax.reporting.trackers import parse_names

    use_compilation_cache(options.scale.compilation_cache)
    with mistakes_of_the_user():
        parse_names(options.output.log_to)
        devices = start_devices(options)

    import jax

    from tamherd_jax.experiments.early import recording_compiled_early
    from tamherd_jax.experiments.final_tests import final_plan
    from tamherd_jax.experiments.lifecycle import barrier, locked, own_seeds
    from tamherd_jax.experiments.results import is_finished
    from tamherd_jax.experiments.runner import Experiment

    with mistakes_of_the_user():
        config = read_config(options) if options.output.resume else new_config(options)
        whole = Experiment(config, devices=devices, per_call=options.scale.learners_per_call)
        seeds = own_seeds(whole.plan.seeds)
        mine = whole
        if jax.process_count() > 1:
            if config.stop_at is not None:
                raise ValueError("--stop-at needs one process: several would stop at different epochs")
            if config.shots:
                raise ValueError("--shots needs one process: each of several has the learners of its own seeds only")
            mine = Experiment(config, seeds=seeds, devices=devices, per_call=options.scale.learners_per_call)
        final_plan(mine.plan)  # refuses tasks of another kind
        events = mine.run()  # refuses what does not fit into memory, before anything is written
    if jax.process_index() == 0:  # which records
        events = recording_compiled_early(mine.plan, events)
    console = new_console(quiet=jax.process_index() > 0)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        with mistakes_of_the_user(), barrier():
            directory = run_directory(options, config)
        with mistakes_of_the_user(), barrier():  # process 0 found it empty
            where = checkpoint_directory(directory)
            stack.enter_context(locked(where if jax.process_count() > 1 else directory))
        if options.output.resume and is_finished(directory):
            console.print("This run was finished.")
        else:
            if status := train(mine, events, directory, options, console):
                return status
            gather_and_write(mine, whole, directory)
        if jax.process_index() == 0:
            page = show_report(directory, console)
            took = f"{time.perf_counter() - start:.0f} s. Results: {directory}. Report: {page}"
            console.print(took, highlight=False, soft_wrap=True, markup=False)
    return 0


def check_coordinator(text: str | None) -> None:
    """Check the address at which process 0 listens; the runtime crashes on one that is none.

    Raises:
      ValueError: It is neither `auto` nor HOST:PORT with a port from 1 to 65535.
    """
    if text in (None, "auto"):
        return
    host, _, port = str(text).rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"coordinator must be auto or HOST:PORT with a port from 1 to 65535, not {text!r}")


def start_devices(options: Run) -> list[jax.Device]:
    """Join the other processes, and the devices that learners are dealt to.

    Raises:
      ValueError: there are not as many, or the options contradict each other.
    """
    import jax

    from tamherd_jax.parallel import cores, start_processes  # imports nothing that would start JAX's devices

    scale, checkpoint_every = options.scale, options.output.checkpoint_every
    check_count("devices", scale.devices, MOST_DEVICES)
    check_count("learners_per_call", scale.learners_per_call)
    check_count("processes", scale.processes)
    check_coordinator(scale.coordinator)
    if not 0 <= checkpoint_every < float("inf"):
        raise ValueError(f"checkpoint every must be a number of seconds from 0, not {checkpoint_every}")
    count = scale.devices or cores()  # on a CPU by default one device a core, so that learners train side by side
    if count > 1 and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # devices are there already: as many as there are
            jax.config.update("jax_num_cpu_devices", count)
    start_processes(scale.coordinator, scale.processes, scale.process_id)
    devices = jax.local_devices()
    if scale.devices and scale.devices > len(devices):
        raise ValueError(f"{scale.devices} devices were asked for, but here are {len(devices)} ({devices[0].device_kind})")
    return devices[: scale.devices]


def asked_fields(options: Run, algorithm: str) -> dict[str, Any]:
    """Return the fields of a configuration that options name, with what they ask for: None where that is nothing.

    Raises:
      ValueError: Naming the first option at fault.
    """
    from tamherd_jax.experiments.presets import parse_controls

    training, method, testing = options.training, options.method, options.testing
    return {
        "seeds": training.seeds,
        "first_seed": training.first_seed,
        "controls": parse_controls(method.controls, algorithm),
        "probe": method.probe,
        "probe_epochs": method.probe_epochs,
        "reuse_probe": method.reuse_probe or None,
        "member_epochs": training.epochs,
        "epochs_per_call": options.scale.epochs_per_call,
        "stop_at": training.stop_at,
        "shots": None if testing.shots is None else parse_shots(testing.shots),
        "test_tasks": testing.test_tasks,
        "physics": training.physics,
        "walker_frame_skip": training.walker_frame_skip,
    }


def new_config(options: Run) -> ExperimentConfig:
    """Return the configuration that options ask for: the preset, then --config, then options by name, then --set.

    Raises:
      ValueError: Naming the first option at fault.
    """
    from tamherd_jax.experiments.presets import get_preset, override, preset_name
    from tamherd_jax.experiments.settings import parse_assignments, read_settings, with_settings

    training, method = options.training, options.method
    base = get_preset(preset_name(training.preset, training.algorithm), algorithm=training.algorithm)
    if training.config is not None:
        base = with_settings(base, read_settings(training.config))
    base = override(base, tasks=training.tasks)
    config = override(
        base,
        embedding=method.embedding_config(method.embedding, base.embedding),
        clustering=method.clustering(base.clustering),
        **asked_fields(options, base.algorithm),
    )
    return with_settings(config, parse_assignments(training.set, config))


def read_config(options: Run) -> ExperimentConfig:
    """The configuration in the directory of a run that is to go on.

    Raises:
      ValueError: there is none, or an option contradicts it.
    """
    from tamherd_jax.experiments.config import ExperimentConfig
    from tamherd_jax.experiments.presets import preset_name
    from tamherd_jax.experiments.settings import parse_assignments, with_settings

    training, method, directory = options.training, options.method, options.output.out
    if directory is None:
        raise ValueError("--resume needs --out DIR, the run to go on with")
    path, config = directory / "config.json", ExperimentConfig.of_run(directory)
    preset = training.preset and preset_name(training.preset, config.algorithm)
    first = {"preset": preset, "algorithm": training.algorithm, "tasks": training.tasks}
    for field, asked in (first | asked_fields(options, config.algorithm)).items():
        started = getattr(config, field)
        if asked not in (None, started):
            name = str(_OPTION_OF.get(field, field)).replace("_", "-")
            raise ValueError(f"--{name} {asked} contradicts {path}, where it is {started}; leave it out to go on")
    if training.config is not None or with_settings(config, parse_assignments(training.set, config)) != config:
        raise ValueError(f"--config and --set are for new runs; leave them out to go on with {directory}")
    parts = method.embedding_config(method.embedding, config.embedding), method.clustering(config.clustering)
    if parts != (config.embedding, config.clustering):
        raise ValueError(f"the options on embedding and clustering contradict {path}; leave them out to go on")
    return config


def run_directory(options: Run, config: ExperimentConfig) -> Path:
    """The directory of a run; process 0 makes that of a new one, with its config.json."""
    import jax

    if options.output.out is None and jax.process_count() > 1:
        raise ValueError("a run of several processes needs --out DIR, which all of them see")
    if options.output.resume or jax.process_index() > 0:
        return Path(str(options.output.out))
    with new_run_directory(options.output.out, config.preset) as directory:
        config.write(directory)
    return directory


def checkpoint_directory(directory: Path) -> Path:
    """Return where this process keeps its checkpoints, made if need be.

    Raises:
      OSError: It cannot be made.
    """
    import jax

    where = directory / "checkpoints"
    if jax.process_count() > 1:
        where = where / f"process-{jax.process_index()}"
    where.mkdir(parents=True, exist_ok=True)
    return where


def train(
    experiment: Experiment,
    events: Iterator[Progress],
    directory: Path,
    options: Run,
    console: Console,
    resume_advice: str | None = None,
) -> int:
    """Train from where the newest checkpoint left, writing further ones; 0, or the exit status of a run that a signal stopped.

    `events` are those of the experiment's `run()`, none of which was asked for yet. `resume_advice` says how to go on after an
    interruption; by default with `tamherd run`.
    """
    import jax

    from tamherd_jax.experiments.checkpoints import Checkpoints
    from tamherd_jax.experiments.lifecycle import barrier, stop_requests
    from tamherd_jax.reporting.terminal import ProgressDisplay
    from tamherd_jax.reporting.trackers import Trackers, log_event, parse_names

    plan, state, me = experiment.plan, experiment.state, f"process-{jax.process_index()}"
    resume_advice = resume_advice or how_to_resume(directory)
    config, task_set = plan.config, plan.task_set
    alone = jax.process_count() == 1
    log = directory / ("log.jsonl" if alone or jax.process_index() == 0 else f"log-{me}.jsonl")
    where = checkpoint_directory(directory)
    with mistakes_of_the_user(), barrier():
        checkpoints = Checkpoints(where, options.output.checkpoint_every)
        step = checkpoints.restore(plan, state) if options.output.resume else None
    begin = "compiling the first program" if step is None else f"going on from checkpoint {step}"
    if checkpoints.written_by != tamherd_jax.__version__:
        begin += f" of version {checkpoints.written_by}, whose numbers may differ from this one's"
    display = ProgressDisplay(console, log, task_set.mode_names, task_set.modes, plan.work(state.done))
    names = parse_names(options.output.log_to) if jax.process_index() == 0 else ()
    with mistakes_of_the_user():
        trackers = Trackers(names, directory, config.to_json(), display.note)
    with display, trackers, stop_requests() as stop, closing(checkpoints, directory, resume_advice):
        checkpoints.warn = display.note
        display.note(
            f"{config.preset}: {config.seeds} seed(s), {config.member_epochs} epochs, physics {plan.env.backend}, "
            f"results in {directory}; {begin}"
        )
        for event in events:
            display.show(event)
            log_event(trackers, event, plan, state)
            checkpoints.offer(plan, state)
            if stop.signal is not None:
                break
        checkpoints.save(plan, state)
    if stop.signal is not None and plan.work(state.done):
        lost = "" if checkpoints.saved == state.steps else f" (its last checkpoint is {checkpoints.saved}: make room first)"
        sys.stderr.write(f"tamherd: interrupted after {event.stage} {event.epoch}/{event.epochs}{lost}; {resume_advice}\n")
        return stop.status
    return 0


@contextlib.contextmanager
def closing(checkpoints: Checkpoints, directory: Path, resume_advice: str) -> Iterator[None]:
    """Wait for the last checkpoint to be written, also when training fails; where the disk fails, say how to resume."""
    try:
        try:
            yield
        finally:
            checkpoints.close()
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; make room, then {resume_advice}") from error


def how_to_resume(directory: Path) -> str:
    """The command that goes on with a run."""
    return f"go on with: tamherd run --resume --out {shlex.quote(str(directory))}"


def gather_and_write(mine: Experiment, whole: Experiment, directory: Path) -> None:
    """Join the processes' results; process 0 writes the result files."""
    import jax

    from tamherd_jax.experiments.herds import write_herds
    from tamherd_jax.experiments.lifecycle import gather

    with writing_to(directory, f"make room, then {how_to_resume(directory)}"):
        write_herds(mine.plan, mine.state, directory)  # every process has the states of its own seeds only
        if mine is not whole:
            gather(mine, whole)
        if jax.process_index() == 0:
            mine.write_results(directory, whole)


@contextlib.contextmanager
def new_run_directory(out: Path | None, preset: str) -> Iterator[Path]:
    """A directory without a run, made here, and locked while the caller writes the file that makes it the caller's.

    Raises:
      UserError: It holds something already, more than a process leaves that died while it wrote its first file, or it cannot be
        written.
      ValueError: Another process is working in it.
    """
    from tamherd_jax.codec import is_unused
    from tamherd_jax.experiments.lifecycle import locked

    try:
        out = numbered_directory(Path("runs"), preset) if out is None else out
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable.part").touch()
        (out / ".writable.part").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out or 'runs'}: {error.strerror}") from error
    with locked(out):
        if not is_unused(out, "config.json", "sweep.json", ".writable"):
            instead = ", or go on with the run in it with --resume" if (out / "config.json").exists() else ""
            raise UserError(f"{out} is not empty; name a new directory with --out{instead}")
        yield out
