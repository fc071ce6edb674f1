"""The compiled programs of a plan: pure functions of one learner or one seed, mapped over the axis of all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from tamherd_jax.envs import take_tasks
from tamherd_jax.experiments.arms import MEMBERS, PROBE
from tamherd_jax.experiments.keys import PREFILL_EPOCH
from tamherd_jax.experiments.learners import tuned
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.herd.algorithm import (
    EmbeddedTasks,
    TestResult,
    assign_tasks,
    embed_training_tasks,
    meta_test,
    stratified_tasks,
)
from tamherd_jax.parallel import LearnerMap, map_learners
from tamherd_jax.types import MetaLearner, PyTree, ReplayLearner, without_replay

Numbers = Mapping[str, Any]
"""Numbers of a learner's configuration by dotted name, `[]` each; see `learners.tuned`."""
AS_PLANNED: Numbers = MappingProxyType({})
"""No number in place of the plan's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """Each is compiled when it is first called, for L learners or S seeds at once. E epochs a call, B test tasks.

    The last argument of all but `copy_replay` is `settings`: numbers of the learner's configuration by dotted name, `[L]` or
    `[S]` each, in place of the plan's. They are data, so that learners with different settings share a program.

    Attributes:
      devices: Of this process, to which learners are dealt.
      init: `key [L] -> state [L, ...]`.
      copy_replay: `(state [L], probe's state [L], weights [L, N]) -> state [L]` with the probe's replay of its tasks.
      prefill: `(key [L], state [L], tasks, weights [L, N]) -> (state [L], EpochMetrics [L])`.
      train: By learner, `(key [L], epochs [E], state [L], tasks, weights [L, N], fault [L])` to the last state `[L]` and
        per-epoch outputs `[L, E, ...]`: the state without its replay, metrics and fault.
      embed: `(key [S], probe [S]) -> EmbeddedTasks [S]`.
      assign: `(key [S], epoch, probe [S], EmbeddedTasks [S], membership [S, D, K]) -> (Assignment [S, B], steps [S])`.
      test: By number of exploration episodes, `(key [S], epoch, state [S, B]) -> TestResult` with leaves `[S, N]`.
    """

    devices: tuple[jax.Device, ...]
    init: LearnerMap
    copy_replay: LearnerMap
    prefill: LearnerMap
    train: Mapping[MetaLearner, LearnerMap]
    embed: LearnerMap
    assign: LearnerMap
    test: Mapping[int, LearnerMap]


def make_programs(
    plan: Plan, devices: Sequence[jax.Device] | None = None, per_call: int | None = None, shots: Sequence[int] = ()
) -> Programs:
    """Return the programs of a plan, none of them compiled yet.

    Args:
      plan: The plan.
      devices: Of this process; by default its first.
      per_call: Learners a device and call; see `map_learners`.
      shots: Numbers of exploration episodes to test with besides those of the arms.
    """

    def mapped(fn: Callable[..., Any], *first: Any, axes: tuple[int | None, ...], donate: tuple[int, ...] = ()) -> LearnerMap:
        @functools.wraps(fn)  # its name is the program's, in profiles and logs
        def rest(*args: Any) -> Any:
            return fn(*first, *args)

        return map_learners(rest, in_axes=axes, per_call=per_call, devices=devices, donate=donate)

    learners = {*plan.members.values(), *(arm.learner for arm in plan.arms.values() if arm.trains)}
    explored = {*shots, *(arm.explore for arm in plan.arms.values())}
    training = (0, None, 0, None, 0, 0, 0)
    return Programs(
        devices=tuple(jax.local_devices()[:1] if devices is None else devices),
        init=mapped(init_learner, plan, axes=(0, 0)),
        copy_replay=mapped(copy_replay, plan.learner, axes=(0, 0, 0)),
        prefill=mapped(prefill_replay, plan.learner, axes=(0, 0, None, 0, 0), donate=(1,)),
        train={learner: mapped(train_epochs, learner, axes=training, donate=(2,)) for learner in learners},
        embed=mapped(embed_seed, plan, axes=(0, 0, 0)),
        assign=mapped(assign_seed, plan, axes=(0, None, 0, 0, 0, 0)),
        test={explore: mapped(meta_test_seed, plan, explore, axes=(0, None, 0, 0)) for explore in explored},
    )


def check_memory(plan: Plan, devices: Sequence[jax.Device], stages: Sequence[str] = (PROBE, MEMBERS)) -> None:
    """Refuse learners whose replay does not fit into memory.

    Raises:
      ValueError: In one line that says what to change.
    """
    if not isinstance(plan.learner, ReplayLearner):
        return
    rows = [sum(arm.size for arm in plan.training_arms(stage)) for stage in stages]
    # One device keeps all learners and a second copy of those in training; of several, each holds a call's, old and new.
    alone = len(devices) == 1 or devices[0].platform == "cpu"
    plan.learner.check_memory(len(plan.seeds) * (sum(rows) + max(rows)) if alone else 2)


def settings_of(plan: Plan, size: int) -> dict[str, np.ndarray]:
    """Return the settings `[S A]` of A learners of every seed."""
    return {name: np.repeat(values, size).astype(np.float32) for name, values in plan.settings.items()}


# Shapes --------------------------------------------------------------------------------------------------------------


def state_shapes(plan: Plan) -> PyTree:
    """Return the shapes of one learner's state."""
    shapes: PyTree = jax.eval_shape(lambda key: init_learner(plan, key), jax.random.key(0))
    return shapes


