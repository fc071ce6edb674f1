"""Shared by all tests: strict NumPy-like promotion, float64 on demand, point-mass tasks with known answers."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float64():
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def mujoco_env():
    from tamherd_jax.envs import Locomotion

    return Locomotion("mujoco")
