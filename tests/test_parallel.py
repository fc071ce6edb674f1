import os
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamherd_jax import parallel
from tamherd_jax.parallel import map_learners


def eight_devices(program, tmp_path):
    """Run a program on eight CPU devices and return what it printed."""
    flags = "--xla_force_host_platform_device_count=8"
    here = os.path.dirname(__file__)
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
    environment["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    environment["JAX_COMPILATION_CACHE_DIR"] = str(jax.config.jax_compilation_cache_dir or tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


_EPOCH = """
        import jax, numpy as np
        from point_mass import PointMass, point_tasks
        from tamherd_jax.maml import MAML, MAMLConfig
        from tamherd_jax.parallel import map_learners

        learner = MAML(PointMass(), 4, MAMLConfig(episodes_per_task=4, horizon=5, hidden_sizes=(8,)))
        tasks, traces = point_tasks().tasks, []

        def epoch(key, number, state, weights):
            traces.append(1)
            return learner.train_epoch(jax.random.fold_in(key, number), state, tasks, weights)

        def maps(**options):
            return map_learners(epoch, (0, None, 0, 0), **options)

        loop, wide, deep = maps(), maps(devices=jax.devices()), maps(devices=jax.devices()[:2], per_call=2)
        host = lambda tree: jax.tree.map(np.asarray, tree)
        """


def test_pmap_has_the_bits_of_a_loop_for_any_number_of_learners(tmp_path):
    """A MAML epoch of 1, 3, 8 and 11 learners on eight devices."""
    eight_devices(
        _EPOCH
        + """
        for count in (8, 1, 3, 11):
            keys = jax.random.split(jax.random.key(0), 11)[:count]
            states, weights = jax.vmap(learner.init)(keys), np.ones((count, 4), np.float32)
            args = keys, np.uint32(1), states, weights
            one = host(loop(*args))
            before = len(traces)
            several = wide(*args)
            assert len(traces) - before <= (count != 11), "8 + 3 padded learners run in the program of 8"
            jax.tree.map(np.testing.assert_array_equal, one, several)
            jax.tree.map(np.testing.assert_array_equal, one, wide(keys, np.uint32(1), host(states), weights))
        """,
        tmp_path,
    )


def test_shard_map_has_the_bits_of_pmap(tmp_path):
    """One learner a device, several, and a padded last call; keys, shared arguments and results on the host."""
    eight_devices(
        _EPOCH
        + """
        options = {"devices": jax.devices()}, {"devices": jax.devices()[:2], "per_call": 2}
        for count, choice in ((11, options[0]), (7, options[1])):
            keys = jax.random.split(jax.random.key(0), count)
            args = keys, np.uint32(1), jax.vmap(learner.init)(keys), np.ones((count, 4), np.float32)
            jax.tree.map(np.testing.assert_array_equal, *(maps(route=name, **choice)(*args) for name in ("pmap", "shard_map")))
        """,
        tmp_path,
    )


def test_vmap_agrees_with_a_loop(tmp_path):
    """Learners batched in a call against one a call, on one device and on two, in one padded call and in several.

    In float64 and with few conjugate gradient steps: this toy's Fisher matrix is singular, so that further steps amplify the
    order in which XLA adds up without bound (see `test_a_vmapped_learner_equals_the_same_learner_alone`).
    """
    eight_devices(
        _EPOCH
        + """
        from dataclasses import replace
        from tamherd_jax.maml import TRPOConfig

        jax.config.update("jax_enable_x64", True)
        learner = MAML(PointMass(), 4, replace(learner.config, trpo=TRPOConfig(cg_iterations=3)))
        tasks = jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == np.float32 else leaf, tasks)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
        batched = maps(per_call=3)
        for count in (3, 11):
            keys = jax.random.split(jax.random.key(0), 11)[:count]
            states = jax.tree.map(lambda leaf: leaf.astype(float), jax.vmap(learner.init)(keys))
            args = keys, np.uint32(1), states, np.ones((count, 4))
            one = host(loop(*args))
            jax.tree.map(close, one[0], host(batched(*args))[0])
            jax.tree.map(close, one[0], deep(*args)[0])
        """,
        tmp_path,
    )


@pytest.mark.parametrize("physics", ["mujoco", "planar"])
def test_physics_steps_on_more_devices_than_cores(tmp_path, physics):
    """A batch as large as a learner's, on eight devices, in finite time, with the numbers of one device.

    MuJoCo C is called through Python, where several devices would wait for each other without end: it takes one, and says so.
    """
    said = eight_devices(
        f"""
        import logging, sys
        import jax, jax.numpy as jnp, numpy as np
        from tamherd_jax.envs import Locomotion, ml2, take_tasks
        from tamherd_jax.parallel import map_learners

        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        env = Locomotion("{physics}")

        def walk(key):
            states = jax.vmap(env.reset)(jax.random.split(key, 200), take_tasks(ml2().tasks, jnp.arange(200) % 4))
            def step(states, k):
                return jax.vmap(env.step)(states, jax.random.normal(k, (200, 6))), states.obs
            return jax.lax.scan(step, states, jax.random.split(key, 10))[1]

        keys = jax.random.split(jax.random.key(0), 9)
        one, several = map_learners(walk, (0,))(keys), map_learners(walk, (0,), devices=jax.devices())(keys)
        np.testing.assert_array_equal(np.asarray(one), several)
        """,
        tmp_path,
    )
    assert said.count("runs on one CPU device") == (physics == "mujoco")


def test_a_call_that_does_not_return_says_so(monkeypatch, caplog):
    monkeypatch.setattr(parallel, "SILENCE", 0.05)

    def slow(x):
        return jax.pure_callback(lambda x: (time.sleep(0.3), x)[1], x, x)

    np.testing.assert_array_equal(np.asarray(map_learners(slow, (0,))(jnp.ones((2, 3)))), 1.0)
    lines = [record.message for record in caplog.records]
    assert lines
    assert all(line.startswith("no result of 2 learners on 1 cpu devices for ") for line in lines)
    monkeypatch.setattr(parallel, "SILENCE", 300.0)
    caplog.clear()
    map_learners(slow, (0,))(jnp.ones((1, 3)))
    assert not caplog.records


def test_an_unknown_route_is_refused():
    with pytest.raises(ValueError, match="route must be one of pmap, shard_map, not 'xmap'"):
        map_learners(lambda x: x, (0,), route="xmap")


@pytest.mark.parametrize(("count", "per_call", "calls"), [(1, 4, 1), (4, 4, 1), (6, 4, 2), (9, 4, 3), (5, 1, 5), (3, None, 3)])
def test_learners_are_dealt_evenly_to_calls_of_one_program(count, per_call, calls):
    traces, runs = [], []

    def square(x, offset):
        traces.append(1)
        jax.debug.callback(lambda _: runs.append(1), x.sum(), ordered=False)
        return x**2 + offset

    x = np.arange(count * 3.0, dtype=np.float32).reshape(count, 3)
    out = map_learners(square, (0, None), per_call)(x, np.float32(1))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.asarray(out), x**2 + 1)
    assert len(traces) == 1
    rows = -(-count // calls)
    assert len(runs) in {calls, calls * rows}


def test_rows_are_cut_to_what_a_device_can_hold(monkeypatch):
    """A device that says it has little memory gets fewer learners a call, and the same numbers come out."""
    traces = []

    def heavy(x):
        traces.append(1)
        return jnp.sort(jnp.outer(x, x), axis=0).sum(0)

    x = np.random.default_rng(0).normal(size=(10, 300)).astype(np.float32)
    expected = np.stack([np.sort(np.outer(row, row), axis=0).sum(0) for row in x])
    for free, rows in ((10**9, 10), (3 * 10**6, None), (1, 1)):
        monkeypatch.setattr(parallel, "free_memory", lambda device, free=free: free)
        mapped = map_learners(heavy, (0,))
        np.testing.assert_allclose(mapped(x), expected, rtol=1e-4, atol=1e-3)
        ((chosen, _),) = mapped._plans.values()
        assert chosen == rows if rows else 1 < chosen < 10
        traces.clear()
        np.testing.assert_allclose(mapped(x), expected, rtol=1e-4, atol=1e-3)
        assert not traces


def test_learners_per_call_must_be_positive():
    with pytest.raises(ValueError, match="learners per call must be at least 1, not 0"):
        map_learners(lambda x: x, (0,), per_call=0)


def test_donated_states_are_taken_whole_or_copied_call_by_call():
    """A CPU never donates by itself, so it is made to."""

    def run(per_call):
        program = map_learners(lambda x, y: x + y, (0, None), per_call=per_call, donate=(0,))
        program._donate = (0,)
        states = jnp.arange(4.0)
        np.testing.assert_array_equal(program(states, 1.0), [1, 2, 3, 4])
        return states.is_deleted()

    assert run(per_call=4)
    assert not run(per_call=2)
    assert not run(per_call=3)
