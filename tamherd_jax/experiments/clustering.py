"""The stage between probe and herd: embed the training tasks and cluster them, each seed's for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float

from tamherd_jax.experiments.keys import role_keys
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, settings_of
from tamherd_jax.experiments.state import ClusteredTasks, RunState, member_counts
from tamherd_jax.experiments.training import untrained_probe
from tamherd_jax.herd.clustering import Clusters, cluster
from tamherd_jax.types import PyTree


def embed_and_cluster(plan: Plan, programs: Programs, probe: PyTree) -> ClusteredTasks:
    """Embed the training tasks with every seed's probe `[S, ...]` and cluster them."""
    embedded = programs.embed(role_keys(plan.seeds, "embed"), probe, settings_of(plan, 1))
    clusters, failures = cluster_seeds(plan, np.asarray(embedded.gram, np.float64))
    return ClusteredTasks(probe, embedded, clusters, failures)


def cluster_seeds(plan: Plan, grams: Float[np.ndarray, "S D D"]) -> tuple[list[Clusters], dict[int, str]]:
    """Cluster every seed's embedded tasks from their inner products `[S, D, D]`.

    Returns:
      The clusters `[S]`, and by index of a seed why its tasks could not be clustered. Equal shares keep the learners of such
      a seed busy, and its herd is not counted.
    """
    clusters, failures = [], {}
    for index, gram in enumerate(grams):
        try:
            clusters.append(cluster(gram, plan.clustering, int(plan.seeds[index])))
        except ValueError as error:
            failures[index], shares = str(error), 1 if plan.grouped else plan.arms["herd"].size
            clusters.append(Clusters(np.arange(len(gram)) % shares, shares, {"silhouette": {}}))
    return clusters, failures


def cluster_for_controls(plan: Plan, programs: Programs, state: RunState) -> None:
    """Cluster the training tasks as the controls have them; this follows from the trained probe, so that no file keeps them."""
    for name in {arm.clustered for arm in plan.arms.values()} - set(state.clustered):
        state.clustered[name] = CLUSTERED[name](plan, programs, state)


def cluster_by_trained_probe(plan: Plan, programs: Programs, state: RunState) -> ClusteredTasks:
    """Return the training tasks as the trained probe sees them."""
    return embed_and_cluster(plan, programs, state.probe)


def cluster_by_untrained_probe(plan: Plan, programs: Programs, state: RunState) -> ClusteredTasks:
    """Return the training tasks as the probe saw and clustered them before its first epoch."""
    return embed_and_cluster(plan, programs, untrained_probe(plan, programs, state))


def cluster_at_random(plan: Plan, programs: Programs, state: RunState) -> ClusteredTasks:
    """Return the trained probe's embeddings, in clusters of equal size that are sampled at random."""
    trained, counts = state.clustered["trained"], member_counts(plan, state)
    shares = np.arange(len(plan.embedded_task)) % counts[:, None]
    labels = np.asarray(jax.vmap(jax.random.permutation)(role_keys(plan.seeds, "random_clusters"), shares))
    clusters = [Clusters(row, int(k), {"silhouette": {}}) for row, k in zip(labels.astype(np.int64), counts, strict=True)]
    return ClusteredTasks(trained.probe, trained.embedded, clusters, {})


CLUSTERED: Mapping[str, Callable[[Plan, Programs, RunState], ClusteredTasks]] = {
    "trained": cluster_by_trained_probe,
    "random": cluster_at_random,
    "untrained": cluster_by_untrained_probe,
}
"""By `Arm.clustered`."""
