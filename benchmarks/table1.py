"""The whole of Table 1, short: probe, embeddings, clusters, herd, oracle and single learner, trained and tested, by seeds.

Then what a finished run costs further: writing its result files, and `tamherd report` on them.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cases import Call, Case, Mode
from benchmarks.startup import COMMAND, finished
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.presets import get_preset
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.experiments.writing import write_results
from tamherd_jax.maml import MAMLConfig


class Repeated:
    """An experiment that can be run again with the programs it has compiled."""

    def __init__(self, config: ExperimentConfig):
        self.experiment = Experiment(config)

    def run(self) -> int:
        """Run a whole experiment; return its environment steps."""
        self.experiment.restart()
        return sum(event.steps for event in self.experiment.run())


def configuration(mode: Mode, seeds: int) -> ExperimentConfig:
    """The quick preset with few epochs."""
    epochs = mode.pick(1, 1, 1, 5)
    changes: dict[str, Any] = {"probe_epochs": epochs, "member_epochs": epochs, "single_epochs": 2 * epochs}
    if mode.name == "smoke":
        small = {"draws_per_task": 1, "embedding_tasks": 4, "explore_episodes": 2, "probe_test_episodes": 1, "test_episodes": 1}
        changes |= {**small, "embedding_episodes": 1, "maml": MAMLConfig(episodes_per_task=2, horizon=5), "physics": "planar"}
    return dataclasses.replace(get_preset("quick", seeds=seeds), **changes)


def report_of(repeated: Repeated, directory: Path) -> Call:
    """`tamherd report` on the files of the experiment, which has run."""
    write_results(repeated.experiment.plan, repeated.experiment.state, directory)
    close = functools.partial(shutil.rmtree, directory)
    return Call(lambda: finished([*COMMAND, "report", str(directory)]), own_clock=True, close=close)


def cases(mode: Mode) -> list[Case]:
    """By number of seeds; the files and the report are of the first."""
    make = functools.cache(lambda seeds: Repeated(configuration(mode, seeds)))
    epochs = configuration(mode, 1)
    scope = f"{epochs.probe_epochs} + {epochs.single_epochs - epochs.probe_epochs} single, {epochs.member_epochs} herd epochs"

    def whole(seeds: int) -> Case:
        job = functools.partial(lambda seeds: Call(make(seeds).run, compiles=True), seeds)
        name = f"{seeds} seed{'s' * (seeds > 1)}, {scope}"
        repeats = mode.pick(1, 1, 3) if seeds == 1 or mode.accelerator else 1
        return Case(name, job, "environment step", float, series="seeds", size=seeds, repeats=repeats)

    counts = mode.pick((1,), (1,), (1, 2), (1, 10))
    directory = functools.cache(lambda: Path(tempfile.mkdtemp(prefix="tamherd-benchmark-")))

    def files() -> Call:
        experiment = make(counts[0]).experiment
        return Call(lambda: write_results(experiment.plan, experiment.state, directory()))

    return [
        *map(whole, counts),
        Case("result files", files, "report", 1.0),
        Case(
            "tamherd report, a process",
            lambda: report_of(make(counts[0]), directory()),
            "report",
            1.0,
            repeats=mode.pick(1, 1, 3),
        ),
    ]
