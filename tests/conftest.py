"""Shared by all tests: float64 and strict shapes on demand, the environment on MuJoCo C."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


def pytest_configure(config):
    """Compile each program once for all tests and runs; programs that call MuJoCo C cannot be kept."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def float64():
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_ranks():
    """Refuse silent broadcasting between ranks."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def mujoco_env():
    from tamherd_jax.envs import Locomotion

    return Locomotion("mujoco")
