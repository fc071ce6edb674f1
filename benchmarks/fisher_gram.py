"""Fisher embeddings: score factors of a probe's steps and the exact Gram matrix, and the same from whole score vectors."""

from __future__ import annotations

import functools
from typing import Any

import jax

from benchmarks.cases import Case, Mode, Program
from tamherd_jax import fisher
from tamherd_jax.distributions import gaussian_log_prob
from tamherd_jax.networks import GaussianPolicy

OBSERVATIONS, ACTIONS = 17, 6


def gram(tasks: int, steps: int, factored: bool) -> Program:
    """Gram matrix `[tasks, tasks]` of tasks with `steps` transitions each, scores included."""
    policy = GaussianPolicy(ACTIONS, (64, 64))
    keys = jax.random.split(jax.random.key(0), 4)
    obs = jax.random.normal(keys[0], (tasks, steps, OBSERVATIONS))
    actions = jax.random.normal(keys[1], (tasks, steps, ACTIONS))
    weights = jax.random.uniform(keys[2], (tasks, steps)) / steps
    params = policy.init(keys[3], obs[0, 0])

    def log_prob(params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        return gaussian_log_prob(action, *policy.apply(params, obs))

    def embed(params: Any, obs: jax.Array, actions: jax.Array, weights: jax.Array) -> jax.Array:
        scores = fisher.score_factors if factored else fisher.score_gradients
        found = jax.vmap(lambda o, a: scores(log_prob, params, o, a))(obs, actions)
        return (fisher.factor_gram if factored else fisher.fisher_gram)(found, weights)

    return Program(embed, (params, obs, actions, weights))


def cases(mode: Mode) -> list[Case]:
    """By number of tasks; ML2's runs embed 20 (quick) or 40 (paper), with 500 or 1,000 steps each."""
    sizes = mode.pick(((2, 8),), ((20, 500),), ((20, 200), (20, 500), (40, 1000)), ((20, 500), (40, 1000), (160, 1000)))
    dense = mode.pick((2, 8), (20, 100), (20, 200), (20, 500))

    def case(label: str, tasks: int, steps: int, factored: bool) -> Case:
        job = functools.partial(gram, tasks, steps, factored)
        return Case(f"{label}, {tasks} tasks x {steps} steps", job, "task", tasks, series=label, size=tasks * steps)

    return [*(case("factors", *size, True) for size in sizes), case("whole scores", *dense, False)]
