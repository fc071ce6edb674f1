"""Random keys of an experiment: every random number descends from (seed, role, index, epoch)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

ROLES = (
    *("single", "oracle", "herd", "embed", "cluster", "assign", "test_single", "test_oracle", "test_herd"),
    *("random_assignment", "random_clusters", "probe", "test_probe"),
)
"""What random numbers are for. A role's place in this order is part of its keys: a new role goes to the end."""

PREFILL_EPOCH = np.uint32(2**32 - 1)
"""Stands in place of an epoch for what is collected before the first one."""


FINAL_EPOCH = np.uint32(2**32 - 2)
"""Stands in place of an epoch for the tests after the last one."""


def role_keys(seeds: np.ndarray, role: str, index: int = 0) -> jax.Array:
    """Return one key per seed `[S]` for a role; a seed's keys do not depend on which other seeds run."""
    base = jnp.stack([jax.random.key(int(seed)) for seed in seeds])
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, ROLES.index(role)), index))(base)


def learner_keys(seeds: np.ndarray, role: str, count: int) -> jax.Array:
    """Return one key per learner `[S, A]` for `count` learners of a role."""
    return jnp.stack([role_keys(seeds, role, index) for index in range(count)], axis=1)
