"""MAML's mathematics without an environment: 20 tasks x 10 episodes x 100 steps of random data, 64-64 policy.

The meta-gradient, one product with the curvature of the mean KL divergence through the inner step, and the whole trust-region
step (10 products, line search): as the learner takes it, products written out, and by automatic differentiation of all tasks
at once. PyTorch does the same where it is installed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from benchmarks.cases import Call, Case, Mode, Program, Quoted
from benchmarks.quoted import METAWORLD_ALGORITHMS
from tamherd_jax.distributions import gaussian_log_prob
from tamherd_jax.maml import MAML, MAMLConfig, gauss_newton, trpo_step
from tamherd_jax.maml.learner import TaskBatch

OBSERVATIONS, ACTIONS = 17, 6


class Sizes:
    """What MAML asks of an environment that is never stepped."""

    observation_size, action_size = OBSERVATIONS, ACTIONS


def random_batch(key: jax.Array, tasks: int, episodes: int, steps: int) -> TaskBatch:
    """Steps of a meta-batch, all valid."""
    keys, shape = jax.random.split(key, 3), (tasks, episodes, steps)
    obs = jax.random.normal(keys[0], (*shape, OBSERVATIONS))
    actions = jax.random.normal(keys[1], (*shape, ACTIONS))
    return TaskBatch(obs, actions, jnp.zeros(shape), jax.random.normal(keys[2], shape), jnp.ones(shape))


class Problem:
    """A learner, and data from before and after adaptation."""

    def __init__(self, tasks: int, episodes: int, steps: int, first_order: bool = False):
        config = MAMLConfig(episodes_per_task=episodes, horizon=steps, first_order=first_order)
        self.learner = MAML(cast(Any, Sizes()), tasks, config)
        self.params = jax.jit(self.learner.init)(jax.random.key(0)).params
        self.support, self.query = (random_batch(jax.random.key(i), tasks, episodes, steps) for i in (1, 2))

    def outputs(self, params: Any, support: TaskBatch, query: TaskBatch) -> Any:
        """Distributions of every task's adapted policy."""
        adapted = jax.vmap(self.learner._adapt, in_axes=(None, 0))(params, support)
        with jax.default_matmul_precision("highest"):
            return jax.vmap(self.learner.distribution)(adapted, query.obs)

    def loss(self, params: Any, support: TaskBatch, query: TaskBatch) -> jax.Array:
        """Outer loss."""
        return -jnp.mean(gaussian_log_prob(query.actions, *self.outputs(params, support, query)) * query.advantages)

    def curvature(self, params: Any, support: TaskBatch, query: TaskBatch) -> Any:
        """One product, its linearisation included."""

        def metric(old: Any, tangent: Any) -> Any:
            return jnp.exp(-2.0 * old[1]) * tangent[0], 2.0 * tangent[1]

        return gauss_newton(lambda theta: self.outputs(theta, support, query), params, metric)[2](params)

    def general_step(self, params: Any, support: TaskBatch, query: TaskBatch) -> Any:
        """The trust-region step by automatic differentiation of `[M, R, T, ...]` arrays, all tasks at once."""
        rows = self.learner._outer_problem(support, query)
        shape = query.valid.shape

        def flat(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf.reshape(shape[0], -1, leaf.shape[-1]), tree)

        def metric(old: Any, tangent: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf.reshape(*shape, -1), rows.metric(flat(old), flat(tangent)))

        with jax.default_matmul_precision("highest"):
            return trpo_step(
                lambda theta: self.outputs(theta, support, query),
                lambda old, new: rows.loss(flat(old), flat(new)),
                lambda old, new: rows.kl(flat(old), flat(new)),
                metric,
                params,
                self.learner.config.trpo,
            )

    def program(self, fn: Any) -> Program:
        """A function of parameters and data as a program."""
        return Program(fn, (self.params, self.support, self.query))


def torch_job(size: tuple[int, int, int], step: bool) -> Call:
    """The same in PyTorch: the meta-gradient, or the whole trust-region step."""
    from benchmarks.torch_maml import TorchMAML

    problem = TorchMAML(*size, OBSERVATIONS, ACTIONS)
    return Call(problem.trust_region_step if step else problem.meta_gradient)


def cases(mode: Mode) -> list[Case | Quoted]:
    """Each kernel once at the paper's size; PyTorch's at the same."""
    size = mode.pick((2, 2, 5), (20, 10, 100), (20, 10, 100))
    make = functools.cache(lambda first_order: Problem(*size, first_order))
    jobs: dict[str, Callable[[], Program | Call]] = {
        "meta-gradient": lambda: make(False).program(jax.grad(make(False).loss)),
        "meta-gradient, first order": lambda: make(True).program(jax.grad(make(True).loss)),
        "curvature product, through the inner step": lambda: make(False).program(make(False).curvature),
    }
    if mode.name != "quick":  # there it is the epoch's update
        jobs["trust-region step"] = lambda: make(False).program(make(False).learner._outer_step)
        jobs["trust-region step, automatic differentiation"] = lambda: make(False).program(make(False).general_step)
    if importlib.util.find_spec("torch") is not None and mode.name != "quick" and not mode.accelerator:
        jobs |= {
            "PyTorch meta-gradient": lambda: torch_job(size, step=False),
            "PyTorch trust-region step": lambda: torch_job(size, step=True),
        }
    slow = {"PyTorch trust-region step": 3}
    found = [Case(name, job, "meta-step", 1.0, repeats=slow.get(name)) for name, job in jobs.items()]
    return [*found, *(METAWORLD_ALGORITHMS if mode.name != "smoke" else ())]
