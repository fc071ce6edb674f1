"""The command `tamherd`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from tamherd_jax.commands import UserError, mistakes_of_the_user
from tamherd_jax.commands.embed import Embed, embed
from tamherd_jax.commands.embedding_options import EmbeddingOptions
from tamherd_jax.commands.evaluate import Evaluate, evaluate
from tamherd_jax.commands.report import Report, report, show_report
from tamherd_jax.commands.view import View, view

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tamherd_jax" / "xla"


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
    controls: Annotated[str | None, tyro.conf.arg(metavar="NAMES")] = None
    """Further arms: all, none, or some of random-assignment, oracle-assignment, random-clusters, untrained-probe,
    double-gradient, with commas between them. By default all in paper-maml, paper-pearl and long-maml, else none."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run directory. By default a new one under runs/."""
    embedding: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """How tasks are embedded; fisher, transition, gradient, latent or another name that tamherd embed --help lists."""
    probe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The probe: meta, the single learner stopped early (default), or with MAML one of its own: multitask, without the inner
    step, or discriminative, multitask and paid for telling tasks apart."""
    probe_epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Epochs after which the probe is frozen; 0 leaves it untrained. By default the preset's."""
    reuse_probe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Herd members of PEARL start from the probe's replay of their tasks, not from a fresh initial collection."""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The task set: ml2 (default), ml2-vel (target velocities) or ml2-params (perturbed bodies)."""
    physics: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """auto, mujoco (MuJoCo C), planar or mjx. By default auto: mujoco on a CPU, planar on an accelerator."""
    walker_frame_skip: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Physics steps of 0.002 s in an environment step of the walker: by default 4, as in gymnasium; ProMP's has 8."""
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
    compilation_cache: Annotated[str, tyro.conf.arg(metavar="DIR")] = str(CACHE)
    """Directory that keeps compiled programs between runs, or "off"."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Embed, tyro.conf.subcommand("embed")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit status 0 on success, 2 with one line on standard error for a mistake of the user's."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        actions: dict[type, Any] = {Run: run, Report: report, Evaluate: evaluate, View: view, Embed: embed}
        status = actions[type(command)](command)  # None is 0
    except UserError as error:
        sys.stderr.write(f"tamherd: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("tamherd: interrupted\n")
        sys.exit(130)
    if status:
        sys.exit(status)


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


def run(options: Run) -> int:
    """`tamherd run`; the exit status."""
    from rich.console import Console

    from tamherd_jax.reporting.trackers import parse_names

    use_compilation_cache(options.compilation_cache)
    with mistakes_of_the_user():
        parse_names(options.log_to)
        devices = start_devices(options)

    import jax

    from tamherd_jax.experiments.lifecycle import barrier, own_seeds
    from tamherd_jax.experiments.runner import Experiment

    with mistakes_of_the_user():
        config = read_config(options) if options.resume else new_config(options)
        whole = Experiment(config, devices=devices, per_call=options.learners_per_call)
        seeds = own_seeds(whole.plan.seeds)
        mine = whole
        if jax.process_count() > 1:
            mine = Experiment(config, seeds=seeds, devices=devices, per_call=options.learners_per_call)
        events = mine.run()  # refuses what does not fit into memory, before anything is written
    console = Console(quiet=jax.process_index() > 0)
    start = time.perf_counter()
    with mistakes_of_the_user(), barrier():
        directory = run_directory(options, config)
    if options.resume and (directory / "results.json").exists():
        console.print("This run was finished.")
    elif status := train(mine, events, directory, options, console):
        return status
    else:
        gather_and_write(mine, whole, directory)
    if jax.process_index() == 0:
        page = show_report(directory, console)
        console.print(
            f"{time.perf_counter() - start:.0f} s. Results: {directory}. Report: {page}", highlight=False, soft_wrap=True
        )
    return 0


def start_devices(options: Run) -> Any:
    """Join the other processes, and the devices that learners are dealt to.

    Raises:
      ValueError: there are not as many, or the options contradict each other.
    """
    import jax

    from tamherd_jax.parallel import cores, start_processes  # imports nothing that would start JAX's devices

    for name in ("devices", "learners_per_call", "processes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', ' ')} must be at least 1, not {value}")
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


def new_config(options: Run) -> Any:
    """The configuration that options ask for.

    Raises:
      ValueError: naming the first option at fault.
    """
    from tamherd_jax.experiments.config import get_preset, parse_controls, preset_name

    overrides: dict[str, Any] = {"seeds": options.seeds, "first_seed": options.first_seed, "algorithm": options.algorithm}
    name = preset_name(options.preset, options.algorithm)
    preset = get_preset(name, **overrides)
    overrides |= {
        "controls": parse_controls(options.controls, preset.algorithm),
        "embedding": options.embedding_config(options.embedding, preset.embedding),
        "clustering": options.clustering(preset.clustering),
        "probe": options.probe,
        "probe_epochs": options.probe_epochs,
        "reuse_probe": options.reuse_probe or None,
        "epochs_per_call": options.epochs_per_call,
        "walker_frame_skip": options.walker_frame_skip,
    }
    return get_preset(name, member_epochs=options.epochs, physics=options.physics, tasks=options.tasks, **overrides)


def read_config(options: Run) -> Any:
    """The configuration in the directory of a run that is to go on.

    Raises:
      ValueError: there is none, or an option contradicts it.
    """
    from tamherd_jax.experiments.config import ExperimentConfig, parse_controls, preset_name

    if options.out is None:
        raise ValueError("--resume needs --out DIR, the run to go on with")
    path, config = options.out / "config.json", ExperimentConfig.of_run(options.out)
    fields = {"epochs": "member_epochs"}
    named: dict[str, Any] = {"reuse_probe": options.reuse_probe or None}
    named |= {"preset": options.preset and preset_name(options.preset, config.algorithm)}
    named["controls"] = parse_controls(options.controls, config.algorithm)
    names = ("preset", "seeds", "first_seed", "algorithm", "epochs", "epochs_per_call", "tasks", "physics", "probe_epochs")
    for name in (*names, "walker_frame_skip", "probe", "reuse_probe", "controls"):
        asked, started = named.get(name, getattr(options, name)), getattr(config, fields.get(name, name))
        if asked not in (None, started):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {asked} contradicts {path}, where it is {started}; leave it out to go on")
    parts = options.embedding_config(options.embedding, config.embedding), options.clustering(config.clustering)
    if parts != (config.embedding, config.clustering):
        raise ValueError(f"the options on embedding and clustering contradict {path}; leave them out to go on")
    return config


def run_directory(options: Run, config: Any) -> Path:
    """The directory of a run; process 0 makes that of a new one, with its config.json."""
    import jax

    from tamherd_jax.serialization import write_json

    if options.out is None and jax.process_count() > 1:
        raise ValueError("a run of several processes needs --out DIR, which all of them see")
    if options.resume or jax.process_index() > 0:
        return Path(str(options.out))
    directory = new_run_directory(options.out, config.preset)
    write_json(directory / "config.json", config.to_json())
    return directory


def train(experiment: Any, events: Any, directory: Path, options: Run, console: Any) -> int:
    """Train from where the newest checkpoint left, writing further ones; 0, or the exit status of who was asked to stop.

    `events` are those of the experiment's `run()`, none of which was asked for yet.
    """
    import jax

    from tamherd_jax.experiments.checkpoints import Checkpoints
    from tamherd_jax.experiments.lifecycle import barrier, stop_requests
    from tamherd_jax.reporting.terminal import ProgressDisplay
    from tamherd_jax.reporting.trackers import Trackers, log_event, parse_names

    plan, state, me = experiment.plan, experiment.state, f"process-{jax.process_index()}"
    config, task_set = plan.config, plan.task_set
    alone = jax.process_count() == 1
    log = directory / ("log.jsonl" if alone or jax.process_index() == 0 else f"log-{me}.jsonl")
    where = directory / "checkpoints" if alone else directory / "checkpoints" / me
    with mistakes_of_the_user(), barrier():
        checkpoints = Checkpoints(where, options.checkpoint_every)
        step = checkpoints.restore(plan, state) if options.resume else None
    begin = "compiling the first program" if step is None else f"going on from checkpoint {step}"
    display = ProgressDisplay(console, log, task_set.mode_names, task_set.modes, plan.work(state.done))
    names = parse_names(options.log_to) if jax.process_index() == 0 else ()
    with mistakes_of_the_user():
        trackers = Trackers(names, directory, config.to_json(), display.note)
    with display, trackers, stop_requests() as stop, closing(checkpoints, directory):
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
        sys.stderr.write(f"tamherd: interrupted after {event.stage} {event.epoch}/{event.epochs}; {how_to_resume(directory)}\n")
        return stop.status
    return 0


@contextlib.contextmanager
def closing(checkpoints: Any, directory: Path) -> Any:
    """Wait for the last checkpoint, also when training fails; say how to go on when the disk does."""
    try:
        try:
            yield
        finally:
            checkpoints.close()
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; make room, then {how_to_resume(directory)}") from error


def how_to_resume(directory: Path) -> str:
    """The command that goes on with a run."""
    return f"go on with: tamherd run --resume --out {shlex.quote(str(directory))}"


def gather_and_write(mine: Any, whole: Any, directory: Path) -> None:
    """Join the processes' results; process 0 writes the result files."""
    import jax

    from tamherd_jax.experiments.herds import write_herds
    from tamherd_jax.experiments.lifecycle import gather
    from tamherd_jax.experiments.recording import write_episodes
    from tamherd_jax.experiments.results import write_results

    try:
        write_herds(mine.plan, mine.state, directory)  # every process has the states of its own seeds only
        if mine is not whole:
            gather(mine, whole)
        if jax.process_index() == 0:
            write_episodes(mine.plan, mine.state, directory)  # of its own first seed
            write_results(whole.plan, whole.state, directory)  # the last: where it is, the run is finished
    except OSError as error:
        reason = f"cannot write the results to {directory}: {error.strerror}; make room, then {how_to_resume(directory)}"
        raise UserError(reason) from error


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
