"""A finished run as reports see it: its files, read once, and the few questions that every table and figure asks of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from tamherd_jax.codec import read_arrays
from tamherd_jax.experiments.results import Results, read_run
from tamherd_jax.physics.bodies import FRAME_SKIP, TIMESTEP
from tamherd_jax.registry.algorithms import Algorithm, get_algorithm


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a finished run.

    Attributes:
      directory: where they lie.
      results: what `results.json` holds.
      curves: `curves.npz`, `arm/quantity` to `[S, E, ...]`.
      embeddings: `embeddings.npz`.
      episodes: `episodes.npz`, recorded episodes; None where the run left none.
      log: lines of `log.jsonl`; empty where there is none.
    """

    directory: Path
    results: Results
    curves: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    episodes: dict[str, np.ndarray] | None
    log: tuple[dict[str, Any], ...]


def read_run_files(directory: Path) -> RunFiles:
    """All files of a finished run.

    Raises:
      ValueError: if the directory holds none, or a file is damaged or of another version, in one line.
    """
    results, curves, embeddings = read_run(directory)
    episodes, log = read_episodes(directory), read_log(directory)
    return RunFiles(directory, results, curves, embeddings, episodes, log)


def read_episodes(directory: Path) -> dict[str, np.ndarray] | None:
    """The recorded episodes, None where there are none.

    Raises:
      ValueError: the file is damaged.
    """
    path = directory / "episodes.npz"
    if not path.exists():
        return None
    try:
        episodes = read_arrays(path)
        check_episodes(episodes)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; remove it to report without an animation") from error
    # Files from before a step's seconds were recorded have the bodies' own.
    return episodes if "dt" in episodes else episodes | {"dt": np.multiply(FRAME_SKIP, TIMESTEP)[episodes["body"]]}


def check_episodes(episodes: dict[str, np.ndarray]) -> None:
    """Check that recorded episodes have the parts that `experiments.recording.record` names, of the same tasks.

    Raises:
      ValueError: They have not.
    """
    parts = ("q", "rewards", "valid", "member", "body", "tasks")
    if missing := [name for name in (*parts, "seed") if name not in episodes]:
        raise ValueError(f"it lacks {missing[0]}")
    q, rewards, body = episodes["q"], episodes["rewards"], episodes["body"]
    counts = {len(episodes[name]) if episodes[name].ndim else -1 for name in parts}
    fits = len(counts) == 1 and q.ndim == 4 and rewards.shape == episodes["valid"].shape == (len(q), 2, q.shape[2] - 1)
    known = len(FRAME_SKIP) if "dt" not in episodes else np.inf
    if not fits or not np.issubdtype(body.dtype, np.integer) or not ((body >= 0) & (body < known)).all():
        raise ValueError("its parts do not belong together")


def read_log(directory: Path) -> tuple[dict[str, Any], ...]:
    """The lines of log.jsonl that are whole; a run that was killed may have left half of one."""
    records = []
    path = directory / "log.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        numbers = ("epoch", "seconds", "steps")
        whole = isinstance(record, dict) and isinstance(record.get("stage"), str)
        if whole and all(isinstance(record.get(name), int | float) for name in numbers):
            records.append(record)
    return tuple(records)


def own_probe(results: Results) -> str | None:
    """The arm that is the herd's probe, where that is not the single learner stopped early."""
    return results.config.probe if results.config.probe in results.arms else None


def algorithm_of(results: Results) -> Algorithm:
    """Return the registry entry of a run's algorithm."""
    return get_algorithm(results.config.algorithm)


def arm_title(results: Results, arm: str) -> str:
    """Heading of an arm, for instance `Herd of MAMLs`."""
    titles = {"oracle": "Oracle", "single": "Single", "herd": algorithm_of(results).herd_title}
    return titles.get(arm, arm.replace("_", " ").replace("-", " ").capitalize())


def left_out(results: Results, arm: str) -> list[int]:
    """Seeds of an arm that are excluded from the statistics, in order."""
    return sorted({entry.seed for entry in results.excluded if entry.arm == arm})


def included(results: Results, arm: str) -> np.ndarray:
    """`[S]` bool, the seeds that count for an arm."""
    return ~np.isin(results.seeds, left_out(results, arm))


def seed_values(results: Results, arm: str, body: str, statistic: str) -> dict[int, float]:
    """One statistic of an arm on a body by seed; seeds left out are missing."""
    wanted = (arm, body, statistic)
    return {row.seed: row.value for row in results.rows if (row.arm, row.body, row.statistic) == wanted}


def tasks_of(results: Results, body: str | None) -> np.ndarray:
    """`[N]` bool, the tasks of a body; all of them for None."""
    bodies = np.array(results.task_set.body_of_task)
    return np.ones(len(bodies), bool) if body is None else bodies == body


def arm_curve(
    results: Results, curves: dict[str, np.ndarray], arm: str, body: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the budget `[E]` and mean return after adaptation `[S', E]` of the seeds that count, for a body or all tasks.

    The herd's curve is its probe's while that trains, by default the single learner's; the oracle is not charged for a probe.
    """
    tasks, rows = tasks_of(results, body), included(results, arm)
    returns = curves[f"{arm}/after"][:, :, tasks].mean(2)
    steps = curves[f"{arm}/budget"]
    if arm == "herd":
        probe = results.config.probe_epochs
        source = own_probe(results) or "single"
        returns = np.concatenate([curves[f"{source}/after"][:, :probe, tasks].mean(2), returns], 1)
        steps = np.concatenate([curves[f"{source}/budget"][:probe], steps])
    return steps, returns[rows]
