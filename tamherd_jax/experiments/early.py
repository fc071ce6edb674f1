"""Compile what later stages call while earlier ones compile and run: a newcomer's first run is mostly compilation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tamherd_jax.envs import Locomotion
from tamherd_jax.experiments.arms import EMBEDDINGS, MEMBERS, SINGLE
from tamherd_jax.experiments.herds import episode_counts
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, embed_seed, init_learner, settings_of, without_replay
from tamherd_jax.experiments.state import RunState
from tamherd_jax.experiments.training import batches
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.parallel import LearnerMap, cores
from tamherd_jax.types import PyTree

Upcoming = Iterator[tuple[LearnerMap, tuple[Any, ...]]]
"""Programs with the shapes of their arguments."""


@contextlib.contextmanager
def compiled_early(plan: Plan, programs: Programs, state: RunState) -> Iterator[None]:
    """Compile the programs that the stages to come need, in another thread, in the order in which they are called.

    Nothing is computed otherwise than without. A program that is called before its turn is compiled by its caller.
    """
    with compiling() as pool:
        if pool is not None:
            # What goes wrong here goes wrong again, and is told, where the program is called.
            with contextlib.suppress(Exception):
                for program, shapes in upcoming(plan, programs, state):
                    program.compile_early(pool, *shapes)
        yield


@contextlib.contextmanager
def compiling() -> Iterator[Executor | None]:
    """Give a pool of one thread, whose work that has not begun at the end is dropped; None where there is one core."""
    if cores() == 1:
        yield None
        return
    pool = ThreadPoolExecutor(1, "compile")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compile_recording(plan: Plan, pool: Executor | None) -> None:
    """Compile, in a thread of `pool`, what recording a trained herd's episodes will call."""
    if pool is None or not isinstance(plan.env, Locomotion) or plan.grouped:
        return
    name = plan.task_set.task_names[0]
    pool.submit(lambda: herd_shapes(plan).compile(name))


def herd_shapes(plan: Plan) -> Herd:
    """Return a trained herd of the plan whose arrays are shapes."""
    members = plan.arms["herd"].size
    probe, embedded = (jax.tree.map(lambda leaf: _array(leaf.shape[1:], leaf.dtype), part) for part in _probe_shapes(plan))
    states = jax.tree.map(lambda leaf: _array((members, *leaf.shape), leaf.dtype), probe)
    labels = np.zeros(len(plan.embedded_task), int)
    return Herd(plan.learner, plan.task_set, probe, states, plan.embedding, embedded, labels, episode_counts(plan.config))


def upcoming(plan: Plan, programs: Programs, state: RunState) -> Upcoming:
    """Yield the programs of the stages that are not done, in the order of need; those of a stage under way are compiled."""
    seen: set[LearnerMap] = set()
    for stage in (EMBEDDINGS, MEMBERS, SINGLE):
        if state.done[stage] >= plan.epochs(stage):
            continue
        for program, shapes in stage_programs(plan, programs, state, stage):
            if program not in seen:
                seen.add(program)
                yield program, shapes


def stage_programs(plan: Plan, programs: Programs, state: RunState, stage: str) -> Upcoming:
    """Yield the programs that train and test the arms of a stage, or that embed."""
    if stage == EMBEDDINGS:
        yield programs.embed, (_keys(plan, 1), _states(plan, 1, replay=False), settings_of(plan, 1))
        return
    count = min(plan.config.epochs_per_call, plan.epochs(stage) - state.done[stage])
    for learner, arms in batches([arm for arm in plan.training_arms(stage) if not arm.grouped]):
        size = sum(arm.size for arm in arms)
        rows = len(plan.seeds) * size
        weights, faults = _array((rows, len(plan.task_set))), _array((rows,), np.int32)
        data = _states(plan, size), plan.task_set.tasks, weights, faults, settings_of(plan, size)
        yield programs.train[learner], (_keys(plan, size), _array((count,), np.uint32), *data)
    for arm in (arm for arm in plan.arms.values() if stage in arm.stages):
        if arm.assign == "nearest":
            yield programs.assign, _assign_shapes(plan, arm.size)
        states = jax.tree.map(
            lambda leaf: _array((len(plan.seeds), len(plan.test_task), *leaf.shape), leaf.dtype), _state(plan)
        )
        yield programs.test[arm.explore], (_keys(plan, 1), _array((), np.uint32), states, settings_of(plan, 1))


def _assign_shapes(plan: Plan, members: int) -> tuple[Any, ...]:
    """Shapes of the arguments of `Programs.assign`."""
    membership = _array((len(plan.seeds), len(plan.embedded_task), members))
    return _keys(plan, 1), _array((), np.uint32), *_probe_shapes(plan), membership, settings_of(plan, 1)


def _probe_shapes(plan: Plan) -> tuple[PyTree, PyTree]:
    """Shapes of every seed's probe and of the tasks that it embedded, `[S, ...]`."""
    probe = _states(plan, 1, replay=False)
    return probe, jax.eval_shape(jax.vmap(lambda *row: embed_seed(plan, *row)), _keys(plan, 1), probe, settings_of(plan, 1))


def _state(plan: Plan, replay: bool = False) -> PyTree:
    """Shapes of a learner's state; without its replay unless told otherwise."""
    state = jax.eval_shape(lambda key: init_learner(plan, key), jax.random.key(0))
    return state if replay else without_replay(plan.learner, state)


def _states(plan: Plan, size: int, replay: bool = True) -> PyTree:
    """Shapes of the states of A learners of every seed, `[S A, ...]`."""
    return jax.tree.map(lambda leaf: _array((len(plan.seeds) * size, *leaf.shape), leaf.dtype), _state(plan, replay))


def _keys(plan: Plan, size: int) -> jax.ShapeDtypeStruct:
    """Shape of the keys of A learners of every seed, `[S A]`."""
    return _array((len(plan.seeds) * size,), jax.random.key(0).dtype)


def _array(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
