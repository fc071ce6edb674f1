"""PEARL: off-policy meta-reinforcement learning with a belief about the task."""

from tamherd_jax.pearl.config import PEARLConfig
from tamherd_jax.pearl.learner import PEARL, PEARLPolicy, PEARLState
from tamherd_jax.pearl.posterior import kl_from_prior, product_of_gaussians
from tamherd_jax.pearl.replay import ReplayBuffer, Transition
from tamherd_jax.pearl.update import ContextualSAC, Networks, ReplayBatch, TrainState

__all__ = [
    "PEARL",
    "ContextualSAC",
    "Networks",
    "PEARLConfig",
    "PEARLPolicy",
    "PEARLState",
    "ReplayBatch",
    "ReplayBuffer",
    "TrainState",
    "Transition",
    "kl_from_prior",
    "product_of_gaussians",
]
