"""The trained herds of a finished experiment, as artefacts."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from tamherd_jax.experiments.results import excluded
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.herd.artefact import EpisodeCounts, Herd
from tamherd_jax.types import ReplayLearner


def trained_herd(experiment: Experiment, index: int) -> Herd:
    """The herd of one seed, by its position in `experiment.seeds`; the experiment must have trained it."""
    c, learner = experiment.config, experiment.single
    parts = {"probe": experiment.states["probe"], "members": experiment.states["herd"]}
    if isinstance(learner, ReplayLearner):  # a trained herd acts, it does not train
        parts = {name: learner.snapshot(state) for name, state in parts.items()}
    parts["members"] = jax.tree.map(lambda leaf: leaf[:, : experiment.member_counts()[index]], parts["members"])
    parts["embedded"] = experiment.embedded
    return Herd(
        learner=learner,
        task_set=experiment.task_set,
        embedding=experiment.embedding,
        labels=np.asarray(experiment.clusters[index].labels),
        episodes=EpisodeCounts(
            embedding=c.embedding_episodes,
            probe=c.probe_test_episodes,
            explore=c.explore_episodes - c.probe_test_episodes,
            test=c.test_episodes,
        ),
        seed=int(experiment.seeds[index]),
        **jax.tree.map(lambda leaf: leaf[index], parts),
    )


def write_herds(experiment: Experiment, directory: Path) -> None:
    """Save every seed's herd to `directory/herd/seed-N`, but those that are excluded from the results."""
    for index in sound_herds(experiment):
        trained_herd(experiment, index).save(directory / "herd" / f"seed-{experiment.seeds[index]}")


def sound_herds(experiment: Experiment) -> list[int]:
    """Positions in `experiment.seeds` of the seeds whose herd counts in the results."""
    unsound = {entry["seed"] for entry in excluded(experiment) if entry["arm"] == "herd"}
    return [index for index, seed in enumerate(experiment.seeds) if int(seed) not in unsound]
