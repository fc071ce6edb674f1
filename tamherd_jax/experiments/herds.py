"""The trained herds of a finished experiment, as artefacts."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.state import RunState, member_counts
from tamherd_jax.experiments.writing import excluded
from tamherd_jax.herd.artefact import EpisodeCounts, Herd
from tamherd_jax.types import acting


def trained_herd(plan: Plan, state: RunState, index: int) -> Herd:
    """Return the herd of one seed, by its position in `plan.seeds`, once it is trained."""
    found = state.clustered["trained"]
    members = acting(plan.learner, state.learners["herd"])
    members = jax.tree.map(lambda leaf: leaf[:, : member_counts(plan, state)[index]], members)
    parts = {"probe": acting(plan.learner, state.probe), "members": members, "embedded": found.embedded}
    return Herd(
        learner=plan.learner,
        task_set=plan.task_set,
        embedding=plan.embedding,
        labels=np.asarray(found.clusters[index].labels),
        episodes=episode_counts(plan.config),
        seed=int(plan.seeds[index]),
        **jax.tree.map(lambda leaf: leaf[index], parts),
    )


def episode_counts(config: ExperimentConfig) -> EpisodeCounts:
    """Return how many episodes a herd plays; those of the probe in a new task come from its exploration."""
    return EpisodeCounts(
        embedding=config.embedding_episodes,
        probe=config.probe_test_episodes,
        explore=config.explore_episodes - config.probe_test_episodes,
        test=config.test_episodes,
    )


def write_herds(plan: Plan, state: RunState, directory: Path) -> None:
    """Save every seed's herd to `directory/herd/seed-N`, but those that are excluded from the results."""
    for index in finite_herds(plan, state):
        trained_herd(plan, state, index).save(directory / "herd" / f"seed-{plan.seeds[index]}")


def finite_herds(plan: Plan, state: RunState) -> list[int]:
    """Return the positions in `plan.seeds` of the seeds whose herd counts in the results."""
    left_out = {entry.seed for entry in excluded(plan, state) if entry.arm == "herd"}
    return [index for index, seed in enumerate(plan.seeds) if int(seed) not in left_out]