def embedded_shapes(plan: Plan) -> PyTree:
    """Return the shapes of one seed's embedded tasks, an `EmbeddedTasks`."""
    probe = without_replay(plan.learner, state_shapes(plan))
    shapes: PyTree = jax.eval_shape(lambda key, probe: embed_seed(plan, key, probe), jax.random.key(0), probe)
    return shapes


def with_axes(shapes: PyTree, *axes: int) -> PyTree:
    """Return shapes with further axes in front."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), shapes)


# Functions of one learner --------------------------------------------------------------------------------------------


def init_learner(plan: Plan, key: jax.Array, settings: Numbers = AS_PLANNED) -> PyTree:
    """Return the fresh state of one learner, the same for all arms, from epoch 0 of its key."""
    return tuned(plan.learner, settings).init(jax.random.fold_in(key, 0))


def copy_replay(learner: ReplayLearner, state: PyTree, probe: PyTree, weights: jax.Array) -> PyTree:
    """Return a fresh state with the probe's replay of the tasks that a learner trains on."""
    return learner.copy_replay(state, probe, weights)


def prefill_replay(
    learner: ReplayLearner, key: jax.Array, state: PyTree, tasks: PyTree, weights: jax.Array, settings: Numbers
) -> tuple[PyTree, PyTree]:
    """Collect what a learner's first epoch needs."""
    return tuned(learner, settings).prefill(jax.random.fold_in(key, PREFILL_EPOCH), state, tasks, weights)


def train_epochs(
    learner: MetaLearner,
    key: jax.Array,
    epochs: Integer[Array, " E"],
    state: PyTree,
    tasks: PyTree,
    weights: Float[Array, " N"],
    fault: jax.Array,
    settings: Numbers,
) -> tuple[PyTree, tuple[PyTree, PyTree, jax.Array]]:
    """Train one learner for E epochs `[E]`; return its last state and the per-epoch outputs `[E, ...]`.

    Per-epoch outputs are the state without its replay, `EpochMetrics` and the fault.
    """
    learner = tuned(learner, settings)

    def step(carry: tuple[PyTree, jax.Array], number: jax.Array) -> tuple[PyTree, PyTree]:
        state, metrics, fault = train_epoch(learner, jax.random.fold_in(key, number), carry[0], tasks, weights, carry[1])
        return (state, fault), (without_replay(learner, state), metrics, fault)

    if epochs.shape[0] > 1:
        (state, _), outputs = jax.lax.scan(step, (state, fault), epochs)
    else:  # a loop of one would only cost compilation
        (state, _), outputs = step((state, fault), epochs[0])
        outputs = jax.tree.map(lambda leaf: leaf[None], outputs)
    return state, outputs


