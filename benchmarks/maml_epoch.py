"""One MAML epoch and its parts: 20 tasks x 10 episodes x 100 steps before adaptation and as many after, then the update.

The whole epoch is timed on ML2, where walkers fall and their steps stop counting, and on cheetahs alone, all of whose 40,000
steps count, which is what garage's quoted figure is of.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Mode, Program, Quoted
from benchmarks.quoted import GARAGE
from tamherd_jax.envs import Locomotion, ml2, systematic_resample, take_tasks
from tamherd_jax.maml import MAML, MAMLConfig
from tamherd_jax.maml.over_tasks import map_tasks

ML2_WEIGHTS, CHEETAHS = (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0)


class Epoch:
    """A learner and the data of one epoch, as its parts want them."""

    def __init__(self, physics: str, draws: int, config: MAMLConfig):
        self.learner = MAML(Locomotion(physics, 10.0), draws, config)
        self.draws, self.episodes = draws, config.episodes_per_task
        self.tasks = ml2().tasks
        self.state = jax.jit(self.learner.init)(jax.random.key(0))

    def whole(self, key: jax.Array, state: Any, weights: jax.Array) -> Any:
        """Run a whole epoch; return the new state and the environment steps taken."""
        state, metrics = self.learner.train_epoch(key, state, self.tasks, weights)
        return state, metrics.steps

    def sample(self, key: jax.Array, params: Any) -> Any:
        """Return episodes `[M, R, T, ...]`, before or after adaptation."""
        drawn = take_tasks(self.tasks, systematic_resample(key, jnp.ones(4), self.draws))
        collect = jax.vmap(lambda k, task: self.learner._collect(k, params, task, self.episodes))
        return collect(jax.random.split(key, self.draws), drawn)

    def adapt(self, state: Any, episodes: Any) -> Any:
        """Baseline, advantages and inner step of every task."""

        def one(episodes: Any) -> Any:
            batch = self.learner._batch(state.params, state.value_params, episodes)
            return batch, self.learner._adapt(state.params, batch)

        return map_tasks(one, episodes)

    def update(self, params: Any, support: Any, query: Any) -> Any:
        """The trust-region step."""
        return self.learner._outer_step(params, support, query)

    @functools.cached_property
    def data(self) -> tuple[Any, Any]:
        """Return episodes, before or after adaptation, without and with advantages."""
        episodes = jax.jit(self.sample)(jax.random.key(1), self.state.params)
        return episodes, jax.jit(self.adapt)(self.state, episodes)[0]


def whole_epoch(epoch: Epoch, weights: Sequence[float]) -> Program:
    """The epoch on tasks in proportion to `weights`."""
    return Program(epoch.whole, (jax.random.key(2), epoch.state, jnp.asarray(weights)))


def cases(mode: Mode) -> list[Case | Quoted]:
    """Return whole epochs for each backend, and their parts for the default one."""
    backends = mode.pick(("mujoco",), ("planar", "mujoco"), ("planar", "mujoco"), ("planar",))
    draws = mode.pick(4, 20, 20)
    config = mode.pick(MAMLConfig(episodes_per_task=2, horizon=5), MAMLConfig(), MAMLConfig())
    make = functools.cache(lambda physics: Epoch(physics, draws, config))
    found: list[Case | Quoted] = []
    for name in backends:
        for label, weights in (("ML2", ML2_WEIGHTS), ("cheetahs", CHEETAHS)):
            job = functools.partial(lambda name, weights: whole_epoch(make(name), weights), name, weights)
            theirs = GARAGE[0] if weights is CHEETAHS else None
            case = Case(f"whole epoch, {name}, {label}", job, "environment step", lambda out: float(out[1]), against=theirs)
            found.append(case)
    first = backends[0]

    def sampling() -> Program:
        return Program(make(first).sample, (jax.random.key(1), make(first).state.params))

    def adaptation() -> Program:
        return Program(make(first).adapt, (make(first).state, make(first).data[0]))

    def update() -> Program:
        return Program(make(first).update, (make(first).state.params, make(first).data[1], make(first).data[1]))

    return [
        *found,
        Case(f"sampling, one side of two, {first}", sampling, "environment step", lambda out: float(out.valid.sum())),
        Case("adaptation, one side of two: baseline, advantages, inner step", adaptation, "epoch", 1.0),
        Case("update: trust-region step", update, "epoch", 1.0),
        *(GARAGE if mode.name != "smoke" else GARAGE[:1]),
    ]
