"""Meta-gradient over many tasks, this library's and others: `python -m benchmarks.meta_gradient [--tasks M]`.

The second-order MAML gradient of a 64-64 Gaussian policy's likelihood loss, one inner step, N transitions of 17 observations
and 6 actions on each side of every task. Each way computes the same gradient from the same numbers (checked), in float32 on
the CPU; repeats take turns, so that a busy machine is equally unkind to all. PyTorch is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.distributions import gaussian_log_prob
from tamherd_jax.maml import meta_gradient
from tamherd_jax.networks import GaussianPolicy

OBSERVATIONS, ACTIONS, STEP = 17, 6, 0.1
POLICY = GaussianPolicy(ACTIONS, (64, 64))


def make_data(tasks: int, points: int) -> tuple[Any, Any]:
    """Support and query, each (obs `[M, N, O]`, actions `[M, N, A]`, advantages `[M, N]`)."""
    rng = np.random.default_rng(0)
    shapes = ((tasks, points, OBSERVATIONS), (tasks, points, ACTIONS), (tasks, points))
    return tuple(tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(2))  # type: ignore


def loss(params: Any, obs: jax.Array, actions: jax.Array, advantages: jax.Array) -> jax.Array:
    """`-mean log pi(a|s) A` of one task."""
    mean, log_std = POLICY.apply(params, obs)
    return -jnp.mean(gaussian_log_prob(actions, mean, log_std) * advantages)


def per_task(params: Any, support: Any, query: Any) -> Any:
    """Value and meta-gradient of one task, as one would write it without this library."""

    def after(params):
        adapted = jax.tree.map(lambda p, g: p - STEP * g, params, jax.grad(loss)(params, *support))
        return loss(adapted, *query)

    return jax.value_and_grad(after)(params)


def loop(one: Callable[..., Any]) -> Callable[..., Any]:
    """A Python loop over tasks that adds up gradients."""

    def run(params, support, query):
        total, tasks = None, len(support[0])
        for m in range(tasks):
            value = one(params, *jax.tree.map(lambda leaf, m=m: leaf[m], (support, query)))
            total = value if total is None else jax.tree.map(jnp.add, total, value)
        return jax.tree.map(lambda leaf: leaf / tasks, total)

    return run


def jax_ways(tasks_at_once: int) -> dict[str, tuple[Callable[..., Any], int]]:
    """Name to (function of params, support and query, one in how many tasks it is run on)."""
    return {
        f"tamherd_jax.maml.meta_gradient, {tasks_at_once} tasks at once": (
            jax.jit(lambda p, s, q: meta_gradient(loss, p, s, q, step_size=STEP, tasks_at_once=tasks_at_once)),
            1,
        ),
        "JAX, one vmap over all tasks": (jax.jit(lambda p, s, q: meta_gradient(loss, p, s, q, step_size=STEP)), 1),
        "JAX, Python loop over a jitted gradient": (loop(jax.jit(per_task)), 1),
        "JAX, Python loop, not jitted": (loop(per_task), 200),
    }


def torch_ways(params: Any) -> dict[str, tuple[Callable[..., Any], int]]:
    """The same in PyTorch: `torch.func`, and a loop with `create_graph=True` as learn2learn and higher do it."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    tree = params["params"]
    leaves = [tree["mean"][f"layer_{i}"][name] for i in range(3) for name in ("kernel", "bias")] + [tree["log_std"]]
    theta = tuple(torch.tensor(np.asarray(leaf)) for leaf in leaves)

    def torch_loss(theta, obs, actions, advantages):
        x = torch.tanh(torch.tanh(obs @ theta[0] + theta[1]) @ theta[2] + theta[3])
        normal = torch.distributions.Normal(x @ theta[4] + theta[5], torch.exp(theta[6]), validate_args=False)
        return -(normal.log_prob(actions).sum(-1) * advantages).mean()

    def after(theta, support, query):
        gradient = torch.func.grad(torch_loss)(theta, *support)
        return torch_loss(tuple(p - STEP * g for p, g in zip(theta, gradient, strict=True)), *query)

    def over_tasks(theta, support, query):
        return torch.func.vmap(after, in_dims=(None, 0, 0))(theta, support, query).mean()

    def functional(_, support, query):
        support, query = to_torch(support), to_torch(query)
        gradient, value = torch.func.grad_and_value(over_tasks)(theta, support, query)
        return value, gradient

    def graph_loop(_, support, query):
        support, query = to_torch(support), to_torch(query)
        own, total = [p.clone().requires_grad_() for p in theta], 0.0
        tasks = len(support[0])
        for m in range(tasks):
            gradient = torch.autograd.grad(torch_loss(own, *(x[m] for x in support)), own, create_graph=True)
            adapted = [p - STEP * g for p, g in zip(own, gradient, strict=True)]
            value = torch_loss(adapted, *(x[m] for x in query)) / tasks
            value.backward()
            total += value.detach()
        return total, [p.grad for p in own]

    def to_torch(data):
        return tuple(torch.from_numpy(leaf) for leaf in data)

    return {"PyTorch, torch.func vmap of grad": (functional, 1), "PyTorch, loop with create_graph": (graph_loop, 1)}


def check_equal(reference: Any, other: Any, name: str) -> None:
    """Raise if two implementations do not compute the same gradient."""
    ours, theirs = (np.sort(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree[1])])) for tree in (reference, other))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-6, err_msg=name)


def measure(ways: dict[str, tuple[Any, int]], args: Any, repeats: int) -> dict[str, tuple[float, list[float]]]:
    """First call's and further calls' seconds for all tasks, the ways taking turns."""
    params, support, query = args
    seconds: dict[str, tuple[float, list[float]]] = {}
    reference = None
    for turn in range(repeats + 1):
        for name, (way, share) in ways.items():
            data = jax.tree.map(lambda leaf, n=share: leaf[: len(leaf) // n], (support, query))
            start = time.perf_counter()
            result = jax.block_until_ready(way(params, *data))
            spent = share * (time.perf_counter() - start)
            if turn == 0:
                seconds[name] = spent, []
                reference = result if reference is None else reference
                if share == 1:
                    check_equal(reference, result, name)
            elif turn == 1 or share == 1:
                seconds[name][1].append(spent)
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--tasks-at-once", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="words of the names of ways beside ours")
    options = parser.parse_args()
    params = POLICY.init(jax.random.key(0), jnp.zeros(OBSERVATIONS))
    ways = jax_ways(options.tasks_at_once)
    with contextlib.suppress(ImportError):
        ways |= torch_ways(params)
    first = next(iter(ways))
    ways = {name: way for name, way in ways.items() if name == first or all(word in name for word in options.only)}
    seconds = measure(ways, (params, *make_data(options.tasks, options.points)), options.repeats)
    ours = min(next(iter(seconds.values()))[1])
    compiled = next(iter(ways.values()))[0]._cache_size()
    size = f"{options.tasks} tasks x 2 x {options.points} points, 64-64 policy"
    print(f"{size}, {os.cpu_count()} cores; ours compiled {compiled} time(s)")
    for name, (first, times) in seconds.items():
        estimate = f" (from {100 // ways[name][1]}% of the tasks)" if ways[name][1] > 1 else ""
        print(
            f"{name:60s} first {first:7.2f} s   best {min(times):8.4f}  median {np.median(times):8.4f} s   "
            f"{min(times) / ours:6.1f} x{estimate}"
        )


if __name__ == "__main__":
    main()
