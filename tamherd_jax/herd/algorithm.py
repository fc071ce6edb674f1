"""Algorithms 1 and 2 of the paper, written once against the `MetaLearner` protocol.

All functions are pure and concern one seed; callers batch them over seeds. K members, N tasks, B test tasks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Real

from tamherd_jax.envs.episodes import collect_policy_episodes
from tamherd_jax.envs.tasks import take_tasks
from tamherd_jax.herd.clustering import Assignment, nearest_centroid
from tamherd_jax.herd.embeddings import Embedding, Features, latent_features
from tamherd_jax.types import Episodes, LatentLearner, MetaLearner, PyTree


@struct.dataclass
class EmbeddedTasks:
    """Training tasks as the probe saw them.

    Attributes:
      features: leaves `[D, ...]`, what inner products with further embeddings need.
      gram: `[D, D]` inner products among them.
      steps: `[]` environment steps really taken to embed them.
    """

    features: Features
    gram: jax.Array
    steps: jax.Array


@struct.dataclass
class TestResult:
    """Meta-test of B tasks.

    Attributes:
      before: `[B]` mean undiscounted return of the exploration episodes, that is before adaptation.
      after: `[B]` mean undiscounted return of the test episodes after adaptation.
      steps: `[]` environment steps really taken to explore (the test episodes are not part of the budget).
      nonfinite: `[]` episodes ended because their state stopped being finite.
    """

    before: jax.Array
    after: jax.Array
    steps: jax.Array
    nonfinite: jax.Array


def probe_tasks(
    learner: MetaLearner, embedding: PyTree, key: jax.Array, probe: PyTree, tasks: PyTree, episodes: int
) -> tuple[PyTree, jax.Array]:
    """Embed tasks from the probe's experience in each (Algorithm 1 line 2; Algorithm 2 line 1).

    Args:
      learner: the probe's meta-learner.
      embedding: the task embedding; or a tree of several, which embed the same episodes.
      key: consumed.
      probe: the probe's state.
      tasks: leaves `[D, ...]`.
      episodes: static number of probe episodes a task.

    Returns:
      `Features` with leaves `[D, ...]`, in such a tree where `embedding` is one, and the environment steps taken, `[]`.
    """

    def embed(key: jax.Array, task: PyTree) -> tuple[PyTree, jax.Array]:
        rollout_key, score_key = jax.random.split(key)
        policy, experience = learner.probe(rollout_key, probe, task, episodes)

        def by(one: Embedding) -> Features:
            return embed_experience(learner, one, score_key, probe, policy, experience)

        return jax.tree.map(by, embedding), jnp.sum(experience.steps)

    count = jax.tree.leaves(tasks)[0].shape[0]
    features, steps = jax.vmap(embed)(jax.random.split(key, count), tasks)
    return features, jnp.sum(steps)


def embed_experience(
    learner: MetaLearner, embedding: Embedding, key: jax.Array, probe: PyTree, policy: PyTree, experience: Episodes
) -> Features:
    """Features of ONE task from what `learner.probe` returned; a latent's are the posterior that the probe infers.

    Args:
      learner: the probe's meta-learner.
      embedding: the task embedding.
      key: consumed.
      probe: the probe's state.
      policy, experience: of `learner.probe`, leaves `[E, T, ...]`.

    Raises:
      ValueError: the embedding is of a latent and the learner has none.
    """
    kind = embedding.config.kind
    if kind == "latent":
        if not isinstance(learner, LatentLearner):
            raise ValueError("embedding kind 'latent' needs a meta-learner that infers one (a `LatentLearner`)")
        return latent_features(*learner.infer(probe, experience))
    if kind == "transition" and isinstance(learner, LatentLearner):
        experience = learner.observed(experience)
    return embedding.features(learner.distribution, policy, experience, key)


def embed_training_tasks(
    learner: MetaLearner, embedding: Embedding, key: jax.Array, probe: PyTree, tasks: PyTree, episodes: int
) -> EmbeddedTasks:
    """`probe_tasks` on the training tasks, and their Gram matrix."""
    features, steps = probe_tasks(learner, embedding, key, probe, tasks, episodes)
    return EmbeddedTasks(features=features, gram=embedding.self_gram(features), steps=steps)


def assign_tasks(
    learner: MetaLearner,
    embedding: Embedding,
    key: jax.Array,
    probe: PyTree,
    embedded: EmbeddedTasks,
    membership: Float[Array, "D K"],
    tasks: PyTree,
    episodes: int,
) -> tuple[Assignment, Real[Array, ""]]:
    """Probe test tasks and assign each to the nearest centroid (Algorithm 2 lines 1 and 2).

    Args:
      membership: `[D, K]` one-hot clusters of the training tasks.
      tasks: the test tasks, leaves `[B, ...]`.
      episodes: static number of probe episodes a task.

    Returns:
      The assignment (leaves `[B, ...]`) and the environment steps taken, `[]`.
    """
    features, steps = probe_tasks(learner, embedding, key, probe, tasks, episodes)
    cross = embedding.gram(features, embedded.features)
    return nearest_centroid(embedded.gram, membership, cross, embedding.norms(features)), steps


def meta_test(
    learner: MetaLearner, key: jax.Array, states: PyTree, member: jax.Array, tasks: PyTree, explore: int, test: int
) -> TestResult:
    """Adapt the assigned member to each test task and measure it (Algorithm 2 line 3).

    Args:
      states: of the K learners to choose from, leaves `[K, ...]`.
      member: `[B]` the learner that each task is given to.
      tasks: leaves `[B, ...]`.
      explore: static number of exploration episodes the learner adapts to; with 0 it stays as it is, and `before` is the
        return of one more episode.
      test: static number of test episodes.
    """

    def one(key: jax.Array, member: jax.Array, task: PyTree) -> TestResult:
        explore_key, test_key = jax.random.split(key)
        state = jax.tree.map(lambda leaf: leaf[member], states)
        if explore:
            policy, experience = learner.adapt(explore_key, state, task, explore)
        else:
            policy, experience = learner.probe(explore_key, state, task, 1)
        episodes = collect_policy_episodes(learner, policy, task, test_key, test)
        return TestResult(
            before=jnp.mean(experience.returns),
            after=jnp.mean(episodes.returns),
            steps=jnp.sum(experience.steps),
            nonfinite=jnp.sum(experience.nonfinite) + jnp.sum(episodes.nonfinite),
        )

    result = jax.vmap(one)(jax.random.split(key, member.shape[0]), member, tasks)
    return dataclasses.replace(result, steps=jnp.sum(result.steps), nonfinite=jnp.sum(result.nonfinite))


def stratified_tasks(tasks: PyTree, size: int) -> tuple[PyTree, jax.Array]:
    """`size` training tasks in equal shares of the set's N, and their indices `[size]` (by default 10 of each of ML2's 4)."""
    count = jax.tree.leaves(tasks)[0].shape[0]
    index = jnp.arange(size) * count // size
    return take_tasks(tasks, index), index
