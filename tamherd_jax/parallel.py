"""The learner axis: one compiled program for any number of learners that never communicate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_learners(fn: Callable[..., Any], in_axes: tuple[int | None, ...], per_call: int | None = None) -> Callable[..., Any]:
    """Extend `fn`, written for one learner, to a leading axis of L learners.

    A call of the compiled program takes `per_call` learners; the rest run in further calls of the same program, the last one
    padded by repeating a learner. With one learner a call, what a learner computes does not depend, to the bit, on how many
    others there are.

    Args:
      fn: pure function of one learner.
      in_axes: per argument 0 where it has the axis of learners, None where it is shared.
      per_call: learners a call. By default one on a CPU, where a learner's own batches fill the cores (measured: as fast as
        batching learners, and compiled in half the time), and all of them elsewhere.

    Returns:
      The function of `[L, ...]` arguments, compiled on its first call.
    """
    alone = jax.jit(fn)
    batched = jax.jit(jax.vmap(fn, in_axes=in_axes))

    def call(*args: Any) -> Any:
        count = next(jax.tree.leaves(arg)[0].shape[0] for arg, axis in zip(args, in_axes, strict=True) if axis == 0)
        size = min(count, per_call or (1 if jax.default_backend() == "cpu" else count))
        outputs = []
        for start in range(0, count, size):
            rows = jnp.minimum(jnp.arange(start, start + size), count - 1)
            if size == 1:
                out = alone(*(arg if axis is None else _row(arg, start) for arg, axis in zip(args, in_axes, strict=True)))
                outputs.append(jax.tree.map(lambda leaf: leaf[None], out))
            else:
                part = (arg if axis is None else _rows(arg, rows) for arg, axis in zip(args, in_axes, strict=True))
                keep = min(size, count - start)
                outputs.append(jax.tree.map(lambda leaf, keep=keep: leaf[:keep], batched(*part)))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs) if len(outputs) > 1 else outputs[0]

    return call


def _row(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _rows(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tree)
