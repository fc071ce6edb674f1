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
from tamherd_jax.herd.algorithm import embed_experience, stratified_tasks
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
    keys = jax.random.split(key, 2)

    def features(key: jax.Array, tasks: PyTree, episodes: int) -> dict[str, Features]:
        def one(key: jax.Array, task: PyTree) -> dict[str, Features]:
            rollout_key, score_key = jax.random.split(key)
            policy, experience = learner.probe(rollout_key, probe, task, episodes)
            return {
                name: embed_experience(learner, Embedding(embedding), score_key, probe, policy, experience)
                for name, embedding in embeddings.items()
            }

        return jax.vmap(one)(jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0]), tasks)

    training = features(keys[0], tasks, config.embedding_episodes)
    probes = features(keys[1], test_tasks, config.probe_test_episodes)
    return {name: _embedded(Embedding(embeddings[name]), training[name], probes[name]) for name in embeddings}


def _embedded(embedding: Any, training: Features, probes: Features) -> EmbeddedProbe:
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
