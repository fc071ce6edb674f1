"""A small experiment of PEARL on the goal mass: all stages, a second an epoch."""

from goal_mass import GoalMass, goal_tasks
from toy import share_programs

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.pearl import PEARLConfig
from tamherd_jax.registry.choices import CONTROLS

TINY = PEARLConfig(
    horizon=5,
    latent_size=2,
    encoder_sizes=(8,),
    hidden_sizes=(8,),
    learning_rate=1e-2,
    initial_steps=15,
    prior_steps=10,
    posterior_steps=10,
    gradient_steps=3,
    meta_batch_size=2,
    batch_size=8,
    context_size=8,
    replay_capacity=300,
)


def pearl_config(**changes):
    settings = {
        "preset": "toy-pearl",
        "algorithm": "pearl",
        "seeds": 2,
        "expected_action_scale": 1.0,
        "probe_epochs": 1,
        "member_epochs": 3,
        "single_epochs": 4,
        "draws_per_task": 2,
        "embedding_tasks": 8,
        "embedding_episodes": 1,
        "probe_test_episodes": 1,
        "explore_episodes": 2,
        "test_episodes": 1,
        "test_repeats": 4,
        "controls": tuple(CONTROLS),
        "pearl": TINY,
    }
    return ExperimentConfig(**(settings | changes))


def pearl_experiment(own_programs=False, **changes):
    """The toy before its first epoch; see `share_programs`."""
    experiment = Experiment(pearl_config(**changes), GoalMass(), goal_tasks())
    return experiment if own_programs else share_programs(experiment)
