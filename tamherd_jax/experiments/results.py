"""What a finished run leaves on disk: curves.npz, embeddings.npz and, last, results.json. Reports read nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tamherd_jax.codec import arrays_checksum, decode, read_arrays, read_json, unsealed
from tamherd_jax.experiments.config import ExperimentConfig

SCHEMA = 2
SCHEMAS = {1: False, SCHEMA: True}
"""Forms of results.json that can be read, and whether each has checksums; the first release wrote none."""
RESULTS, CURVES, EMBEDDINGS_FILE, EPISODES = "results.json", "curves.npz", "embeddings.npz", "episodes.npz"
ARMS = ("oracle", "single", "herd")
"""The paper's arms, in its order."""

Statistic: TypeAlias = Literal["best", "final", "last5", "before"]


@dataclasses.dataclass(frozen=True)
class PackageEntry:
    """The package that ran."""

    name: str
    version: str


@dataclasses.dataclass(frozen=True)
class TaskSetSummary:
    """The task set of a run.

    Attributes:
      name, version: Of the set.
      tasks: `[N]` names of its tasks.
      bodies: Names of its modes.
      body_of_task: `[N]` the body of each task.
    """

    name: str
    version: int
    tasks: tuple[str, ...]
    bodies: tuple[str, ...]
    body_of_task: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ReturnRow:
    """One statistic of the meta-test returns of a seed's arm, the mean over a body's tasks.

    Attributes:
      seed, arm, body: Whose.
      statistic: After adaptation the `best` epoch (of which the paper reports the median), the `final` epoch, and the mean of
        the `last5` epochs; `before` adaptation, the mean of the last five epochs.
      value: The return.
    """

    seed: int
    arm: str
    body: str
    statistic: Statistic
    value: float


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """A seed's arm that is left out of the statistics.

    Attributes:
      seed: The seed.
      arm: Name of the arm.
      learner: Index of the learner at fault; None if the fault is not one of the arm's own.
      epoch: Since when, counted from 1; 0 if before the first.
      why: What happened.
    """

    seed: int
    arm: str
    learner: int | None
    epoch: int
    why: str


@dataclasses.dataclass(frozen=True)
class ClusterSummary:
    """How one seed's training tasks were clustered, and how test tasks were assigned.

    Attributes:
      seed: The seed.
      clusters: K.
      failure: Why the tasks could not be clustered; None where they could.
      tasks_in_cluster: By task, how often it is in each cluster, `[K]`.
      adjusted_rand_index_bodies, purity_bodies: Of the clusters against the bodies.
      adjusted_rand_index_tasks: Of the clusters against the tasks.
      silhouette: By number of clusters; None where there is none.
      scores: By name of a score and number of clusters.
      reward_guard_rate: Share of the embedded tasks whose rewards have no positive maximum to be divided by.
      assignment_accuracy: Share of the test tasks that got a member whose cluster is mostly of their body.
      assignment_confidence, assignment_margin: Means over epochs and test tasks; see `herd.clustering.Assignment`.
      assigned_to: By task, how often it was assigned to each member, `[K]`.
    """

    seed: int
    clusters: int
    failure: str | None
    tasks_in_cluster: dict[str, list[int]]
    adjusted_rand_index_bodies: float
    purity_bodies: float
    adjusted_rand_index_tasks: float
    silhouette: dict[str, float | None]
    scores: dict[str, dict[str, float | None]]
    reward_guard_rate: float
    assignment_accuracy: float
    assignment_confidence: float | None
    assignment_margin: float | None
    assigned_to: dict[str, list[int]]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Environment steps per seed.

    Attributes:
      unit: What is counted.
      budget: By part of the run, what it may take.
      taken: By part, what each seed really took, `[S]`.
      meta_updates: By arm that trains, meta-updates of a seed.
    """

    unit: str
    budget: dict[str, int]
    taken: dict[str, list[int]]
    meta_updates: dict[str, int]


@dataclasses.dataclass(frozen=True)
class FinalReturns:
    """Tests after the last epoch; see `final_tests.FinalTests`.

    Attributes:
      task_set, tasks, bodies, shots: As there.
      returns: By arm, `[S][N][k]`, None where not finite.
    """

    task_set: str
    tasks: tuple[str, ...]
    bodies: tuple[str, ...]
    shots: tuple[int, ...]
    returns: dict[str, list[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Content of results.json besides its form and checksums. Nothing in it depends on the clock.

    Attributes:
      package, versions: What ran, and on which libraries.
      device: Kind of device.
      physics: Name of the backend.
      task_set: What was trained on.
      config: Settings of the run.
      rows: Returns by seed, arm, body and statistic.
      excluded: What is left out of `rows`.
      clusters: One entry a seed.
      ledger: Environment steps.
      nonfinite_episodes: By arm, episodes that ended because their state stopped being finite.
      final_tests: Tests after the last epoch, where some were asked for.
    """

    package: PackageEntry
    versions: dict[str, str]
    device: str
    physics: str
    task_set: TaskSetSummary
    config: ExperimentConfig
    rows: tuple[ReturnRow, ...]
    excluded: tuple[Exclusion, ...] = ()
    clusters: tuple[ClusterSummary, ...]
    ledger: Ledger
    nonfinite_episodes: dict[str, int]
    final_tests: FinalReturns | None = None

    @property
    def arms(self) -> list[str]:
        """The arms of the run: the paper's in its order, then the others in the file's."""
        found = list(self.nonfinite_episodes)  # which has an entry for every arm
        return [arm for arm in ARMS if arm in found] + [arm for arm in found if arm not in ARMS]

    @property
    def seeds(self) -> np.ndarray:
        """`[S]` the seeds."""
        return self.config.first_seed + np.arange(self.config.seeds)


