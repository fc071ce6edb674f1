"""Write what a finished run leaves on disk; see `experiments.results` for what that is."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import tamherd_jax
from tamherd_jax.codec import arrays_checksum, encode, read_arrays, sealed, write_arrays, write_json
from tamherd_jax.experiments.arms import EMBEDDINGS, PROBE, Arm
from tamherd_jax.experiments.final_tests import FinalTests
from tamherd_jax.experiments.ledger import taken_steps
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import float_arrays
from tamherd_jax.experiments.results import (
    ARMS,
    CURVES,
    EMBEDDINGS_FILE,
    EPISODES,
    RESULTS,
    SCHEMA,
    ClusterSummary,
    Exclusion,
    FinalReturns,
    Ledger,
    PackageEntry,
    Results,
    ReturnRow,
    Statistic,
    TaskSetSummary,
)
from tamherd_jax.experiments.state import RunState, budget_steps, member_counts
from tamherd_jax.herd import clustering
from tamherd_jax.herd.diagnostics import majority_modes

LIBRARIES = ("jax", "flax", "brax", "mujoco", "mujoco-mjx", "numpy")
"""Whose versions a run records."""


def write_results(plan: Plan, state: RunState, directory: Path, final: FinalTests | None = None) -> None:
    """Write the result files, each at once, `results.json` last: where it is, the run is finished.

    It names the arrays that belong to it with their checksums, so that files of two runs are never read as one.

    Raises:
      OSError: A file cannot be written.
    """
    curves = run_curves(plan, state)
    write_result_files(directory, make_results(plan, state, curves, final), curves, embedding_arrays(plan, state))


def write_result_files(
    directory: Path, results: Results, curves: dict[str, np.ndarray], embeddings: dict[str, np.ndarray]
) -> None:
    """Write curves.npz and embeddings.npz, then results.json, which names them and episodes.npz, where it is, with checksums.

    Raises:
      OSError: A file cannot be written.
    """
    write_arrays(directory / CURVES, curves)
    write_arrays(directory / EMBEDDINGS_FILE, embeddings)
    covered = {CURVES: arrays_checksum(curves), EMBEDDINGS_FILE: arrays_checksum(embeddings)}
    if (directory / EPISODES).exists():
        covered[EPISODES] = arrays_checksum(read_arrays(directory / EPISODES))
    document = encode(results)
    if results.final_tests is None:
        del document["final_tests"]
    write_json(directory / RESULTS, sealed({"schema": SCHEMA, **document, "arrays": covered}))


def run_curves(plan: Plan, state: RunState) -> dict[str, np.ndarray]:
    """Return everything recorded, `ARM/QUANTITY` `[S, E, ...]`, and the x-axes `ARM/budget` `[E]` and `ARM/taken` `[S, E]`."""
    stacked = {arm: own.stacked() for arm, own in state.curves.items()}
    probe = probe_steps(plan, stacked[plan.probe_arm]["steps"])
    curves = {f"{arm}/{name}": array for arm, own in stacked.items() for name, array in own.items()}
    for name, arm in plan.arms.items():
        curves[f"{name}/budget"] = budget_steps(plan, state, arm, stacked[name]["after"].shape[1])
        first = {PROBE: probe, EMBEDDINGS: state.clustered[arm.clustered].embedded.steps}
        charged = [np.asarray(first[part]) for part in arm.charged]
        curves[f"{name}/taken"] = taken_steps(stacked[arm.source]["steps"].sum(2), *charged)
    return curves


def probe_steps(plan: Plan, steps: Float[np.ndarray, "S E A"]) -> Float[np.ndarray, " S"]:
    """Return the steps really taken to train the probe, `[S]`, from those of its arm's epochs `[S, E, A]`."""
    taken: np.ndarray = steps[:, : plan.config.probe_epochs].sum((1, 2))
    return taken


def arm_names(plan: Plan) -> tuple[str, ...]:
    """Return the arms in the order of the result files: the paper's three, then a probe of its own and the controls."""
    return (*ARMS, *(name for name in plan.arms if name not in ARMS))


def embedding_arrays(plan: Plan, state: RunState) -> dict[str, np.ndarray]:
    """Return Gram matrices `[S, D, D]`, cluster labels `[S, D]`, task indices `[D]` and guards of the embedded tasks."""
    found = state.clustered["trained"]
    return {
        "gram": np.asarray(found.embedded.gram),
        "labels": np.stack([clusters.labels for clusters in found.clusters]),
        "task": np.asarray(plan.embedded_task),
        "guard": np.asarray(found.embedded.features.guard),
    }


