"""Tables of constants as keys of a cache of compiled functions."""

import jax

from tamherd_jax.physics.planar.constants import PlanarTree


class LiteralTable:
    """A numpy table that is compiled into programs: equal to another where its numbers are.

    Args:
      table: numpy arrays.
    """

    def __init__(self, table: PlanarTree):
        leaves, treedef = jax.tree.flatten(table)
        self.table = table
        self._key = (treedef, *((leaf.shape, leaf.tobytes()) for leaf in leaves))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiteralTable) and self._key == other._key
