"""Training the learners of arms, some epochs at a time, in as few calls of compiled programs as their learners allow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from tamherd_jax.experiments.arms import Arm
from tamherd_jax.experiments.keys import learner_keys
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, float_arrays, settings_of
from tamherd_jax.experiments.state import RunState, learner_faults, member_counts, training_weights
from tamherd_jax.parallel import concatenate, one_program
from tamherd_jax.types import MetaLearner, PyTree, ReplayLearner, without_replay

Outputs = tuple[PyTree, PyTree, PyTree]
"""Per-epoch outputs of learners: states without replay, `EpochMetrics` and faults, leaves `[L, E, ...]`."""


def train_arms(plan: Plan, programs: Programs, state: RunState, arms: Sequence[Arm], epochs: np.ndarray) -> dict[str, Any]:
    """Train arms for some epochs `[E]`, numbered from 1, and record their metrics.

    Returns:
      By arm, the states of its learners without replay after each of the epochs, `[S, A, E, ...]`.
    """
    epoch_states: dict[str, Any] = {}
    for _, same in batches([arm for arm in arms if not arm.grouped]):
        epoch_states |= train_together(plan, programs, state, same, epochs)
    for arm in (arm for arm in arms if arm.grouped):
        epoch_states |= train_grouped(plan, programs, state, arm, epochs)
    return epoch_states


def batches(arms: Sequence[Arm]) -> Iterator[tuple[MetaLearner, list[Arm]]]:
    """Yield the arms that train together in one call, and their learner: those of one learner whose replay starts alike."""
    for learner, copies in dict.fromkeys((arm.learner, arm.copies_replay) for arm in arms):
        yield learner, [arm for arm in arms if (arm.learner, arm.copies_replay) == (learner, copies)]


def train_together(plan: Plan, programs: Programs, state: RunState, arms: Sequence[Arm], epochs: np.ndarray) -> dict[str, Any]:
    """Train arms of the same learner in one call; see `train_arms`."""
    if epochs[0] == 1:
        state.learners |= {arm.name: init_arm(plan, programs, state, arm) for arm in arms}
    popped = [state.learners.pop(arm.name) for arm in arms]  # so that no second reference keeps old replay alive
    states = _side_by_side(popped)
    del popped
    keys = _flatten(jnp.concatenate([learner_keys(plan.seeds, arm.role, arm.size) for arm in arms], 1))
    weights = _flatten(np.concatenate([training_weights(plan, state, arm) for arm in arms], 1))
    faults = _flatten(np.concatenate([learner_faults(plan, state, arm) for arm in arms], 1))
    settings = settings_of(plan, sum(arm.size for arm in arms))
    prefill = not arms[0].copies_replay
    rows = keys, states, weights, faults, settings
    trained = train_learners(plan, programs, arms[0].learner, *rows, epochs=epochs, prefill=prefill)
    del rows
    del states
    return _hand_out(plan, state, arms, *trained)


def train_grouped(plan: Plan, programs: Programs, state: RunState, arm: Arm, epochs: np.ndarray) -> dict[str, Any]:
    """Train a herd whose seeds have different numbers of members: those with as many share a program; see `train_arms`.

    A seed's learners beyond its members are never trained: they take no steps, and their returns and diagnostics are NaN.
    """
    if epochs[0] == 1:
        state.learners[arm.name] = init_arm(plan, programs, state, arm)
    counts = member_counts(plan, state, arm.clustered)
    keys, weights = learner_keys(plan.seeds, arm.role, arm.size), training_weights(plan, state, arm)
    states, faults = state.learners.pop(arm.name), learner_faults(plan, state, arm)
    settings = {name: values.reshape(-1, arm.size) for name, values in settings_of(plan, arm.size).items()}
    outputs: Outputs | None = None
    for count in map(int, np.unique(counts)):
        rows = np.ix_(np.flatnonzero(counts == count), np.arange(count))
        pick = functools.partial(jax.tree.map, lambda leaf, rows=rows: _flatten(leaf[rows]))
        picked = [pick(part) for part in (keys, states, weights, faults, settings)]
        learner, prefill = plan.members[count], not arm.copies_replay
        new = train_learners(plan, programs, learner, *picked, epochs=epochs, prefill=prefill)
        del picked
        outputs = _untrained(new[1], counts.size, arm.size) if outputs is None else outputs
        states, outputs = (
            jax.tree.map(lambda whole, part, rows=rows: _put(whole, rows, part), *pair)
            for pair in zip((states, outputs), new, strict=True)
        )
    return _hand_out(plan, state, [arm], *jax.tree.map(_flatten, (states, outputs)))


def train_learners(
    plan: Plan,
    programs: Programs,
    learner: MetaLearner,
    keys: jax.Array,
    states: PyTree,
    weights: Float[np.ndarray, "L N"],
    faults: Integer[np.ndarray, " L"],
    settings: dict[str, np.ndarray],
    *,
    epochs: Integer[np.ndarray, " E"],
    prefill: bool,
) -> tuple[PyTree, Outputs]:
    """Train L learners for E more epochs; return their states and per-epoch outputs.

    The first epoch's steps include those of prefilling replay, if there is any.
    """
    tasks, prefilled = plan.task_set.tasks, None
    if prefill and epochs[0] == 1 and isinstance(learner, ReplayLearner):
        states, prefilled = programs.prefill(keys, states, tasks, weights, settings)
    states, outputs = programs.train[learner](keys, epochs.astype(np.uint32), states, tasks, weights, faults, settings)
    if prefilled is not None:
        epoch_states, metrics, faults = outputs
        more = {name: _add_to_first(getattr(metrics, name), getattr(prefilled, name)) for name in ("steps", "nonfinite")}
        outputs = epoch_states, dataclasses.replace(metrics, **more), faults
    return states, outputs


def init_arm(plan: Plan, programs: Programs, state: RunState, arm: Arm) -> PyTree:
    """Return fresh states `[S, A, ...]` of an arm's learners, with the probe's replay of their tasks where they copy it."""
    states = programs.init(_flatten(learner_keys(plan.seeds, arm.role, arm.size)), settings_of(plan, arm.size))
    if arm.copies_replay:
        probe = jax.tree.map(lambda leaf: _flatten(leaf.repeat(arm.size, 1)), state.learners[plan.probe_arm])
        # Without their empty replay, which would be in memory beside what takes its place.
        weights = _flatten(training_weights(plan, state, arm))
        states = programs.copy_replay(without_replay(plan.learner, states), probe, weights)
    return _rows_of(states, len(plan.seeds), 0, arm.size)


def trained_probe(plan: Plan, programs: Programs, state: RunState) -> PyTree:
    """Return the states `[S, ...]` of the probes once they are trained; of 0 epochs, the fresh single learners."""
    if plan.config.probe_epochs:
        return first_learner(without_replay(plan.learner, state.learners[plan.probe_arm]))
    return untrained_probe(plan, programs, state)


def untrained_probe(plan: Plan, programs: Programs, state: RunState) -> PyTree:
    """Return the states `[S, ...]` of the single learners before their first epoch."""
    return first_learner(without_replay(plan.learner, init_arm(plan, programs, state, plan.arms["single"])))


def first_learner(states: PyTree) -> PyTree:
    """Return the first learner `[S, ...]` of every seed's `[S, A, ...]`."""
    return jax.tree.map(lambda leaf: leaf[:, 0], states)


