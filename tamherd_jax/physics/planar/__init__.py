"""Planar rigid bodies with MuJoCo's dynamics, for accelerators: bodies are data, a batch may mix them.

`PlanarPhysics` is the backend of the two bodies; `read_tree` makes a body out of any MuJoCo model that is a floating planar
tree; `planar_step` steps a flat batch.
"""

from tamherd_jax.physics.planar.backend import FORMS, PlanarPhysics, body_table, planar_step
from tamherd_jax.physics.planar.constants import PlanarTree, read_tree, stack_trees
from tamherd_jax.physics.planar.dynamics import INTEGRATORS, SolverOptions

__all__ = [
    "FORMS",
    "INTEGRATORS",
    "PlanarPhysics",
    "PlanarTree",
    "SolverOptions",
    "body_table",
    "planar_step",
    "read_tree",
    "stack_trees",
]
