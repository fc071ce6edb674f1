"""How well clusters and assignments agree with the bodies and tasks, which clustering never sees, as plain JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from tamherd_jax.herd.clustering import Assignment, Clusters, adjusted_rand, confusion_matrix, purity


def describe_clusters(clusters: Clusters, tasks: np.ndarray, modes: np.ndarray) -> dict[str, Any]:
    """Describe a partition of D embedded training tasks against the truth.

    Args:
      clusters: of the training tasks.
      tasks: `[D]` which task of the set each is.
      modes: `[N]` body of each task.

    Returns:
      `clusters` K, `scores` by criterion and K, adjusted Rand index and purity against bodies and tasks, and
      `tasks_in_cluster` `[N, K]` counts.
    """
    bodies = modes[tasks]
    return {
        "clusters": clusters.k,
        "scores": {name: {str(k): float(v) for k, v in values.items()} for name, values in clusters.scores.items()},
        "adjusted_rand_index_bodies": adjusted_rand(clusters.labels, bodies),
        "adjusted_rand_index_tasks": adjusted_rand(clusters.labels, tasks),
        "purity_bodies": purity(clusters.labels, bodies),
        "purity_tasks": purity(clusters.labels, tasks),
        "tasks_in_cluster": confusion_matrix(clusters.labels, tasks).tolist(),
    }


def majority_modes(labels: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Return `[K]` the body of most training tasks of each cluster, which it stands for; labels and modes are `[D]`."""
    return np.array([np.bincount(modes[labels == k]).argmax() for k in range(labels.max() + 1)])


def describe_assignment(
    assignment: Assignment, labels: np.ndarray, tasks: np.ndarray, modes: np.ndarray, test_tasks: np.ndarray
) -> dict[str, Any]:
    """Test-time assignment of B probes against the truth; right is a cluster that stands for the probe's body.

    Args:
      assignment: leaves `[B, ...]`.
      labels: `[D]` clusters of the training tasks.
      tasks: `[D]` which task of the set each is.
      modes: `[N]` body of each task.
      test_tasks: `[B]` task of each probe.

    Returns:
      `accuracy`; mean and least confidence and margin (see `Assignment`; a margin is None where there is one cluster);
      `assigned_to` `[N, K]` counts.
    """
    nearest, confidence, margin = (np.asarray(getattr(assignment, name)) for name in ("nearest", "confidence", "margin"))
    counts = np.zeros((len(modes), labels.max() + 1), int)
    np.add.at(counts, (test_tasks, nearest), 1)
    right = majority_modes(labels, modes[tasks])[nearest] == modes[test_tasks]
    return {
        "accuracy": float(right.mean()),
        "confidence_mean": float(confidence.mean()),
        "confidence_least": float(confidence.min()),
        "margin_mean": float(margin.mean()) if np.isfinite(margin).all() else None,
        "margin_least": float(margin.min()) if np.isfinite(margin).all() else None,
        "assigned_to": counts.tolist(),
    }
