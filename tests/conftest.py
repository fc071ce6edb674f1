"""Shared by all tests: float64 and strict shapes on demand, the environment on MuJoCo C."""

import contextlib
import gc
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


def pytest_configure(config):
    """Compile each program once for all tests and runs; programs that call MuJoCo C cannot be kept."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def forget_programs():
    """Drop compiled programs when they fill half of the memory maps that Linux grants a process (65,530).

    Each takes dozens, and XLA dies of a segmentation fault when there are no more.
    """
    yield
    with contextlib.suppress(OSError):
        if Path("/proc/self/maps").read_bytes().count(b"\n") > 30_000:
            jax.clear_caches()
            gc.collect()


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


@pytest.fixture(scope="session")
def finished_toy():
    """The experiment of `toy.py` after a run that nothing disturbed; who changes it puts it back."""
    from toy import toy_experiment

    experiment = toy_experiment()
    for _ in experiment.run():
        pass
    return experiment


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory):
    """`tamherd run` on real physics as a user runs it, shortened to three epochs of the probe and one of the herd.

    Its arguments, the run directory it left, and the finished process.
    """
    cwd = tmp_path_factory.mktemp("work")
    arguments = ["run", "--probe-epochs", "3", "--epochs", "1", "--compilation-cache", "off"]
    command = [sys.executable, "-m", "tamherd_jax.cli", *arguments, "--out", "run"]
    return arguments, cwd / "run", subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
