"""A small experiment on the point mass: all stages, seconds to compile, milliseconds an epoch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from point_mass import PointMass, point_tasks

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.herd.algorithm import embed_training_tasks, stratified_tasks
from tamherd_jax.herd.artefact import EpisodeCounts, Herd
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig
from tamherd_jax.maml import MAMLConfig, TRPOConfig
from tamherd_jax.types import acting


def toy_config(**changes):
    settings = {
        "preset": "toy",
        "seeds": 2,
        "probe_epochs": 3,
        "member_epochs": 5,
        "single_epochs": 8,
        "draws_per_task": 1,
        "embedding_tasks": 8,
        "embedding_episodes": 6,
        "probe_test_episodes": 2,
        "explore_episodes": 4,
        "test_episodes": 2,
        "maml": MAMLConfig(episodes_per_task=4, horizon=5, hidden_sizes=(8,), trpo=TRPOConfig(max_kl=0.05)),
    }
    return ExperimentConfig(**(settings | changes))


def toy_experiment(config=None, seeds=2, own_programs=False, **options):
    """The toy before its first epoch; see `share_programs`."""
    config = toy_config(seeds=seeds) if config is None else config
    experiment = Experiment(config, PointMass(), point_tasks(), **options)
    return experiment if own_programs else share_programs(experiment, **options)


_FIRST = {}


def share_programs(experiment, **options):
    """Give an experiment the plan and the compiled programs of the first like it; not one whose learner a test changes."""
    config = dataclasses.replace(experiment.config, stop_at=None)  # which no program knows
    how = jax.config.jax_enable_x64, jax.config.read("jax_disable_most_optimizations")
    first = _FIRST.setdefault(repr((config, experiment.plan.task_set.name, options, how)), experiment)
    experiment.plan = dataclasses.replace(first.plan, config=experiment.config)
    experiment.programs = first.programs
    return experiment


def untrained_herd(learner, task_set, kept=acting):
    """A herd of two fresh members on clusters by hand, without a run."""
    state = jax.jit(learner.init)(jax.random.key(0))
    state = kept(learner, state)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf.astype(leaf.dtype)]).astype(leaf.dtype), state)
    embedding = Embedding(EmbeddingConfig())
    tasks, _ = stratified_tasks(task_set.tasks, 4)
    embed = jax.jit(lambda key: embed_training_tasks(learner, embedding, key, state, tasks, 1))
    counts = EpisodeCounts(embedding=1, probe=1, explore=1, test=2)
    return Herd(learner, task_set, state, members, embedding, embed(jax.random.key(1)), np.array([0, 0, 1, 1]), counts, 0)