def new_faults(plan: Plan, state: RunState, arm: Arm, count: int) -> list[str]:
    """Return a line for each learner of an arm that was frozen in the last `count` epochs recorded."""
    recorded = state.curves_of(arm.name).fault
    faults, names = np.stack([np.full_like(recorded[0], -1), *recorded]), float_arrays(plan)
    new = (faults[1:] >= 0) & (faults[:-1] < 0)
    return [
        f"seed {plan.seeds[s]}: learner {a} of {arm.name} frozen at its epoch {epoch + 1}: "
        f"{names[faults[epoch + 1, s, a]]} is not finite; it is left out of the statistics"
        for epoch, s, a in np.argwhere(new)
        if epoch >= len(new) - count
    ]


def _hand_out(plan: Plan, state: RunState, arms: Sequence[Arm], states: PyTree, outputs: Outputs) -> dict[str, Any]:
    """Hand each arm its rows `[S, A, ...]` of states `[L, ...]` and outputs `[L, E, ...]`; return the epoch_states."""
    epoch_states, metrics, faults = outputs
    parts = states, epoch_states, jax.tree.map(np.asarray, metrics), np.asarray(faults)
    mine, stop = {}, 0
    for arm in arms:
        start, stop = stop, stop + arm.size
        own = (_rows_of(part, len(plan.seeds), start, stop) for part in parts)
        state.learners[arm.name], mine[arm.name], metrics, faults = own
        _record(state, arm, metrics, faults)
    return mine


