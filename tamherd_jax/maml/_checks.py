"""Shapes checked while tracing, at no cost to the compiled program; every message names the argument."""

from typing import Any

import chex
import jax
import numpy as np

from tamherd_jax.types import PyTree


def check_scalar(name: str, value: Any) -> None:
    """Refuse what is not one number.

    Raises:
      ValueError: naming it.
    """
    _check(chex.assert_shape, f"{name} must be a scalar", value, ())


def check_rank(name: str, value: Any, rank: int) -> None:
    """Refuse an array of another rank.

    Raises:
      ValueError: naming it.
    """
    _check(chex.assert_rank, f"{name} must have rank {rank}", value, rank)


def check_equal_shapes(**arrays: Any) -> None:
    """Refuse arrays of different shapes, given by name.

    Raises:
      ValueError: naming them.
    """
    shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
    _check(chex.assert_equal_shape, f"shapes must be equal: {shapes}", list(arrays.values()))


def check_same_tree(name: str, tree: PyTree, like: str, template: PyTree) -> None:
    """Refuse a tree whose structure or shapes are not a template's.

    Raises:
      ValueError: naming both.
    """
    found: Any = jax.tree.structure(tree)
    if found != jax.tree.structure(template):
        raise ValueError(f"{name} must be a tree of the structure of {like}, not {found}")
    _check(chex.assert_trees_all_equal_shapes, f"{name} must have the shapes of {like}", tree, template)


def check_task_axis(**trees: Any) -> int:
    """M, the length of the leading axis that all leaves of all trees share.

    Raises:
      ValueError: naming the tree whose leaves have none, or another.
    """
    shapes = {name: [np.shape(leaf) for leaf in jax.tree.leaves(tree)] for name, tree in trees.items()}
    leading = {shape[:1] for found in shapes.values() for shape in found}
    if len(leading) != 1 or () in leading:
        found = "; ".join(f"{name} has leaves {', '.join(map(str, s)) or 'none'}" for name, s in shapes.items())
        raise ValueError(f"the leaves of {' and '.join(trees)} must share one leading axis of tasks: {found}")
    return int(next(iter(leading))[0])


def _check(assertion: Any, message: str, *args: Any) -> None:
    assertion(*args, custom_message=message, exception_type=ValueError)
