"""Embedding, clustering and assigning tasks with trained probes, in several ways from the same episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from tamherd_jax.envs.tasks import TaskSet
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.herd import clustering
from tamherd_jax.herd.algorithm import probe_tasks, stratified_tasks
from tamherd_jax.herd.diagnostics import describe_assignment, describe_clusters
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig, Features
from tamherd_jax.types import MetaLearner, PyTree


@struct.dataclass
class EmbeddedProbe:
    """What clustering D training tasks and assigning B test probes needs of one embedding.

    Attributes:
      gram: `[D, D]` inner products among the training tasks.
      cross: `[B, D]` of the test probes with the training tasks.
      norms: `[B]` squared norms of the test probes.
      guard: `[D]` whether the reward guard fired.
    """

    gram: jax.Array
    cross: jax.Array
    norms: jax.Array
    guard: jax.Array


def embed_with_probe(
    learner: MetaLearner,
    config: ExperimentConfig,
    embeddings: Mapping[str, EmbeddingConfig],
    tasks: PyTree,
    test_tasks: PyTree,
    key: jax.Array,
    probe: PyTree,
) -> dict[str, EmbeddedProbe]:
    """Roll one probe in training tasks and test tasks, and embed both in every way from the same episodes.

    Args:
      learner: the probe's meta-learner.
      config: for the numbers of probe episodes in training and test.
      embeddings: by name.
      tasks: the D training tasks, leaves `[D, ...]`.
      test_tasks: leaves `[B, ...]`.
      key: consumed.
      probe: the probe's state.
    """
    training_key, test_key = jax.random.split(key, 2)
    all_ways = {name: Embedding(embedding) for name, embedding in embeddings.items()}
    training, _ = probe_tasks(learner, all_ways, training_key, probe, tasks, config.embedding_episodes)
    probes, _ = probe_tasks(learner, all_ways, test_key, probe, test_tasks, config.probe_test_episodes)
    return {name: _embedded(embedding, training[name], probes[name]) for name, embedding in all_ways.items()}


def _embedded(embedding: Embedding, training: Features, probes: Features) -> EmbeddedProbe:
    return EmbeddedProbe(
        embedding.self_gram(training), embedding.gram(probes, training), embedding.norms(probes), training.guard
    )


def training_and_test_tasks(
    task_set: TaskSet, training: int, probes: int
) -> tuple[tuple[PyTree, np.ndarray], tuple[PyTree, np.ndarray]]:
    """Return tasks and their indices, in equal shares: D training tasks `[D]` and those of B test probes `[B]`."""
    pairs = (stratified_tasks(task_set.tasks, count) for count in (training, probes))
    first, second = ((tasks, np.asarray(index)) for tasks, index in pairs)
    return first, second


def analyse(
    embedded: EmbeddedProbe, config: clustering.ClusteringConfig, task_set: TaskSet, training: PyTree, probes: PyTree, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Cluster one seed's training tasks, assign its test probes and describe both.

    Args:
      embedded: of one seed.
      config: how to cluster.
      task_set: the tasks.
      training: `[D]` which task of the set each is.
      probes: `[B]` task of each test probe.
      seed: of what is random in clustering.

    Returns:
      labels `[D]`, and the description as plain JSON.

    Raises:
      ValueError: the embeddings are not finite.
    """
    found = clustering.cluster(np.asarray(embedded.gram), config, seed)
    gram, cross, norms = (np.asarray(leaf) for leaf in (embedded.gram, embedded.cross, embedded.norms))
    assigned = clustering.assign(gram, found.labels, cross, norms)
    test = describe_assignment(assigned, found.labels, training, task_set.modes, probes)
    guard = {"reward_guard_rate": float(np.mean(embedded.guard))}
    return found.labels, describe_clusters(found, training, task_set.modes) | guard | {"test": test}
