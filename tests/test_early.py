"""Compilation in the background: what later stages call, with the shapes that they call it with, and nothing is lost."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_calls import recorded_calls, signature

from tamherd_jax.experiments import early
from tamherd_jax.experiments.arms import MEMBERS
from tamherd_jax.experiments.early import upcoming
from tamherd_jax.experiments.run import Progress
from tamherd_jax.experiments.state import RunState
from tamherd_jax.parallel import map_learners

POOL_NAME = "compile"


def test_what_is_compiled_early_is_what_is_called(fresh_toy):
    with recorded_calls() as calls:
        list(fresh_toy.run())
    programs = fresh_toy.programs
    planned = dict(upcoming(fresh_toy.plan, programs, RunState()))
    assert set(planned) == {*programs.train.values(), *programs.test.values(), programs.embed, programs.assign}
    for program, shapes in planned.items():
        assert calls[program] == {signature(shapes())}


def test_a_finished_run_compiles_nothing(finished_toy):
    assert not list(upcoming(finished_toy.plan, finished_toy.programs, finished_toy.state))


def test_no_thread_is_left_behind(fresh_toy):
    events = fresh_toy.run()
    next(events)
    events.close()
    for thread in threading.enumerate():
        if thread.name.startswith(POOL_NAME):
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("begun", [True, False])
def test_a_call_waits_for_its_program_or_compiles_it(begun):
    traced = []

    def double(x):
        traced.append(threading.current_thread().name)
        return 2.0 * x

    program, shapes = map_learners(double, (0,)), jax.ShapeDtypeStruct((3, 2), jnp.float32)
    gate = threading.Event()
    with ThreadPoolExecutor(1, POOL_NAME) as pool:
        if not begun:
            pool.submit(gate.wait)  # the only thread is busy until the call has returned
        program.compile_early(pool, lambda: (shapes,))
        if begun:
            pool.submit(lambda: None).result()
        result = program(np.ones((3, 2), np.float32))
        gate.set()
    np.testing.assert_array_equal(result, np.full((3, 2), 2.0))
    assert len(traced) == 1
    assert traced[0].startswith(POOL_NAME) == begun


def test_what_goes_wrong_early_goes_wrong_in_the_call():
    def wrong(x):
        raise ValueError("no such thing")

    program = map_learners(wrong, (0,))
    with ThreadPoolExecutor(1) as pool:
        program.compile_early(pool, lambda: (jax.ShapeDtypeStruct((2,), jnp.float32),))
    with pytest.raises(ValueError, match="no such thing"):
        program(np.ones(2, np.float32))


def waiting_pool(*arguments):
    """A pool that has done what it is given before it returns."""
    pool = ThreadPoolExecutor(*arguments)
    submit = pool.submit
    pool.submit = lambda work: submit(work).result()
    return pool


def test_recording_a_trained_herd_compiles_nothing_new(finished_toy, monkeypatch, caplog):
    monkeypatch.setattr(early, "Locomotion", type(finished_toy.plan.env))
    monkeypatch.setattr(early, "ThreadPoolExecutor", waiting_pool)
    started = Progress(MEMBERS, 1, 5, {}, 0, 0)
    assert list(early.recording_compiled_early(finished_toy.plan, iter([started]))) == [started]
    herd, name = finished_toy.herd(), finished_toy.plan.task_set.task_names[0]
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        herd.adapt(jax.random.key(0), name)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling jit(_a")]
    assert not [line for line in compiled if line.startswith(("Compiling jit(_assign)", "Compiling jit(_adapt)"))]
