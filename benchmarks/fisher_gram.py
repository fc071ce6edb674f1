"""Fisher embeddings: score factors of a probe's steps and the exact Gram matrix, the same from whole score vectors, and of the
matrices in closed form, the expectation over actions.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from benchmarks.cases import Case, Mode, Program
from tamherd_jax import fisher
from tamherd_jax.distributions import gaussian_log_prob
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig, Features, fisher_embedding
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


def closed_form_gram(tasks: int, steps: int) -> Program:
    """Gram matrix `[tasks, tasks]` of expected Fisher matrices, A + 1 score rows or so a step."""
    policy = GaussianPolicy(ACTIONS, (64, 64))
    keys = jax.random.split(jax.random.key(0), 3)
    obs = jax.random.normal(keys[0], (tasks, steps, OBSERVATIONS))
    weights = jax.random.uniform(keys[1], (tasks, steps)) / steps
    params, config = policy.init(keys[2], obs[0, 0]), EmbeddingConfig(expectation="closed_form")

    def embed(params: Any, obs: jax.Array, weights: jax.Array) -> jax.Array:
        def one(obs: jax.Array, weights: jax.Array) -> Features:
            values, row_weights = fisher_embedding(policy.apply, params, obs, weights, weights, keys[0], config)
            return Features(values, row_weights, jax.numpy.zeros((), bool))

        return Embedding(config).self_gram(jax.vmap(one)(obs, weights))

    return Program(embed, (params, obs, weights))


def cases(mode: Mode) -> list[Case]:
    """Return a case for each number of tasks; ML2's runs embed 20 (quick) or 40 (paper), with 500 or 1,000 steps each."""
    sizes = mode.pick(((2, 8),), ((20, 500),), ((20, 200), (20, 500), (40, 1000)), ((20, 500), (40, 1000), (160, 1000)))
    dense = mode.pick((2, 8), (20, 100), (20, 200), (20, 500))

    expected = mode.pick(((2, 8),), (), ((24, 1000),))  # compiles for longer than the quick mode has left

    def case(label: str, tasks: int, steps: int, job: Any, *options: Any) -> Case:
        program = functools.partial(job, tasks, steps, *options)
        return Case(f"{label}, {tasks} tasks x {steps} steps", program, "task", tasks, series=label, size=tasks * steps)

    return [
        *(case("factors", *size, gram, True) for size in sizes),
        case("whole scores", *dense, gram, False),
        *(case("closed form", *size, closed_form_gram) for size in expected),
    ]
