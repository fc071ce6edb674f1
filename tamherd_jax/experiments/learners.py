"""The learners of an experiment, built by its algorithm's registry entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.herd.information import information_reward
from tamherd_jax.registry.algorithms import Share, get_algorithm
from tamherd_jax.types import MetaLearner, ReplayLearner, TaskEnv, TunableLearner

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Learner = TypeVar("Learner", bound=MetaLearner | ReplayLearner)
Config = TypeVar("Config", bound="DataclassInstance")


def training_share(config: ExperimentConfig, tasks: int, learners: int = 1) -> Share:
    """Return what one of `learners` that share an epoch's `draws_per_task N` tasks is asked for."""
    every = max(1, config.draws_per_task * tasks)
    return Share(
        meta_batch_size=max(1, config.draws_per_task * tasks // learners),
        tasks=tasks,
        epochs=max(config.single_epochs, config.member_epochs),
        largest_meta_batch=every,
    )


def make_learner(config: ExperimentConfig, env: TaskEnv, tasks: int, learners: int = 1) -> MetaLearner:
    """Build a `MetaLearner` that samples its share of an epoch's `draws_per_task N` tasks.

    Args:
      config: the experiment.
      env: the environment.
      tasks: N.
      learners: number of learners that share the tasks: 1 for the single learner, K for the members of a herd.
    """
    return get_algorithm(config.algorithm).build(env, config.settings, training_share(config, tasks, learners))


def make_probe_learner(config: ExperimentConfig, env: TaskEnv, tasks: int) -> MetaLearner:
    """Build the learner of the probe, of whatever kind, with the single learner's tasks; arguments as in `make_learner`."""
    plain = get_algorithm(config.algorithm).build_plain
    if config.probe == "meta" or plain is None:
        return make_learner(config, env, tasks)
    reward = information_reward if config.probe == "discriminative" else None
    return plain(env, config.settings, training_share(config, tasks), reward)


def tuned(learner: Learner, settings: Mapping[str, Any]) -> Learner:
    """Return a learner with some numbers of its configuration replaced, which may be traced; itself where there are none.

    Args:
      learner: The learner.
      settings: By dotted name within the learner's configuration, such as `trpo.max_kl`.

    Raises:
      ValueError: The learner takes no other settings.
    """
    if not settings:
        return learner
    if not isinstance(learner, TunableLearner):
        raise ValueError(f"{type(learner).__name__} has no with_config: its settings cannot be data")
    changed: Learner = learner.with_config(with_numbers(learner.config, settings))
    return changed


def with_numbers(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a nested configuration with fields replaced by dotted name."""
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        part = with_numbers(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: part})
    return config


def number_names(config: object) -> list[str]:
    """Return the dotted names of the numbers of a configuration that may be data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(config)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def doubled_gradient_steps(config: ExperimentConfig) -> ExperimentConfig:
    """Return the same experiment with twice as many gradient steps per epoch."""
    settings = dataclasses.replace(config.settings, gradient_steps=2 * config.settings.gradient_steps)
    return dataclasses.replace(config, **{config.algorithm: settings})
