"""What a run leaves on disk: results.json, curves.npz and embeddings.npz. Reports read nothing else."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tamherd_jax
from tamherd_jax.experiments.arms import Arm
from tamherd_jax.experiments.ledger import taken_steps
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.herd import clustering
from tamherd_jax.serialization import read_arrays, write_arrays, write_json

SCHEMA = 1
ARMS = ("oracle", "single", "herd")


def write_results(experiment: Experiment, directory: Path) -> None:
    """Write the three files, each at once (a reader never sees half of one)."""
    curves = experiment_curves(experiment)
    write_json(directory / "results.json", results_document(experiment, curves))
    write_arrays(directory / "curves.npz", curves)
    write_arrays(directory / "embeddings.npz", embedding_arrays(experiment))


def experiment_curves(experiment: Experiment) -> dict[str, np.ndarray]:
    """Everything recorded, `arm/quantity` -> `[S, E, ...]`, and the x-axes `arm/budget` `[E]`, `arm/taken` `[S, E]`."""
    curves = {name: np.stack(values, 1) for name, values in experiment.curves.items()}
    probe = probe_steps(experiment, curves)
    for name, arm in experiment.arms.items():
        curves[f"{name}/budget"] = arm.budget(curves[f"{name}/after"].shape[1])
        first = {"probe": probe, "embeddings": experiment.partition(name).embedded.steps}
        charged = [np.asarray(first[part]) for part in arm.charged]
        curves[f"{name}/taken"] = taken_steps(curves[f"{arm.source}/steps"].sum(2), *charged)
    return curves


def probe_steps(experiment: Experiment, curves: dict[str, np.ndarray]) -> np.ndarray:
    """`[S]` steps really taken to train the probe."""
    return curves[f"{experiment.probe_arm}/steps"][:, : experiment.config.probe_epochs].sum((1, 2))


def arm_names(experiment: Experiment) -> tuple[str, ...]:
    """The arms in the order of the result files: the paper's three, then a probe of its own and the controls."""
    return (*ARMS, *(name for name in experiment.arms if name not in ARMS))


def embedding_arrays(experiment: Experiment) -> dict[str, np.ndarray]:
    """Gram matrices `[S, D, D]`, cluster labels `[S, D]` and task indices `[D]` of the embedded training tasks."""
    return {
        "gram": np.asarray(experiment.embedded.gram),
        "labels": np.stack([c.labels for c in experiment.clusters]),
        "task": np.asarray(experiment.embedded_index),
        "guard": np.asarray(experiment.embedded.features.guard),
    }


def results_document(experiment: Experiment, curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """The content of results.json: provenance, one row per seed x arm x body x statistic, clusters, ledger.

    Nothing in it depends on the clock: the same seed, machine and command give the same bytes.
    """
    task_set, config, left_out = experiment.task_set, experiment.config, excluded(experiment)
    return {
        "schema": SCHEMA,
        "package": {"name": "tamherd-jax", "version": tamherd_jax.__version__},
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "flax", "brax", "mujoco", "mujoco-mjx", "numpy")
        },
        "device": jax.devices()[0].device_kind,
        "physics": experiment.env.backend,
        "task_set": {
            "name": task_set.name,
            "version": task_set.version,
            "tasks": list(task_set.task_names),
            "bodies": list(task_set.mode_names),
            "body_of_task": [task_set.mode_names[mode] for mode in task_set.modes],
        },
        "config": config.to_json(),
        "rows": statistic_rows(experiment, curves, left_out),
        "excluded": left_out,
        "clusters": [cluster_summary(experiment, curves, i) for i in range(len(experiment.seeds))],
        "ledger": ledger(experiment, curves),
        "nonfinite_episodes": {
            name: int(curves[f"{experiment.arms[name].source}/nonfinite"].sum() + curves[f"{name}/test_nonfinite"].sum())
            for name in arm_names(experiment)
        },
    }


