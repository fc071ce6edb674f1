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
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import tamherd_jax
from tamherd_jax.commands import UserError, check_count, mistakes_of_the_user, new_console, parse_shots, writing_to
from tamherd_jax.commands.compilation_cache import use_compilation_cache
from tamherd_jax.commands.embedding_options import EmbeddingOptions
from tamherd_jax.commands.report import show_report

if TYPE_CHECKING:
    import jax
    from rich.console import Console

    from tamherd_jax.experiments.checkpoints import Checkpoints
    from tamherd_jax.experiments.config import ExperimentConfig
    from tamherd_jax.experiments.run import Progress
    from tamherd_jax.experiments.runner import Experiment

MOST_DEVICES = 1024


@dataclasses.dataclass(frozen=True)
class Run(EmbeddingOptions):
    """Train and evaluate probe, herd, single learner and oracle on ML2, and print the paper's table."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """By default quick (minutes on two cores). Or paper-maml, paper-pearl (the paper's Tables 3, 4), long-maml, tuned-maml."""
    seeds: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of seeds; all train together. By default the preset's."""
    first_seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """The seeds are this one and those that follow. By default 0."""
    algorithm: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The meta-learner: maml or pearl, by default the preset's. With pearl the default preset is quick-pearl."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Epochs of every herd member and oracle learner; the single learner's follow. By default the preset's."""
    epochs_per_call: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Training epochs that one call of the compiled program runs. By default 1; more spare an accelerator the host's pauses."""
    stop_at: Annotated[float | None, tyro.conf.arg(metavar="RETURN")] = None
    """End the herd's training, and then the single learner's, once its mean return reaches this in three tests in a row."""
    shots: Annotated[str | None, tyro.conf.arg(metavar="COUNTS")] = None
    """Test the trained learners also after other numbers of exploration episodes, such as 0,1,2,5,10."""
    test_tasks: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Task set of these last tests, such as ml2-vel-between after training on ml2-vel. By default that of training."""
    controls: Annotated[str | None, tyro.conf.arg(metavar="NAMES")] = None
    """Further arms: all, none, or some of random-assignment, oracle-assignment, random-clusters, untrained-probe,
    double-gradient, with commas between them. By default all in paper-maml, paper-pearl and long-maml, else none."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run directory. By default a new one under runs/."""
    embedding: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """How tasks are embedded; fisher, transition, gradient, latent or another name that tamherd embed --help lists."""
    probe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The probe: meta, the single learner stopped early (default), or with MAML one of its own: multitask, without the inner
    step, or discriminative, multitask and rewarded for telling tasks apart."""
    probe_epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Epochs after which the probe is frozen; 0 leaves it untrained. By default the preset's."""
    reuse_probe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Herd members of PEARL start from the probe's replay of their tasks, not from a fresh initial collection."""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The task set: ml2 (default), ml2-vel or ml2-vel-between (target velocities), ml2-params (perturbed bodies), ml3."""
    physics: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """auto (default), planar, mujoco (MuJoCo C) or mjx. auto is planar, in the form that suits the device."""
    walker_frame_skip: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Physics steps of 0.002 s in an environment step of the walker: by default 4, as in gymnasium; ProMP's has 8."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE"), tyro.conf.UseAppendAction] = ()
    """Any setting by its dotted name, such as maml.trpo.max_kl=0.1; may be given several times. tamherd config lists them."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Settings in place of the preset's: a TOML file (tamherd config prints one) or a run's config.json."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --out DIR from its newest checkpoint; its configuration is the one it was started with."""
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Seconds between checkpoints; 0 writes one after every epoch."""
    devices: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Devices that learners are dealt to. By default all of this process; a CPU counts as one a core, or as N."""
    learners_per_call: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Learners that one device trains at once. By default 1 on a CPU, elsewhere as many as its memory holds."""
    log_to: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "tensorboard"
    """Where training scalars go: tensorboard (DIR/tensorboard), wandb, trackio, several with commas, or none."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Share the seeds among processes: where process 0 listens, or auto to ask Slurm, Open MPI, Kubernetes or a TPU pod."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many processes there are; every one is started with the same command but for its --process-id."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """Which process this is, from 0. Process 0 writes the results."""
    compilation_cache: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory that keeps compiled programs between runs, or "off". By default one in the user's cache directory."""


def run(options: Run) -> int:
    """Run `tamherd run`; return the exit status."""
    from tamherd_jax.reporting.trackers import parse_names

    use_compilation_cache(options.compilation_cache)
    with mistakes_of_the_user():
        parse_names(options.log_to)
        devices = start_devices(options)

    import jax

    from tamherd_jax.experiments.final_tests import final_plan
    from tamherd_jax.experiments.lifecycle import barrier, locked, own_seeds
    from tamherd_jax.experiments.results import is_finished
    from tamherd_jax.experiments.runner import Experiment

    with mistakes_of_the_user():
        config = read_config(options) if options.resume else new_config(options)
        whole = Experiment(config, devices=devices, per_call=options.learners_per_call)
        seeds = own_seeds(whole.plan.seeds)
        mine = whole
        if jax.process_count() > 1:
            if config.stop_at is not None:
                raise ValueError("--stop-at needs one process: several would stop at different epochs")
            if config.shots:
                raise ValueError("--shots needs one process: each of several has the learners of its own seeds only")
            mine = Experiment(config, seeds=seeds, devices=devices, per_call=options.learners_per_call)
        final_plan(mine.plan)  # refuses tasks of another kind
        events = mine.run()  # refuses what does not fit into memory, before anything is written
    console = new_console(quiet=jax.process_index() > 0)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        with mistakes_of_the_user(), barrier():
            directory = run_directory(options, config)
            where = checkpoint_directory(directory)
            stack.enter_context(locked(where if jax.process_count() > 1 else directory))
        if options.resume and is_finished(directory):
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

    check_count("devices", options.devices, MOST_DEVICES)
    check_count("learners_per_call", options.learners_per_call)
    check_count("processes", options.processes)
    check_coordinator(options.coordinator)
    if not 0 <= options.checkpoint_every < float("inf"):
        raise ValueError(f"checkpoint every must be a number of seconds from 0, not {options.checkpoint_every}")
    count = options.devices or cores()  # on a CPU by default one device a core, so that learners train side by side
    if count > 1 and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # devices are there already: as many as there are
            jax.config.update("jax_num_cpu_devices", count)
    start_processes(options.coordinator, options.processes, options.process_id)
    devices = jax.local_devices()
    if options.devices and options.devices > len(devices):
        raise ValueError(f"{options.devices} devices were asked for, but here are {len(devices)} ({devices[0].device_kind})")
    return devices[: options.devices]


def new_config(options: Run) -> ExperimentConfig:
    """Return the configuration that options ask for: the preset, then --config, then options by name, then --set.

    Raises:
      ValueError: Naming the first option at fault.
    """
    from tamherd_jax.experiments.presets import get_preset, override, parse_controls, preset_name
    from tamherd_jax.experiments.settings import parse_assignments, read_settings, with_settings

    base = get_preset(preset_name(options.preset, options.algorithm), algorithm=options.algorithm)
    if options.config is not None:
        base = with_settings(base, read_settings(options.config))
    base = override(base, tasks=options.tasks)
    config = override(
        base,
        seeds=options.seeds,
        first_seed=options.first_seed,
        controls=parse_controls(options.controls, base.algorithm),
        embedding=options.embedding_config(options.embedding, base.embedding),
        clustering=options.clustering(base.clustering),
        probe=options.probe,
        probe_epochs=options.probe_epochs,
        reuse_probe=options.reuse_probe or None,
        member_epochs=options.epochs,
        epochs_per_call=options.epochs_per_call,
        stop_at=options.stop_at,
        shots=parse_shots(options.shots) if options.shots is not None else None,
        test_tasks=options.test_tasks,
        physics=options.physics,
        walker_frame_skip=options.walker_frame_skip,
    )
    return with_settings(config, parse_assignments(options.set, config))


def read_config(options: Run) -> ExperimentConfig:
    """The configuration in the directory of a run that is to go on.

    Raises:
      ValueError: there is none, or an option contradicts it.
    """
    from tamherd_jax.experiments.config import ExperimentConfig
    from tamherd_jax.experiments.presets import parse_controls, preset_name
    from tamherd_jax.experiments.settings import parse_assignments, with_settings

    if options.out is None:
        raise ValueError("--resume needs --out DIR, the run to go on with")
    path, config = options.out / "config.json", ExperimentConfig.of_run(options.out)
    fields = {"epochs": "member_epochs"}
    named: dict[str, Any] = {"reuse_probe": options.reuse_probe or None}
    named |= {"preset": options.preset and preset_name(options.preset, config.algorithm)}
    named["shots"] = parse_shots(options.shots) if options.shots is not None else None
    named["controls"] = parse_controls(options.controls, config.algorithm)
    names = ("preset", "seeds", "first_seed", "algorithm", "epochs", "epochs_per_call", "tasks", "physics", "probe_epochs")
    for name in (*names, "stop_at", "shots", "test_tasks", "walker_frame_skip", "probe", "reuse_probe", "controls"):
        asked, started = named.get(name, getattr(options, name)), getattr(config, fields.get(name, name))
        if asked not in (None, started):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {asked} contradicts {path}, where it is {started}; leave it out to go on")
    if options.config is not None or with_settings(config, parse_assignments(options.set, config)) != config:
        raise ValueError(f"--config and --set are for new runs; leave them out to go on with {options.out}")
    parts = options.embedding_config(options.embedding, config.embedding), options.clustering(config.clustering)
    if parts != (config.embedding, config.clustering):
        raise ValueError(f"the options on embedding and clustering contradict {path}; leave them out to go on")
    return config


def run_directory(options: Run, config: ExperimentConfig) -> Path:
    """The directory of a run; process 0 makes that of a new one, with its config.json."""
    import jax

    if options.out is None and jax.process_count() > 1:
        raise ValueError("a run of several processes needs --out DIR, which all of them see")
    if options.resume or jax.process_index() > 0:
        return Path(str(options.out))
    directory = new_run_directory(options.out, config.preset)
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
        checkpoints = Checkpoints(where, options.checkpoint_every)
        step = checkpoints.restore(plan, state) if options.resume else None
    begin = "compiling the first program" if step is None else f"going on from checkpoint {step}"
    if checkpoints.written_by != tamherd_jax.__version__:
        begin += f" of version {checkpoints.written_by}, whose numbers may differ from this one's"
    display = ProgressDisplay(console, log, task_set.mode_names, task_set.modes, plan.work(state.done))
    names = parse_names(options.log_to) if jax.process_index() == 0 else ()
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
    """Wait for the last checkpoint, also when training fails; say how to go on when the disk does."""
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

    from tamherd_jax.experiments.final_tests import run_final_tests
    from tamherd_jax.experiments.herds import write_herds
    from tamherd_jax.experiments.lifecycle import gather
    from tamherd_jax.experiments.recording import write_episodes
    from tamherd_jax.experiments.results import write_results

    with writing_to(directory, f"make room, then {how_to_resume(directory)}"):
        write_herds(mine.plan, mine.state, directory)  # every process has the states of its own seeds only
        if mine is not whole:
            gather(mine, whole)
        if jax.process_index() == 0:
            write_episodes(mine.plan, mine.state, directory)  # of its own first seed
            final = run_final_tests(mine.plan, mine.state, mine.programs.devices)
            write_results(whole.plan, whole.state, directory, final)  # the last: where it is, the run is finished


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
        instead = ", or go on with the run in it with --resume" if (out / "config.json").exists() else ""
        raise UserError(f"{out} is not empty; name a new directory with --out{instead}")
    return out
