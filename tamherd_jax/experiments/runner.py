"""The public face of an experiment: a plan, its compiled programs and one run state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from tamherd_jax.codec import is_unused
from tamherd_jax.envs import TaskSet
from tamherd_jax.experiments import writing
from tamherd_jax.experiments.arms import STAGES as STAGES
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.curves import ArmCurves
from tamherd_jax.experiments.final_tests import run_final_tests
from tamherd_jax.experiments.herds import trained_herd, write_herds
from tamherd_jax.experiments.plan import make_plan
from tamherd_jax.experiments.programs import make_programs
from tamherd_jax.experiments.recording import write_episodes
from tamherd_jax.experiments.run import Progress, is_trained, run, train_probes
from tamherd_jax.experiments.state import RunState
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.types import TaskEnv


class Experiment:
    """One experiment: `plan` (what is done), `programs` (compiled from it) and `state` (all that changes).

    `run()` yields a `Progress` per epoch; afterwards `state` holds what the results need (`experiments.results`). At every
    yield its parts agree with `state.done`, and `run()` goes on from there (`experiments.snapshot`).

    Args:
      config: What to run.
      env, task_set: Replace the configuration's, for tests and for users' own tasks.
      seeds: `[S]` some of the configuration's seeds, where several processes share them.
      devices: Of this process, to which learners are dealt; by default its first.
      per_call: Learners a device and call; see `parallel.map_learners`.
      settings: What a sweep varies, a value for each of the seeds; see `plan.Plan`.

    Raises:
      ValueError: The configuration cannot be run on these tasks, in one line.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        env: TaskEnv | None = None,
        task_set: TaskSet | None = None,
        *,
        seeds: Sequence[int] | np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
        per_call: int | None = None,
        settings: Mapping[str, np.ndarray] | None = None,
    ):
        self.plan = make_plan(config, env, task_set, seeds, settings)
        self.programs = make_programs(self.plan, devices, per_call)
        self.state = RunState()

    def run(self) -> Iterator[Progress]:
        """Run what is not done yet; see `experiments.run.run`."""
        return run(self.plan, self.programs, self.state)

    def train_probes(self) -> Iterator[Progress]:
        """Run the first stage alone; see `experiments.run.train_probes`."""
        return train_probes(self.plan, self.programs, self.state)

    def restart(self) -> None:
        """Forget everything that was trained; compiled programs stay."""
        self.state = RunState()

    def herd(self, seed: int | None = None) -> Herd:
        """Return the trained herd of a seed, by default of the first.

        Raises:
          ValueError: Training is not done, or there is no such seed.
        """
        seeds = [int(number) for number in self.plan.seeds]
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            raise ValueError(f"there is no seed {seed}, only {', '.join(map(str, seeds))}")
        self._check_done()
        return trained_herd(self.plan, self.state, seeds.index(seed))

    def save(self, directory: str | Path) -> None:
        """Write what `tamherd run` leaves, for `tamherd report`, `evaluate`, `view` and `embed`: configuration, herds, results.

        Raises:
          ValueError: Training is not done, or the directory is not empty.
          OSError: It cannot be written.
        """
        self._check_done()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if not is_unused(directory, "config.json"):
            raise ValueError(f"{directory} is not empty")
        self.config.write(directory)
        write_herds(self.plan, self.state, directory)
        self.write_results(directory)

    def write_results(self, directory: Path, whole: Experiment | None = None) -> None:
        """Record this experiment's first herd, make the final tests, and write the result files, `results.json` last.

        Args:
          directory: Where to.
          whole: The experiment of all seeds, where several processes shared them; this one by default.

        Raises:
          OSError: A file cannot be written.
        """
        whole = self if whole is None else whole
        write_episodes(self.plan, self.state, directory)
        final = run_final_tests(self.plan, self.state, self.programs.devices)
        writing.write_results(whole.plan, whole.state, directory, final)

    def _check_done(self) -> None:
        if not is_trained(self.plan, self.state):
            raise ValueError(f"{self!r} is not trained: loop over its run() first")

    @property
    def config(self) -> ExperimentConfig:
        """What is run."""
        return self.plan.config

    @property
    def curves(self) -> Mapping[str, ArmCurves]:
        """What was recorded, by arm."""
        return self.state.curves

    def __repr__(self) -> str:
        """Name the configuration and how far it is."""
        c, done = self.config, self.state.done
        progress = ", ".join(f"{stage} {done[stage]}/{self.plan.epochs(stage)}" for stage in STAGES)
        return f"Experiment({c.preset}, {c.algorithm} on {self.plan.task_set.name}, {len(self.plan.seeds)} seed(s): {progress})"
