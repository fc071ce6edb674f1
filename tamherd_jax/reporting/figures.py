"""The paper's figures from result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tamherd_jax.herd.clustering import coordinates

_STYLE = {"single": ("tab:blue", "-"), "herd": ("tab:orange", "-"), "oracle": ("black", ":")}
_LABEL = {"single": "single learner", "herd": "herd", "oracle": "oracle"}
_MARKERS = "o^sDvP*X"


def learning_curves(results: dict[str, Any], curves: dict[str, np.ndarray], path: Path) -> None:
    """Figure 2: meta-test return against all environment steps, mean and one standard deviation over seeds; also per body.

    The herd's curve is the single learner's while the probe trains; the oracle is not charged for a probe (spec 4.7).
    """
    modes = np.array([results["task_set"]["bodies"].index(body) for body in results["task_set"]["body_of_task"]])
    panels = [("all tasks", np.ones(len(modes), bool))]
    panels += [(body, modes == mode) for mode, body in enumerate(results["task_set"]["bodies"])]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axis, (title, tasks) in zip(axes, panels, strict=True):
        for arm in ("single", "herd", "oracle"):
            steps, returns = _arm_curve(results, curves, arm, tasks)
            lost = {entry["seed"] for entry in results["excluded"] if entry["arm"] == arm}
            first = results["config"]["first_seed"]
            returns = returns[[index for index in range(len(returns)) if index + first not in lost]]
            if not len(returns):
                continue
            colour, line = _STYLE[arm]
            mean, deviation = returns.mean(0), returns.std(0)
            axis.plot(steps / 1e6, mean, line, color=colour, label=_LABEL[arm])
            axis.fill_between(steps / 1e6, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="million environment steps (budget)")
    axes[0].set_ylabel("return after adaptation")
    axes[0].legend(frameon=False)
    _save(figure, path)


def _arm_curve(results: dict[str, Any], curves: dict[str, np.ndarray], arm: str, tasks: np.ndarray) -> tuple[np.ndarray, Any]:
    """Steps `[E]` and returns `[S, E]` of an arm, the herd's with the probe's epochs in front."""
    returns = curves[f"{arm}/after"][:, :, tasks].mean(2)
    steps = curves[f"{arm}/budget"]
    if arm == "herd":
        probe = results["config"]["probe_epochs"]
        returns = np.concatenate([curves["single/after"][:, :probe, tasks].mean(2), returns], 1)
        steps = np.concatenate([curves["single/budget"][:probe], steps])
    return steps, returns


def embedding_map(results: dict[str, Any], embeddings: dict[str, np.ndarray], path: Path, seeds: int = 4) -> None:
    """First two principal coordinates of the embedded training tasks, a panel a seed: colour the task, marker the cluster."""
    names = results["task_set"]["tasks"]
    clustered = [index for index, row in enumerate(results["clusters"]) if not row["failure"]][:seeds]
    if not clustered:
        return
    figure, axes = plt.subplots(1, len(clustered), figsize=(4.6 * len(clustered), 4.2), layout="constrained", squeeze=False)
    for index, axis in zip(clustered, axes[0], strict=True):
        points = coordinates(embeddings["gram"][index])
        points = np.pad(points, [(0, 0), (0, max(0, 2 - points.shape[1]))])[:, :2]
        for task, name in enumerate(names):
            mine = embeddings["task"] == task
            for k in np.unique(embeddings["labels"][index][mine]):
                inside = mine & (embeddings["labels"][index] == k)
                marker = _MARKERS[k % len(_MARKERS)]
                axis.scatter(*points[inside].T, color=f"C{task}", marker=marker, label=f"{name}, cluster {k}", alpha=0.8)
        summary = results["clusters"][index]
        axis.set(title=f"seed {summary['seed']}: Rand index {summary['adjusted_rand_index_bodies']:.2f}")
        axis.set(xlabel="principal coordinate 1", ylabel="principal coordinate 2")
    axes[0][0].legend(frameon=False, fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
