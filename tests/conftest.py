"""Shared by all tests: float64 and strict shapes on demand, the environment on MuJoCo C."""

import contextlib
import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from real_runs import RUNS


def pytest_configure(config):
    """Compile each program once for all tests and runs; programs that call MuJoCo C cannot be kept."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def forget_programs():
    """Drop compiled programs when they fill half of the memory maps that Linux grants a process (65,530).

    Each takes dozens, and XLA dies of a segmentation fault when there are no more.
    """
    start = time.perf_counter()
    yield
    if time.perf_counter() - start < 0.1:
        return  # too short to have compiled much, and counting takes as long
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
def locomotion_herd(mujoco_env):
    """A herd on ML2 that never trained: two small members on clusters by hand."""
    from toy import untrained_herd

    from tamherd_jax.envs import ml2
    from tamherd_jax.maml import MAML, MAMLConfig

    learner = MAML(mujoco_env, 4, MAMLConfig(episodes_per_task=2, horizon=6, hidden_sizes=(4,)))
    return untrained_herd(learner, ml2())


@pytest.fixture(scope="session", autouse=True)
def real_runs(request, tmp_path_factory):
    """The real runs that collected tests ask for, name to future; one at a time, on the core that other tests leave idle."""
    needed = {name for item in request.session.items for name in item.fixturenames}
    pool = ThreadPoolExecutor(1)
    yield {name: pool.submit(run, tmp_path_factory.mktemp(name)) for name, run in RUNS.items() if name in needed}
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def quick_run(real_runs):
    """The quick preset undisturbed."""
    return real_runs["quick_run"].result()


@pytest.fixture(scope="session")
def resumed_run(real_runs):
    """The quick preset killed and resumed."""
    return real_runs["resumed_run"].result()


@pytest.fixture(scope="session")
def pearl_run(real_runs):
    """The quick preset of PEARL."""
    return real_runs["pearl_run"].result()