def train_epoch(
    learner: MetaLearner, key: jax.Array, state: PyTree, tasks: PyTree, weights: jax.Array, fault: jax.Array
) -> tuple[PyTree, PyTree, jax.Array]:
    """Train one learner for an epoch; return its state, `EpochMetrics` and fault. A learner with a fault stays as it was."""
    new, metrics = learner.train_epoch(key, state, tasks, weights)
    fault = jnp.where(fault >= 0, fault, first_nonfinite(without_replay(learner, new)))

    def keep(part: PyTree, old: PyTree, new: PyTree) -> PyTree:
        # Replay holds finite steps only; to choose between its old and new would copy it.
        return new if part is None else jnp.where(fault < 0, new, old)

    kept = jax.tree.map(keep, without_replay(learner, new), state, new, is_leaf=lambda part: part is None)
    return kept, metrics, fault


def first_nonfinite(state: PyTree) -> Integer[Array, ""]:
    """Return the index `[]` of the first floating-point array that holds a non-finite number, -1 where all are finite."""
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state) if _is_float(leaf)])
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def float_arrays(plan: Plan) -> list[str]:
    """Return the names of the arrays of a learner's state that `first_nonfinite` counts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(without_replay(plan.learner, state_shapes(plan)))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if _is_float(leaf)]


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


# Functions of one seed -----------------------------------------------------------------------------------------------


def embed_seed(plan: Plan, key: jax.Array, probe: PyTree, settings: Numbers = AS_PLANNED) -> EmbeddedTasks:
    """Embed the training tasks with one seed's frozen probe."""
    tasks, _ = stratified_tasks(plan.task_set.tasks, plan.config.embedding_tasks)
    learner = tuned(plan.learner, settings)
    return embed_training_tasks(learner, plan.embedding, key, probe, tasks, plan.config.embedding_episodes)


def assign_seed(
    plan: Plan,
    key: jax.Array,
    epoch: jax.Array,
    probe: PyTree,
    embedded: EmbeddedTasks,
    membership: Float[Array, "D K"],
    settings: Numbers,
) -> tuple[PyTree, jax.Array]:
    """Assign the test tasks of one seed to the nearest centroid, from fresh probe episodes."""
    key, tasks = jax.random.fold_in(key, epoch), take_tasks(plan.task_set.tasks, plan.test_task)
    episodes, learner = plan.config.probe_test_episodes, tuned(plan.learner, settings)
    return assign_tasks(learner, plan.embedding, key, probe, embedded, membership, tasks, episodes)


def meta_test_seed(plan: Plan, explore: int, key: jax.Array, epoch: jax.Array, states: PyTree, settings: Numbers) -> TestResult:
    """Meta-test one seed on all test tasks, each with its own learner of `states` `[B, ...]`; means over repeats."""
    key, index = jax.random.fold_in(key, epoch), jnp.arange(len(plan.test_task))
    tasks, learner = take_tasks(plan.task_set.tasks, plan.test_task), tuned(plan.learner, settings)
    result = meta_test(learner, key, states, index, tasks, explore, plan.config.test_episodes)
    return dataclasses.replace(result, before=mean_by_task(plan, result.before), after=mean_by_task(plan, result.after))


def mean_by_task(plan: Plan, values: PyTree) -> PyTree:
    """Return the means over repeats `[..., N]` of values of the test tasks `[..., B]`."""
    return values.reshape(*values.shape[:-1], len(plan.task_set), plan.config.test_repeats).mean(-1)