def _record(state: RunState, arm: Arm, metrics: PyTree, faults: np.ndarray) -> None:
    """Record `EpochMetrics` and faults of an arm's learners, `[S, A, E, ...]`."""
    curves = state.curves_of(arm.name)
    for index in range(faults.shape[2]):
        own = jax.tree.map(lambda leaf, index=index: leaf[:, :, index], metrics)
        curves.record(train_before=own.before, train_after=own.after, steps=own.steps, nonfinite=own.nonfinite)
        curves.record(fault=faults[:, :, index], **own.diagnostics)


def _put(whole: PyTree, rows: tuple[np.ndarray, ...], part: PyTree) -> PyTree:
    """Return `whole` `[S, A, ...]` with some rows replaced by those of `part` `[L, ...]`, on the host if it is there."""
    shape = np.broadcast_shapes(*(index.shape for index in rows))
    part = part.reshape(*shape, *part.shape[1:])
    if not isinstance(whole, np.ndarray):
        return whole.at[rows].set(part)
    whole = whole.copy()
    whole[rows] = np.asarray(part)
    return whole


def _untrained(outputs: Outputs, seeds: int, size: int) -> Outputs:
    """Return outputs `[S, A, E, ...]` of untrained learners: no steps, no fault, and NaN for what was not measured."""
    epoch_states, metrics, faults = outputs

    def blank(leaf: Any, value: Any, dtype: Any = None) -> np.ndarray:
        return np.full((seeds, size, *leaf.shape[1:]), value, dtype or leaf.dtype)

    unknown = jax.tree.map(lambda leaf: blank(leaf, np.nan, np.float32), metrics)
    nothing = {name: blank(getattr(metrics, name), 0) for name in ("steps", "nonfinite")}
    states = jax.tree.map(lambda leaf: jnp.zeros((seeds, size, *leaf.shape[1:]), leaf.dtype), epoch_states)
    return states, unknown.replace(**nothing), blank(faults, -1)


def _add_to_first(values: PyTree, more: PyTree) -> PyTree:
    """Return `[L, E]` with `[L]` added to its first epoch."""
    first = np.arange(values.shape[1]) == 0
    return values + first.astype(values.dtype) * more[:, None]


def _flatten(leaf: Any) -> Any:
    """Return `[S, A, ...]` as `[S A, ...]`."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


@one_program
def _side_by_side(arms: Sequence[PyTree]) -> PyTree:
    """Join states `[S, A, ...]` of some arms to `[S sum(A), ...]`, a seed's learners in a row."""
    return jax.tree.map(lambda *leaves: _flatten(concatenate(leaves, 1)), *arms)


@functools.partial(one_program, static=(1, 2, 3))
def _rows_of(tree: PyTree, seeds: int, start: int, stop: int) -> PyTree:
    """Return learners `start` to `stop` `[S, stop - start, ...]` of every seed's, of leaves `[S A, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(seeds, len(leaf) // seeds, *leaf.shape[1:])[:, start:stop], tree)