def is_finished(directory: Path) -> bool:
    """Return whether a directory holds all result files of one run, undamaged."""
    try:
        read_run(directory)
    except ValueError:
        return False
    return True


def read_run(directory: Path) -> tuple[Results, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return results, curves and embeddings of a finished run.

    Raises:
      ValueError: In one line, if the directory holds none, or a file is damaged, of another version or of another run.
    """
    where = directory / RESULTS
    try:
        document = read_json(where)
        body = unsealed(document, where, SCHEMAS, name="schema")
        curves, embeddings = (read_arrays(directory / name) for name in (CURVES, EMBEDDINGS_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} holds no finished run: {Path(error.filename).name} is missing") from error
    covered = body.pop("arrays", None)
    if SCHEMAS[document["schema"]]:
        for name, arrays in ((CURVES, curves), (EMBEDDINGS_FILE, embeddings)):
            if not isinstance(covered, dict) or covered.get(name) != arrays_checksum(arrays):
                raise ValueError(f"{directory}: {name} and {RESULTS} are not of the same run, or {name} is damaged")
    try:
        results = decode(Results, body)
        check_parts(results)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    check_axes(results, curves, embeddings, directory)
    return results, curves, embeddings


def check_parts(results: Results) -> None:
    """Check that the parts of results.json belong together.

    Raises:
      ValueError: In one line.
    """
    config, task_set, arms = results.config, results.task_set, set(results.nonfinite_episodes)
    fits = len(results.clusters) == config.seeds and len(task_set.body_of_task) == len(task_set.tasks)
    fits &= all(row.arm in arms and row.body in task_set.bodies for row in results.rows)
    fits &= all(entry.arm in arms for entry in results.excluded) and set(results.ledger.budget) == set(results.ledger.taken)
    fits &= all(set(summary.tasks_in_cluster) == set(task_set.tasks) for summary in results.clusters)
    if not fits:
        raise ValueError("its parts do not belong together")


def check_axes(results: Results, curves: dict[str, np.ndarray], embeddings: dict[str, np.ndarray], directory: Path) -> None:
    """Check that the arrays are there and have the axes that the results say.

    Raises:
      ValueError: In one line.
    """
    seeds, tasks = results.config.seeds, len(results.task_set.tasks)
    for arm in results.arms:
        for name in ("after", "before", "budget", "taken"):
            array = curves.get(f"{arm}/{name}")
            if array is None:
                raise ValueError(f"{directory}: {CURVES} lacks {arm}/{name}, so it is of another run")
            right = name == "budget" or array.shape[:1] == (seeds,)
            right &= name not in ("after", "before") or array.shape[2:] == (tasks,)
            if not right:
                raise ValueError(f"{directory}: {arm}/{name} in {CURVES} has shape {array.shape}: it is of another run")
    if missing := {"gram", "labels", "task"} - set(embeddings):
        raise ValueError(f"{directory}: {EMBEDDINGS_FILE} lacks {min(missing)}, so it is of another run")
    if len(embeddings["gram"]) != seeds or embeddings["labels"].shape != embeddings["gram"].shape[:2]:
        raise ValueError(f"{directory}: {EMBEDDINGS_FILE} is of another run")