def final_returns(final: FinalTests) -> FinalReturns:
    """Return the tests after the last epoch with their returns as lists."""

    def plain(values: np.ndarray) -> Any:
        return [plain(one) for one in values] if values.ndim else _finite(float(values))

    returns = {arm: plain(values) for arm, values in final.returns.items()}
    return FinalReturns(final.task_set, final.tasks, final.bodies, final.shots, returns)


def make_results(plan: Plan, state: RunState, curves: dict[str, np.ndarray], final: FinalTests | None = None) -> Results:
    """Return the content of results.json: the same seed, machine and command give the same bytes."""
    task_set, left_out = plan.task_set, excluded(plan, state)
    names = tuple(task_set.task_names), tuple(task_set.mode_names)
    bodies = tuple(task_set.mode_names[mode] for mode in task_set.modes)
    nonfinite = {
        name: int(curves[f"{plan.arms[name].source}/nonfinite"].sum() + curves[f"{name}/test_nonfinite"].sum())
        for name in arm_names(plan)
    }
    return Results(
        package=PackageEntry("tamherd-jax", tamherd_jax.__version__),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        device=jax.devices()[0].device_kind,
        physics=plan.env.backend,
        task_set=TaskSetSummary(task_set.name, task_set.version, *names, bodies),
        config=plan.config,
        rows=tuple(return_rows(plan, curves, left_out)),
        excluded=tuple(left_out),
        clusters=tuple(cluster_summary(plan, state, curves, index) for index in range(len(plan.seeds))),
        ledger=ledger(plan, state, curves),
        nonfinite_episodes=nonfinite,
        final_tests=None if final is None else final_returns(final),
    )


def return_rows(plan: Plan, curves: dict[str, np.ndarray], left_out: list[Exclusion]) -> Iterator[ReturnRow]:
    """Yield the statistics of each arm, body and seed, but for a seed's arm that is `left_out`."""
    skipped = {(entry.seed, entry.arm) for entry in left_out}
    for arm in arm_names(plan):
        for mode, body in enumerate(plan.task_set.mode_names):
            tasks = plan.task_set.modes == mode
            after = curves[f"{arm}/after"][:, :, tasks].mean(2)
            before = curves[f"{arm}/before"][:, :, tasks].mean(2)
            statistics: dict[Statistic, np.ndarray] = {
                "best": after.max(1),
                "final": after[:, -1],
                "last5": after[:, -5:].mean(1),
                "before": before[:, -5:].mean(1),
            }
            for index, seed in enumerate(plan.seeds):
                if (int(seed), arm) in skipped:
                    continue
                for name, values in statistics.items():
                    yield ReturnRow(int(seed), arm, body, name, float(values[index]))


def excluded(plan: Plan, state: RunState) -> list[Exclusion]:
    """Return which seed's arm is left out of the statistics, since which epoch and why.

    A learner whose state became non-finite was frozen; its seed's arm does not count. A herd depends on its probe and on its
    clusters besides.
    """
    entries = []
    herds = [arm.name for arm in plan.arms.values() if PROBE in arm.charged]
    for name in arm_names(plan):
        for index, learner, epoch, why in _faults(plan, state, plan.arms[name].source):
            seed = int(plan.seeds[index])
            entries.append(Exclusion(seed, name, learner, epoch, why))
            if name == plan.probe_arm and epoch <= plan.config.probe_epochs:
                entries += [Exclusion(seed, herd, None, epoch, f"its probe: {why}") for herd in herds]
    entries += _nonfinite_returns(plan, state, {(entry.seed, entry.arm) for entry in entries})
    for name in (name for name in arm_names(plan) if plan.arms[name].charged):
        for index, why in sorted(state.clustered[plan.arms[name].clustered].failures.items()):
            entries.append(Exclusion(int(plan.seeds[index]), name, None, 0, why))
    return entries


def _faults(plan: Plan, state: RunState, arm: str) -> Iterator[tuple[int, int, int, str]]:
    """Yield index of the seed, learner, epoch and reason of each learner of an arm that was frozen."""
    faults, names = np.stack(state.curves_of(arm).fault, 1), float_arrays(plan)  # [S, E, A]
    for index, learner in np.argwhere(faults[:, -1] >= 0):
        epoch = int(np.argmax(faults[index, :, learner] >= 0)) + 1
        yield int(index), int(learner), epoch, f"{names[faults[index, -1, learner]]} is not finite"