def statistic_rows(
    experiment: Experiment, curves: dict[str, np.ndarray], left_out: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Meta-test returns per seed, arm and body (mean over the body's tasks).

    After adaptation: `best` epoch (of which the paper reports the median), `final` epoch, `last5` mean of the last five
    epochs. Before adaptation: `before`, mean of the last five epochs. A seed's arm that is `left_out` has no rows.
    """
    rows, skipped = [], {(entry["seed"], entry["arm"]) for entry in left_out}
    for arm in arm_names(experiment):
        for mode, body in enumerate(experiment.task_set.mode_names):
            tasks = experiment.task_set.modes == mode
            after = curves[f"{arm}/after"][:, :, tasks].mean(2)
            before = curves[f"{arm}/before"][:, :, tasks].mean(2)
            statistics = {
                "best": after.max(1),
                "final": after[:, -1],
                "last5": after[:, -5:].mean(1),
                "before": before[:, -5:].mean(1),
            }
            for index, seed in enumerate(experiment.seeds):
                if (int(seed), arm) in skipped:
                    continue
                for name, values in statistics.items():
                    rows.append({"seed": int(seed), "arm": arm, "body": body, "statistic": name, "value": float(values[index])})
    return rows


def excluded(experiment: Experiment) -> list[dict[str, Any]]:
    """Which seed's arm is left out of the statistics, since which epoch and why.

    A learner whose state stopped being finite was frozen; its seed's arm then counts no more. A herd depends on its probe too,
    and on its clusters.
    """
    entries = []

    def exclude(index: int, arm: str, learner: int | None, epoch: int, why: str) -> None:
        entries.append({"seed": int(experiment.seeds[index]), "arm": arm, "learner": learner, "epoch": epoch, "why": why})

    for name in arm_names(experiment):
        for index, learner, epoch, why in _faults(experiment, experiment.arms[name].source):
            exclude(index, name, learner, epoch, why)
            if name == experiment.probe_arm and epoch <= experiment.config.probe_epochs:
                for herd in (arm.name for arm in experiment.arms.values() if "probe" in arm.charged):
                    exclude(index, herd, None, epoch, f"its probe: {why}")
    for name in (name for name in arm_names(experiment) if experiment.arms[name].charged):
        for index, why in sorted(experiment.partition(name).failures.items()):
            exclude(index, name, None, 0, why)
    return entries


def _faults(experiment: Experiment, arm: str) -> Iterator[tuple[int, int, int, str]]:
    """Index of the seed, learner, epoch and reason of each learner of an arm that was frozen."""
    faults = np.stack(experiment.curves[f"{arm}/fault"], 1)  # [S, E, A]
    for index, learner in np.argwhere(faults[:, -1] >= 0):
        epoch = int(np.argmax(faults[index, :, learner] >= 0)) + 1
        yield int(index), int(learner), epoch, f"{experiment.float_leaves[faults[index, -1, learner]]} is not finite"


def cluster_summary(experiment: Experiment, curves: dict[str, np.ndarray], index: int) -> dict[str, Any]:
    """How one seed's tasks were clustered and how test tasks were assigned."""
    task_set, clusters = experiment.task_set, experiment.clusters[index]
    tasks = np.asarray(experiment.embedded_index)
    modes = task_set.modes[tasks]
    share = curves["herd/share"][index, :, :, : clusters.k]  # [E, N, K], of the repeats of a meta-test
    margin = float(curves["herd/margin"][index].mean())
    repeats = experiment.config.test_repeats
    counts = {
        name: [int(np.sum((tasks == n) & (clusters.labels == k))) for k in range(clusters.k)]
        for n, name in enumerate(task_set.task_names)
    }
    # A cluster stands for the body of most of its tasks; assignment is right where that is the test task's.
    majority = np.array([np.bincount(modes[clusters.labels == k]).argmax() for k in range(clusters.k)])
    return {
        "seed": int(experiment.seeds[index]),
        "clusters": clusters.k,
        "failure": experiment.cluster_failures.get(index),
        "tasks_in_cluster": counts,
        "adjusted_rand_index_bodies": clustering.adjusted_rand(clusters.labels, modes),
        "purity_bodies": clustering.purity(clusters.labels, modes),
        "adjusted_rand_index_tasks": clustering.adjusted_rand(clusters.labels, tasks),
        "silhouette": {str(k): float(v) for k, v in clusters.scores["silhouette"].items()},
        "scores": {name: {str(k): float(v) for k, v in values.items()} for name, values in clusters.scores.items()},
        "reward_guard_rate": float(np.mean(experiment.embedded.features.guard[index])),
        "assignment_accuracy": float(np.mean(np.sum(share * (majority == task_set.modes[:, None]), -1))),
        "assignment_confidence": float(curves["herd/confidence"][index].mean()),
        "assignment_margin": margin if np.isfinite(margin) else None,  # there is none between one cluster and itself
        "assigned_to": {
            name: [round(float(times) * repeats) for times in share[:, n].sum(0)] for n, name in enumerate(task_set.task_names)
        },
    }


def learners(experiment: Experiment, arm: Arm) -> int:
    """How many learners an arm trains a seed; where seeds differ, their mean, rounded."""
    return round(float(experiment.member_counts(arm.name).mean())) if arm.grouped else arm.size


def ledger(experiment: Experiment, curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Environment steps per seed: the budget of each part, and what was really taken (spec 4.7)."""
    budget = experiment.budget
    return {
        "unit": "environment step = one action",
        "budget": {
            "probe": budget.probe,
            "embedding": budget.embedding,
            **{arm: int(curves[f"{arm}/budget"][-1]) for arm in arm_names(experiment)},
        },
        "taken": {
            "probe": probe_steps(experiment, curves).astype(int).tolist(),
            "embedding": np.asarray(experiment.embedded.steps).astype(int).tolist(),
            **{arm: curves[f"{arm}/taken"][:, -1].astype(int).tolist() for arm in arm_names(experiment)},
        },
        "meta_updates": {
            name: curves[f"{name}/steps"].shape[1] * learners(experiment, arm) * getattr(arm.learner, "updates_per_epoch", 1)
            for name, arm in experiment.arms.items()
            if arm.trains
        },
    }


def read_run(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """results.json, curves and embeddings of a finished run.

    Raises:
      ValueError: if the directory holds none, or a file is damaged or of another schema, in one line.
    """
    try:
        results = json.loads((directory / "results.json").read_text())
        curves, embeddings = (read_arrays(directory / name) for name in ("curves.npz", "embeddings.npz"))
    except FileNotFoundError as error:
        raise ValueError(f"{directory} holds no finished run: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"the result files in {directory} cannot be read: {error}") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ValueError(f"{directory}/results.json is not of this version (schema {SCHEMA})")
    return results, curves, embeddings
