"""Registries: one entry per algorithm and one per body. Their names stand in their entries and nowhere else in the package."""

from tamherd_jax.registry.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, Algorithm, Share, get_algorithm

__all__ = ["ALGORITHMS", "DEFAULT_ALGORITHM", "Algorithm", "Share", "get_algorithm"]
