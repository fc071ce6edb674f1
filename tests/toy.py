"""A small experiment on the point mass: all stages, seconds to compile, milliseconds an epoch."""

from point_mass import PointMass, point_tasks

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.maml import MAMLConfig, TRPOConfig


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


def toy_experiment(config=None, seeds=2, own_seeds=None, **options):
    config = toy_config(seeds=seeds) if config is None else config
    return Experiment(config, PointMass(), point_tasks(), seeds=own_seeds, **options)
