"""Shared by all tests: float64 and strict shapes on demand, the environment on MuJoCo C."""

import contextlib
import functools
import gc
import os
import pickle
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import pytest
from filelock import FileLock
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import install_import_hook
from real_runs import RUNS

CHECKED = ("fisher", "maml", "pearl", "herd", "envs", "distributions", "experiments")
"""Packages and modules whose annotated arrays are checked while tests run; see array_shapes.py."""

install_import_hook([f"tamherd_jax.{name}" for name in CHECKED], "array_shapes.checked")


def pytest_addoption(parser):
    """`--jitter N` stands in for another processor: N names a perturbation of all learners' initial parameters by 1e-6."""
    parser.addoption("--jitter", type=int, default=0, help="seed of a relative perturbation of initial parameters; 0: none")


def jittered(init, seed):
    """`learner.init` whose floating-point leaves are multiplied by `1 + 1e-6 N(0, 1)`."""

    @functools.wraps(init)
    def perturbed(self, key):
        state = init(self, key)
        leaves, structure = jax.tree.flatten(state)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        moved = [
            leaf * (1 + 1e-6 * jax.random.normal(k, leaf.shape, leaf.dtype))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return structure.unflatten(moved)

    return perturbed


OPTIMISED = ("planar", "cli", "lowering", "physics", "simd", "returns", "benchmarks", "smoke")
"""Files, by what follows `test_`, whose programs XLA optimises as a user's: of numbers to the last digit, or real runs.

The others test what programs compute, not how fast: they are sooner compiled with few optimisations.
"""
LONG = ("resume", "pearl_experiment", "pearl", "parallel", "examples", "maml_learner", "epochs_per_call", "sweep", "embed")
"""Files of the others that take minutes, the longest first."""


def pytest_collection_modifyitems(items):
    """Put optimised files first, since programs are dropped between these and the others, and long ones before short ones.

    Workers take files in this order: so none is left alone with a long one at the end.
    """
    order = {f"test_{name}": number for number, name in enumerate((*OPTIMISED, *LONG))}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Choose how much XLA optimises, before any fixture of a file compiles; its subprocesses follow."""
    few = item.path.stem.removeprefix("test_") not in OPTIMISED
    if few != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()  # programs of another file
        jax.config.update("jax_disable_most_optimizations", few)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(few))


def pytest_sessionstart(session):
    """Perturb the learners where asked to; their tests of learning are marked `learning` and must pass all the same."""
    seed = session.config.getoption("--jitter")
    if seed:
        from tamherd_jax.maml import MAML
        from tamherd_jax.pearl import PEARL

        for learner in (MAML, PEARL):
            learner.init = jittered(learner.init, seed)


def pytest_configure(config):
    """Compile each program once for a worker's tests and runs; programs that call MuJoCo C cannot be kept.

    `benchmarks` is not installed: its path comes last, so that an installed tamherd_jax wins.

    A directory for each worker: JAX writes entries in place, and another process could read half of one.
    """
    sys.path.append(str(config.rootpath))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir(f"xla-{worker}")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # as the command has it
    os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"  # for subprocesses


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
def toy_programs(tmp_path_factory):
    """A directory of the compiled programs of `toy.py`, for processes to copy: those that may be killed share none."""
    return tmp_path_factory.mktemp("toy-programs")


@pytest.fixture(scope="session")
def finished_toy(toy_programs):
    """The experiment of `toy.py` after a run that nothing disturbed; who changes it puts it back."""
    from toy import toy_experiment

    experiment = toy_experiment()
    with programs_kept_in(toy_programs):
        for _ in experiment.run():
            pass
    return experiment


@contextlib.contextmanager
def programs_kept_in(directory):
    """Keep every program that is compiled meanwhile in this directory instead of the worker's."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]

    def use(*values):
        for name, value in zip(names, values, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(str(directory), 0.0)
    try:
        yield
    finally:
        use(*before)


@pytest.fixture
def fresh_toy(finished_toy):
    """The toy before its first epoch, with its programs compiled."""
    state = finished_toy.state
    finished_toy.restart()
    yield finished_toy
    finished_toy.state = state


@pytest.fixture(scope="session")
def locomotion_herd(mujoco_env):
    """A herd on ML2 that never trained: two small members on clusters by hand."""
    from toy import untrained_herd

    from tamherd_jax.envs import ml2
    from tamherd_jax.maml import MAML, MAMLConfig

    learner = MAML(mujoco_env, 4, MAMLConfig(episodes_per_task=2, horizon=6, hidden_sizes=(4,)))
    return untrained_herd(learner, ml2())


@pytest.fixture(scope="session")
def real_run(tmp_path_factory, worker_id):
    """What a real run left, by name: the first worker that asks has it run, who asks meanwhile waits."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def finished(name, *needed):
        record = shared / f"{name}.pickle"
        with FileLock(shared / f"{name}.lock"):
            if not record.exists():
                record.write_bytes(pickle.dumps(RUNS[name](tmp_path_factory.mktemp(name), *needed)))
            return pickle.loads(record.read_bytes())

    return finished


@pytest.fixture(scope="session")
def quick_run(real_run):
    """The quick preset undisturbed."""
    return real_run("quick_run")


@pytest.fixture(scope="session")
def resumed_run(real_run, quick_run):
    """The quick preset killed and resumed."""
    return real_run("resumed_run", quick_run)


@pytest.fixture(scope="session")
def pearl_run(real_run):
    """The quick preset of PEARL."""
    return real_run("pearl_run")
