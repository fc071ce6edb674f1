"""Functions of one task over the tasks of a meta-batch: the only place that knows in which order a backend likes them.

A CPU takes one task after the other: a task's arrays stay in its cache, and no array is transposed to sum over tasks. An
accelerator takes them all at once. The choice is made when a program is compiled, for the platform it is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from tamherd_jax.types import PyTree

Result = TypeVar("Result")


def map_tasks(fn: Callable[..., Result], *tasks: PyTree) -> Result:
    """Return `fn` of every task, `[M, ...]`, from leaves `[M, ...]`."""
    fn = jax.jit(fn, inline=True)  # traced once for both orders

    def in_turn(*tasks: PyTree) -> Result:
        results: Result = jax.lax.map(lambda task: fn(*task), tasks)
        return results

    results: Result = jax.lax.platform_dependent(*tasks, cpu=in_turn, default=jax.vmap(fn))
    return results


def sum_tasks(fn: Callable[..., Result], *tasks: PyTree) -> Result:
    """Return the sum over M tasks of `fn` of each, from leaves `[M, ...]`."""
    fn = jax.jit(fn, inline=True)  # traced once for its shapes and both orders

    def in_turn(*tasks: PyTree) -> Result:
        shapes = jax.eval_shape(fn, *jax.tree.map(lambda leaf: leaf[0], tasks))
        zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        total, _ = jax.lax.scan(lambda total, task: (jax.tree.map(jnp.add, total, fn(*task)), None), zero, tasks)
        return total

    def at_once(*tasks: PyTree) -> Result:
        results: Result = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(fn)(*tasks))
        return results

    total: Result = jax.lax.platform_dependent(*tasks, cpu=in_turn, default=at_once)
    return total