def _nonfinite_returns(plan: Plan, state: RunState, known: set[tuple[int, str]]) -> list[Exclusion]:
    """Return the exclusions of arms whose meta-test returns are not finite, as an environment may give them."""
    entries = []
    for name in arm_names(plan):
        curves = state.curves_of(name)
        finite = np.stack([np.isfinite(np.asarray(r)).all(1) for r in map(np.add, curves.before, curves.after)], 1)
        for index in np.flatnonzero(~finite.all(1)):
            if (seed := int(plan.seeds[index])) not in {s for s, arm in known if arm == name}:
                epoch = int(np.argmin(finite[index])) + 1
                entries.append(Exclusion(seed, name, None, epoch, "its returns in the meta-test are not finite"))
    return entries


def _finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def cluster_summary(plan: Plan, state: RunState, curves: dict[str, np.ndarray], index: int) -> ClusterSummary:
    """How one seed's tasks were clustered and how test tasks were assigned."""
    found, task_set, tasks = state.clustered["trained"], plan.task_set, np.asarray(plan.embedded_task)
    clusters = found.clusters[index]
    modes = task_set.modes[tasks]
    share = curves["herd/share"][index, :, :, : clusters.k]  # [E, N, K], of the repeats of a meta-test
    margin = float(curves["herd/margin"][index].mean())
    repeats = plan.config.test_repeats
    counts = {
        name: [int(np.sum((tasks == n) & (clusters.labels == k))) for k in range(clusters.k)]
        for n, name in enumerate(task_set.task_names)
    }
    # A cluster stands for the body of most of its tasks; assignment is right where that is the test task's.
    majority = majority_modes(clusters.labels, modes)
    return ClusterSummary(
        seed=int(plan.seeds[index]),
        clusters=clusters.k,
        failure=found.failures.get(index),
        tasks_in_cluster=counts,
        adjusted_rand_index_bodies=clustering.adjusted_rand(clusters.labels, modes),
        purity_bodies=clustering.purity(clusters.labels, modes),
        adjusted_rand_index_tasks=clustering.adjusted_rand(clusters.labels, tasks),
        silhouette={str(k): _finite(v) for k, v in clusters.scores["silhouette"].items()},
        scores={name: {str(k): _finite(v) for k, v in values.items()} for name, values in clusters.scores.items()},
        reward_guard_rate=float(np.mean(found.embedded.features.guard[index])),
        assignment_accuracy=float(np.mean(np.sum(share * (majority == task_set.modes[:, None]), -1))),
        assignment_confidence=_finite(curves["herd/confidence"][index].mean()),
        assignment_margin=_finite(margin),  # there is none between one cluster and itself
        assigned_to={
            name: [round(float(times) * repeats) for times in share[:, n].sum(0)] for n, name in enumerate(task_set.task_names)
        },
    )


def mean_learners(plan: Plan, state: RunState, arm: Arm) -> int:
    """Return how many learners an arm trains a seed; where seeds differ, their mean, rounded."""
    return round(float(member_counts(plan, state, arm.clustered).mean())) if arm.grouped else arm.size


def ledger(plan: Plan, state: RunState, curves: dict[str, np.ndarray]) -> Ledger:
    """Return environment steps per seed: the budget of each part, and what was really taken."""
    budget = plan.budget
    return Ledger(
        unit="environment step = one action",
        budget={
            "probe": budget.probe,
            "embedding": budget.embedding,
            **{arm: int(curves[f"{arm}/budget"][-1]) for arm in arm_names(plan)},
        },
        taken={
            "probe": probe_steps(plan, curves[f"{plan.probe_arm}/steps"]).astype(int).tolist(),
            "embedding": np.asarray(state.clustered["trained"].embedded.steps).astype(int).tolist(),
            **{arm: curves[f"{arm}/taken"][:, -1].astype(int).tolist() for arm in arm_names(plan)},
        },
        meta_updates={
            name: curves[f"{name}/steps"].shape[1]
            * mean_learners(plan, state, arm)
            * getattr(arm.learner, "updates_per_epoch", 1)
            for name, arm in plan.arms.items()
            if arm.trains
        },
    )
