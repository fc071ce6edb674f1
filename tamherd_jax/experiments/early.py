"""Compile what later stages call while earlier ones compile and run: a newcomer's first run is mostly compilation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from tamherd_jax.envs import Locomotion
from tamherd_jax.experiments.arms import EMBEDDINGS, MEMBERS, SINGLE
from tamherd_jax.experiments.herds import episode_counts
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, embedded_shapes, settings_of, state_shapes, with_axes
from tamherd_jax.experiments.state import RunState
from tamherd_jax.experiments.training import batches
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.parallel import LearnerMap, cores
from tamherd_jax.types import PyTree, acting, without_replay

if TYPE_CHECKING:
    from tamherd_jax.experiments.run import Progress

Shapes: TypeAlias = Callable[[], tuple[Any, ...]]
"""Returns the shapes of a program's arguments. Finding them may take tracing, which is left to the thread that compiles."""
Upcoming: TypeAlias = Iterator[tuple[LearnerMap, Shapes]]


@contextlib.contextmanager
def compiled_early(plan: Plan, programs: Programs, state: RunState) -> Iterator[None]:
    """Compile the programs that the stages to come need, in another thread, in the order in which they are called.

    Nothing is computed otherwise than without. A program that is called before its turn is compiled by its caller, where
    whatever went wrong in the thread goes wrong again.
    """
    with compiling() as pool:
        if pool is not None:
            for program, shapes in upcoming(plan, programs, state):
                program.compile_early(pool, shapes)
        yield


def recording_compiled_early(plan: Plan, events: Iterator[Progress]) -> Iterator[Progress]:
    """Yield the events of a run; once the herd trains, compile in another thread what recording its episodes will call."""
    with compiling() as pool:
        waiting = pool is not None and isinstance(plan.env, Locomotion) and not plan.grouped
        for event in events:
            if waiting and pool is not None and event.stage == MEMBERS:
                pool.submit(lambda: herd_shapes(plan).compile(plan.task_set.task_names[0]))
                waiting = False
            yield event


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


def herd_shapes(plan: Plan) -> Herd:
    """Return a trained herd of the plan whose arrays are shapes."""
    probe = acting(plan.learner, state_shapes(plan))
    members, labels = with_axes(probe, plan.arms["herd"].size), np.zeros(len(plan.embedded_task), int)
    counts = episode_counts(plan.config)
    return Herd(plan.learner, plan.task_set, probe, members, plan.embedding, embedded_shapes(plan), labels, counts)


def upcoming(plan: Plan, programs: Programs, state: RunState) -> Upcoming:
    """Yield the programs of the stages that are not done, in the order of need; those of a stage under way are compiled."""
    seen: set[LearnerMap] = set()
    for stage in (EMBEDDINGS, MEMBERS, SINGLE):
        if state.done[stage] < plan.epochs(stage):
            for program, shapes in stage_programs(plan, programs, state, stage):
                if program not in seen:
                    seen.add(program)
                    yield program, shapes


def stage_programs(plan: Plan, programs: Programs, state: RunState, stage: str) -> Upcoming:
    """Yield the programs that train and test the arms of a stage, or that embed."""
    if stage == EMBEDDINGS:
        yield programs.embed, functools.partial(_embed_arguments, plan)
        return
    epochs = min(plan.config.epochs_per_call, plan.epochs(stage) - state.done[stage])
    for learner, arms in batches([arm for arm in plan.training_arms(stage) if not arm.grouped]):
        yield programs.train[learner], functools.partial(_train_arguments, plan, sum(arm.size for arm in arms), epochs)
    for arm in (arm for arm in plan.arms.values() if stage in arm.stages):
        if arm.assign == "nearest":
            yield programs.assign, functools.partial(_assign_arguments, plan, arm.size)
        yield programs.test[arm.explore], functools.partial(_test_arguments, plan)


# Shapes of the arguments of each of `Programs`; S seeds, A learners of each ------------------------------------------


def _embed_arguments(plan: Plan) -> tuple[Any, ...]:
    return _keys(plan, 1), _probes(plan), settings_of(plan, 1)


def _train_arguments(plan: Plan, size: int, epochs: int) -> tuple[Any, ...]:
    rows = len(plan.seeds) * size
    weights, faults = _array((rows, len(plan.task_set))), _array((rows,), np.int32)
    states = with_axes(state_shapes(plan), rows)
    numbers = _array((epochs,), np.uint32)
    return _keys(plan, size), numbers, states, plan.task_set.tasks, weights, faults, settings_of(plan, size)


def _assign_arguments(plan: Plan, members: int) -> tuple[Any, ...]:
    seeds = len(plan.seeds)
    embedded, membership = with_axes(embedded_shapes(plan), seeds), _array((seeds, len(plan.embedded_task), members))
    return _keys(plan, 1), _array((), np.uint32), _probes(plan), embedded, membership, settings_of(plan, 1)


def _test_arguments(plan: Plan) -> tuple[Any, ...]:
    return _keys(plan, 1), _array((), np.uint32), _probes(plan, len(plan.test_task)), settings_of(plan, 1)


def _probes(plan: Plan, *axes: int) -> PyTree:
    """States without replay, `[S, ...]` with further axes after S."""
    return with_axes(without_replay(plan.learner, state_shapes(plan)), len(plan.seeds), *axes)


def _keys(plan: Plan, size: int) -> jax.ShapeDtypeStruct:
    return _array((len(plan.seeds) * size,), jax.random.key(0).dtype)


def _array(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
