"""The learner axis: one compiled program for L learners that never communicate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def map_learners(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Compile `fn`, written for one learner, for a leading axis of learners.

    Args:
      fn: pure function of one learner.
      in_axes: per argument 0 where it has the axis of learners, None where it is shared.

    Returns:
      The jitted function of `[L, ...]` arguments.
    """
    return jax.jit(jax.vmap(fn, in_axes=in_axes))


def stack_learners(*states: Any) -> Any:
    """Join states along their axes of learners, in order."""
    return jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *states)
