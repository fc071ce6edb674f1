"""Options of `tamherd run` and `tamherd sweep`, in the groups that their help shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tamherd_jax.commands.embedding_options import EmbeddingOptions
from tamherd_jax.commands.options import listed, one_of, option
from tamherd_jax.registry.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, PRESETS
from tamherd_jax.registry.choices import CONTROLS, EMBEDDINGS, PHYSICS, PROBES, TASK_SETS

PRESET = listed("The preset", PRESETS, f"By default {ALGORITHMS[DEFAULT_ALGORITHM].default_preset}.")
ALGORITHM = listed("The meta-learner", {name: f"its default preset is {a.default_preset}" for name, a in ALGORITHMS.items()})
PROBE = listed("The probe", PROBES, "By default meta.")
_WITH_ALL = [name for a in ALGORITHMS.values() for name, fields in a.presets.items() if fields.get("controls") == "all"]
CONTROL_ARMS = (
    f"Further arms: all, none, or some of {', '.join(CONTROLS)}, with commas between them. "
    f"By default all in {', '.join(_WITH_ALL)}, elsewhere the preset's."
)


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """What is trained, on what, and for how long. Where an option is left out, the preset decides."""

    preset: Annotated[str | None, one_of(PRESETS), option("NAME", PRESET)] = None
    algorithm: Annotated[str | None, one_of(ALGORITHMS), option("NAME", ALGORITHM)] = None
    tasks: Annotated[str | None, one_of(TASK_SETS), option("NAME", listed("The task set", TASK_SETS))] = None
    seeds: Annotated[int | None, option("N")] = None
    """Number of seeds; all train together."""
    first_seed: Annotated[int | None, option("N")] = None
    """The seeds are this one and those that follow. By default 0."""
    epochs: Annotated[int | None, option("N")] = None
    """Epochs of every herd member and oracle learner; the single learner's follow."""
    stop_at: Annotated[float | None, option("RETURN")] = None
    """End the herd's training, and then the single learner's, once its mean return reaches this in three tests in a row."""
    physics: Annotated[str | None, one_of(PHYSICS), option("NAME", listed("Physics", PHYSICS))] = None
    walker_frame_skip: Annotated[int | None, option("N")] = None
    """Physics steps of 0.002 s in an environment step of the walker: by default 4, as in gymnasium; ProMP's has 8."""
    config: Annotated[Path | None, option("FILE")] = None
    """Settings in place of the preset's: a TOML file (tamherd config prints one) or a run's config.json."""
    set: Annotated[tuple[str, ...], option("NAME=VALUE"), tyro.conf.UseAppendAction] = ()
    """Any setting by its dotted name, such as maml.trpo.max_kl=0.1; may be given several times. tamherd config lists them."""


@dataclasses.dataclass(frozen=True)
class MethodOptions(EmbeddingOptions):
    """How the herd comes about: probe, embedding, clusters, and the controls beside it."""

    embedding: Annotated[str | None, one_of(EMBEDDINGS), option("NAME", listed("How tasks are embedded", EMBEDDINGS))] = None
    probe: Annotated[str | None, one_of(PROBES), option("NAME", PROBE)] = None
    probe_epochs: Annotated[int | None, option("N")] = None
    """Epochs after which the probe is frozen; 0 leaves it untrained."""
    reuse_probe: Annotated[bool, option(), tyro.conf.FlagCreatePairsOff] = False
    """Herd members of PEARL start from the probe's replay of their tasks, not from a fresh initial collection."""
    controls: Annotated[str | None, option("NAMES", CONTROL_ARMS)] = None


@dataclasses.dataclass(frozen=True)
class TestingOptions:
    """Tests of the trained learners once training has ended."""

    shots: Annotated[str | None, option("COUNTS")] = None
    """Test the trained learners also after other numbers of exploration episodes, such as 0,1,2,5,10."""
    test_tasks: Annotated[str | None, one_of(TASK_SETS), option("NAME")] = None
    """Task set of these last tests, such as ml2-vel-between after training on ml2-vel. By default that of training."""


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Where results, checkpoints and logs go."""

    out: Annotated[Path | None, option("DIR")] = None
    """Run directory. By default a new one under runs/."""
    resume: Annotated[bool, option(), tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --out DIR from its newest checkpoint; its configuration is the one it was started with."""
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Seconds between checkpoints; 0 writes one after every epoch."""
    log_to: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "tensorboard"
    """Where training scalars go: tensorboard (DIR/tensorboard), wandb, trackio, several with commas, or none."""


@dataclasses.dataclass(frozen=True)
class ScaleOptions:
    """Devices and processes that share the work, and its compiled programs."""

    devices: Annotated[int | None, option("N")] = None
    """Devices that learners are dealt to. By default all of this process; a CPU counts as one a core, or as N."""
    learners_per_call: Annotated[int | None, option("N")] = None
    """Learners that one device trains at once. By default 1 on a CPU, elsewhere as many as its memory holds."""
    epochs_per_call: Annotated[int | None, option("N")] = None
    """Training epochs that one call of the compiled program runs. By default 1; more spare an accelerator the host's pauses."""
    coordinator: Annotated[str | None, option("HOST:PORT")] = None
    """Share the seeds among processes: where process 0 listens, or auto to ask Slurm, Open MPI, Kubernetes or a TPU pod."""
    processes: Annotated[int | None, option("N")] = None
    """How many processes there are; every one is started with the same command but for its --process-id."""
    process_id: Annotated[int | None, option("I")] = None
    """Which process this is, from 0. Process 0 writes the results."""
    compilation_cache: Annotated[str | None, option("DIR")] = None
    """Directory that keeps compiled programs between runs, or "off". By default one in the user's cache directory."""


@dataclasses.dataclass(frozen=True)
class VariedOptions(TrainingOptions):
    """What is trained, on what, and for how long. Where an option is left out, the preset decides."""

    set: Annotated[tuple[str, ...], option("NAME=VALUES"), tyro.conf.UseAppendAction] = ()
    """What to vary, such as maml.inner_step_size=0.05,0.1,0.2 or maml.trpo.max_kl=0.01:0.2:log5 (or lin5); may be given
    several times. Lists have ; between them. tamherd config lists all settings."""
    random: Annotated[int | None, option("N")] = None
    """Try N random combinations in place of all; of a range LOW:HIGH:log or :lin, any value."""


@dataclasses.dataclass(frozen=True)
class SweepOutputOptions(OutputOptions):
    """Where results, checkpoints and logs go."""

    log_to: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "none"
    """Where means over all settings go while they train: tensorboard, wandb, trackio, several with commas, or none."""
