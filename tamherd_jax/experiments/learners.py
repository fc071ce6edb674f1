"""The meta-learners that an experiment's configuration names: the only place that knows one algorithm from another."""

from __future__ import annotations

import dataclasses
from typing import Any

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.herd.information import information_reward
from tamherd_jax.maml.learner import MAML
from tamherd_jax.pearl import PEARL


def make_learner(config: ExperimentConfig, env: Any, tasks: int, learners: int = 1) -> Any:
    """A `MetaLearner` that draws its share of an epoch's `draws_per_task N` task draws.

    Args:
      config: the experiment.
      env: a `TaskEnv`.
      tasks: N.
      learners: how many share the draws: 1 for the single learner, K for the members of a herd.
    """
    draws = max(1, config.draws_per_task * tasks // learners)
    if config.algorithm == "pearl":
        return PEARL(env, draws, tasks, dataclasses.replace(config.pearl, replay_capacity=replay_capacity(config, tasks)))
    return MAML(env, draws, config.maml)


def make_probe_learner(config: ExperimentConfig, env: Any, tasks: int) -> Any:
    """The learner of the probe, of whatever kind, with the single learner's task draws; arguments as in `make_learner`."""
    single = make_learner(config, env, tasks)
    if config.probe == "meta":
        return single
    plain = dataclasses.replace(config.maml, inner_steps=0)
    return MAML(env, single.meta_batch_size, plain, information_reward if config.probe == "discriminative" else None)


def replay_capacity(config: ExperimentConfig, tasks: int) -> int:
    """Transitions of a task that a PEARL learner needs room for: the configured ones, or fewer in a run that ends before.

    The bound is a learner all of whose draws fall on one task.
    """
    c = config.pearl
    epochs, draws = max(config.single_epochs, config.member_epochs), max(1, config.draws_per_task * tasks)
    most = c.initial_steps + epochs * draws * (c.prior_steps + c.posterior_steps)
    return max(c.encoder_capacity, min(c.replay_capacity, most))


def doubled_gradient_steps(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with a PEARL that takes twice as many gradient steps an epoch."""
    return dataclasses.replace(config, pearl=dataclasses.replace(config.pearl, gradient_steps=2 * config.pearl.gradient_steps))
