"""PEARL at the paper's sizes: 4 tasks x 256 transitions, contexts of 256, networks of 300 units, observations of 17 and actions
of 6. The gradient steps take random transitions; the epoch collects its own.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Mode, Program, Quoted
from benchmarks.quoted import OYSTER
from tamherd_jax.envs import Locomotion, ml2
from tamherd_jax.pearl import PEARL, PEARLConfig, PEARLState, Transition, replay

TASKS, DRAWS = 4, 20


class Sizes:
    """What PEARL asks of an environment that is never stepped."""

    observation_size, action_size = 17, 6


def random_transitions(key: jax.Array, count: int) -> Transition:
    """Return random transitions, from no environment."""
    keys = jax.random.split(key, 4)
    obs, next_obs = (jax.random.normal(k, (count, Sizes.observation_size)) for k in keys[:2])
    action = jnp.tanh(jax.random.normal(keys[2], (count, Sizes.action_size)))
    return Transition(obs, action, jax.random.normal(keys[3], (count,)), next_obs, jnp.zeros(count))


def filled_state(learner: PEARL, key: jax.Array) -> PEARLState:
    """A fresh learner whose encoder rings are full and whose other rings hold as much."""
    init_key, key = jax.random.split(key)
    count = learner.config.encoder_capacity * TASKS
    data, task = random_transitions(key, count), jnp.arange(count) % TASKS
    state = learner.init(init_key)
    full, encoder = (replay.add(ring, data, task, jnp.ones(count)) for ring in (state.full, state.encoder))
    return dataclasses.replace(state, full=full, encoder=encoder)


def gradient_steps(config: PEARLConfig, drawn: bool) -> Program:
    """`config.gradient_steps` updates, on batches drawn from replay or on one and the same."""
    learner = PEARL(cast(Any, Sizes()), DRAWS, TASKS, config)
    state = jax.jit(functools.partial(filled_state, learner))(jax.random.key(0))

    def same(key: jax.Array, state: PEARLState, weights: jax.Array) -> Any:
        batch = learner._batch(key, state, weights)
        return jax.lax.scan(lambda s, _: learner._sac.step(s, batch), state.train, None, length=config.gradient_steps)

    return Program(learner._improve if drawn else same, (jax.random.key(1), state, jnp.ones(TASKS)))


def epoch(config: PEARLConfig) -> Program:
    """Return an epoch on ML2 that samples 20 tasks."""
    learner = PEARL(Locomotion("auto"), DRAWS, TASKS, config)
    state = jax.jit(functools.partial(filled_state, learner))(jax.random.key(0))
    tasks = ml2().tasks
    return Program(lambda k, s, w: learner.train_epoch(k, s, tasks, w), (jax.random.key(1), state, jnp.ones(TASKS)))


def cases(mode: Mode) -> list[Case | Quoted]:
    """Networks alone, with the draws from replay, and an epoch of fewer gradient steps than the paper's on a CPU."""
    tiny = PEARLConfig(
        horizon=5, initial_steps=10, prior_steps=5, posterior_steps=10, gradient_steps=1, batch_size=4, context_size=4,
        replay_capacity=20, hidden_sizes=(8,), encoder_sizes=(8,),
    )  # fmt: skip
    paper = PEARLConfig(gradient_steps=mode.pick(1, 10, 20, 200), replay_capacity=20_000)
    config = mode.pick(tiny, paper, paper)
    whole = dataclasses.replace(config, gradient_steps=mode.pick(1, 50, 50, 2000))
    label = f"epoch: {DRAWS * (whole.prior_steps + whole.posterior_steps):,} environment steps, {whole.gradient_steps} updates"

    def steps(name: str, drawn: bool) -> Case:
        job = functools.partial(gradient_steps, config, drawn)
        return Case(name, job, "gradient step", config.gradient_steps, against=OYSTER[0])

    return [
        steps("networks alone", drawn=False),
        steps("with draws from replay", drawn=True),
        *(() if mode.name == "quick" else (Case(label, lambda: epoch(whole), "epoch", 1.0),)),
        *(OYSTER if mode.name != "smoke" else ()),
    ]
