"""The loop over an experiment's stages."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from tamherd_jax.experiments.arms import EMBEDDINGS, MEMBERS, PROBE, SINGLE, Arm
from tamherd_jax.experiments.clustering import cluster_by_trained_probe, cluster_for_controls
from tamherd_jax.experiments.early import compiled_early
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import Programs, check_memory
from tamherd_jax.experiments.state import RunState
from tamherd_jax.experiments.testing import meta_test_arm
from tamherd_jax.experiments.training import new_faults, train_arms, trained_probe

DECIDING = {MEMBERS: "herd", SINGLE: "single"}
"""By stage that may end early, the arm whose returns decide."""
TESTS_IN_A_ROW = 3


@dataclasses.dataclass(frozen=True)
class Progress:
    """One line of progress.

    Attributes:
      stage: What is being done.
      epoch, epochs: Done and planned within the stage (embedding: 1 of 1).
      returns: By arm, meta-test returns after adaptation `[S, N]`, where the stage tests.
      steps: Environment steps taken since the last line, tests included.
      work: Environment steps of the budget since the last line, tests included; for the time left.
      notes: What a person should know, a line each.
    """

    stage: str
    epoch: int
    epochs: int
    returns: dict[str, np.ndarray]
    steps: int
    work: int
    notes: tuple[str, ...] = ()


def run(plan: Plan, programs: Programs, state: RunState) -> Iterator[Progress]:
    """Run all stages: probe, embeddings and clusters, herd beside oracle, and the rest of the single learner.

    Goes on from where `state` stands and changes it in place; at every yield all its parts agree with `state.done`.
    Nothing is allocated before the first event is asked for: a snapshot may still be put into the state.

    Raises:
      ValueError: At the call, see `check_memory`.
    """
    check_memory(plan, programs.devices)
    return _run(plan, programs, state)


def _run(plan: Plan, programs: Programs, state: RunState) -> Iterator[Progress]:
    with contextlib.ExitStack() as stack:
        for number, event in enumerate(_stages(plan, programs, state)):
            if number == 0:  # not before: the first epoch's own programs have all cores
                stack.enter_context(compiled_early(plan, programs, state))
            yield event


def _stages(plan: Plan, programs: Programs, state: RunState) -> Iterator[Progress]:
    yield from _train_probes(plan, programs, state)
    if not state.done[EMBEDDINGS]:
        yield _embed_and_cluster(plan, programs, state)
    cluster_for_controls(plan, programs, state)
    yield from _train_and_test(plan, programs, state, MEMBERS, 0)
    yield from _train_and_test(plan, programs, state, SINGLE, plan.config.single_epochs - plan.epochs(SINGLE))


def train_probes(plan: Plan, programs: Programs, state: RunState) -> Iterator[Progress]:
    """Run the first stage alone; afterwards `state.probe` `[S, ...]` are the probes.

    Raises:
      ValueError: At the call, see `check_memory`.
    """
    check_memory(plan, programs.devices, (PROBE,))
    return _train_probes(plan, programs, state)


def _train_probes(plan: Plan, programs: Programs, state: RunState) -> Iterator[Progress]:
    yield from _train_and_test(plan, programs, state, PROBE, 0)
    if state.probe is None:
        state.probe = trained_probe(plan, programs, state)


def _embed_and_cluster(plan: Plan, programs: Programs, state: RunState) -> Progress:
    found = state.clustered["trained"] = cluster_by_trained_probe(plan, programs, state)
    state.done[EMBEDDINGS] = 1
    notes = tuple(f"seed {plan.seeds[index]}: {why}" for index, why in found.failures.items())
    return Progress(EMBEDDINGS, 1, 1, {}, int(np.sum(found.embedded.steps)), plan.budget.embedding * len(plan.seeds), notes)


def _train_and_test(plan: Plan, programs: Programs, state: RunState, stage: str, before: int) -> Iterator[Progress]:
    """Run the epochs of a stage that are not done yet; its learners had `before` epochs in earlier stages."""
    arms = [arm for arm in plan.arms.values() if stage in arm.stages]
    while state.done[stage] < plan.epochs(stage) and not has_reached(plan, state, stage):
        count = min(plan.config.epochs_per_call, plan.epochs(stage) - state.done[stage])
        epochs = before + state.done[stage] + np.arange(1, count + 1)
        epoch_states = train_arms(plan, programs, state, plan.training_arms(stage), epochs)
        for index, epoch in enumerate(epochs):
            for arm in arms:
                meta_test_arm(plan, programs, state, arm, epoch_states[arm.source], int(epoch), index)
        state.done[stage] += count
        yield _progress(plan, state, stage, count, arms)


def has_reached(plan: Plan, state: RunState, stage: str) -> bool:
    """Return whether the arm that decides over a stage had the return `stop_at` in its last three tests."""
    if plan.config.stop_at is None or stage not in DECIDING:
        return False
    last = state.curves_of(DECIDING[stage]).after[-TESTS_IN_A_ROW:]
    return len(last) == TESTS_IN_A_ROW and all(values.mean() >= plan.config.stop_at for values in last)


def is_trained(plan: Plan, state: RunState) -> bool:
    """Return whether every stage has run to its end."""
    stages = (PROBE, MEMBERS, SINGLE)
    ended = (state.done[stage] >= plan.epochs(stage) or has_reached(plan, state, stage) for stage in stages)
    return bool(state.done[EMBEDDINGS]) and all(ended)


def _progress(plan: Plan, state: RunState, stage: str, count: int, arms: list[Arm]) -> Progress:
    """Return the progress of the last `count` epochs of some arms."""
    curves = {arm.name: state.curves_of(arm.name) for arm in arms}
    records = (record for own in curves.values() for record in (own.steps, own.test_steps))
    return Progress(
        stage=stage,
        epoch=state.done[stage],
        epochs=plan.epochs(stage),
        returns={name: own.after[-1] for name, own in curves.items()},
        steps=sum(int(values.sum()) for record in records for values in record[-count:]),
        work=count * len(plan.seeds) * sum(map(plan.epoch_work, arms)),
        notes=tuple(line for arm in arms if arm.trains for line in new_faults(plan, state, arm, count)),
    )
