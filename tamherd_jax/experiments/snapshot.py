"""Everything an experiment has to remember, as named arrays and plain JSON: for checkpoints and for joining processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer

from tamherd_jax.codec import named_arrays, named_shapes, restore_tree
from tamherd_jax.experiments.arms import EMBEDDINGS, STAGES
from tamherd_jax.experiments.curves import ArmCurves
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.programs import embedded_shapes, state_shapes, with_axes
from tamherd_jax.experiments.state import ClusteredTasks, RunState
from tamherd_jax.herd.clustering import Clusters
from tamherd_jax.pearl import replay
from tamherd_jax.pearl.replay import ReplayBuffer
from tamherd_jax.types import PyTree, without_replay
from tamherd_jax.validation import PositiveInt


@dataclasses.dataclass(frozen=True)
class ClusterFacts:
    """What of one seed's clusters is not in an array.

    Attributes:
      k: Number of clusters.
      scores: By criterion and number of clusters; None where a score is not finite.
      failure: Why the tasks could not be clustered.
    """

    k: PositiveInt
    scores: dict[str, dict[str, float | None]]
    failure: str | None = None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a snapshot holds besides arrays.

    Attributes:
      seeds: `[S]` seeds.
      done: Epochs done of each stage.
      clusters: `[S]` clusters, empty before there are any.
      rings: By arm with replay rings, to how many transitions each ring is cut.
    """

    seeds: tuple[int, ...]
    done: dict[str, int]
    clusters: tuple[ClusterFacts, ...] = ()
    rings: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run between two epochs.

    Attributes:
      arrays: name -> array whose first axis is that of the S seeds: `states/ARM/leaf`, `curves/ARM/quantity` `[S, E, ...]`,
        `embedded/leaf`, `labels` `[S, D]`. Random keys are stored as their data, replay rings cut to what the fullest holds.
      facts: What is not an array.
    """

    arrays: dict[str, np.ndarray]
    facts: Facts


def take_snapshot(plan: Plan, state: RunState, learners: bool = True) -> Snapshot:
    """Copy a run state, between two epochs, to the host; without the learners' states if so asked."""
    curves = {f"{arm}/{name}": array for arm, own in state.curves.items() for name, array in own.stacked().items()}
    arrays = {f"curves/{name}": array for name, array in curves.items()}
    rings = {}
    probe = {} if state.probe is None else {"probe": state.probe}
    for name, states in (state.learners | probe).items() if learners else ():
        trimmed = _map_rings(replay.trim, states)
        arrays |= named_arrays(f"states/{name}", trimmed)
        if held := _capacities(trimmed):
            rings[name] = tuple(held)
    clusters: tuple[ClusterFacts, ...] = ()
    if found := state.clustered.get("trained"):
        arrays |= named_arrays("embedded", found.embedded)
        arrays["labels"] = np.stack([np.asarray(c.labels) for c in found.clusters])
        clusters = tuple(_describe_clusters(one, found.failures.get(index)) for index, one in enumerate(found.clusters))
    return Snapshot(arrays, Facts(tuple(int(seed) for seed in plan.seeds), dict(state.done), clusters, rings))


def _describe_clusters(found: Clusters, failure: str | None) -> ClusterFacts:
    def finite(score: float) -> float | None:
        return float(score) if np.isfinite(score) else None

    scores = {name: {str(k): finite(v) for k, v in values.items()} for name, values in found.scores.items()}
    return ClusterFacts(found.k, scores, failure)


def join_snapshots(parts: Sequence[Snapshot]) -> Snapshot:
    """One snapshot of all seeds from those of processes that shared them, in their order."""
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    seeds = tuple(seed for part in parts for seed in part.facts.seeds)
    clusters = tuple(found for part in parts for found in part.facts.clusters)
    return Snapshot(arrays, Facts(seeds, parts[0].facts.done, clusters))


def check_facts(plan: Plan, facts: Facts) -> None:
    """Check that a snapshot's facts are of this plan.

    Raises:
      ValueError: In one line.
    """
    if set(facts.done) != set(STAGES):
        raise ValueError(f"its stages are {', '.join(facts.done)}, not {', '.join(STAGES)}")
    for stage, done in facts.done.items():
        if not 0 <= done <= plan.epochs(stage):
            raise ValueError(f"it has {done} epochs of the stage {stage}, which has {plan.epochs(stage)}")
    if len(facts.clusters) != len(plan.seeds) * facts.done[EMBEDDINGS]:
        raise ValueError(f"it has clusters of {len(facts.clusters)} seeds, not of {len(plan.seeds)}")


def expected_arrays(plan: Plan, facts: Facts) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield name, shape and dtype of every array but the curves that a snapshot of this plan and these facts holds."""
    for prefix, tree in _templates(plan, facts.done):
        tree = _of_capacities(tree, facts.rings.get(prefix.removeprefix("states/"), ()))
        for name, leaf in named_shapes(prefix, tree).items():
            yield name, tuple(leaf.shape), str(leaf.dtype)


def check_curves(plan: Plan, done: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that curves have every seed and exactly the epochs done.

    Raises:
      ValueError: Naming the first that has not.
    """
    for name, shape in shapes.items():
        arm = plan.arms.get(name.split("/")[1])
        epochs = sum(done[stage] for stage in arm.stages) if arm else 0
        if tuple(shape[:2]) != (len(plan.seeds), epochs):
            raise ValueError(f"{name} has shape {tuple(shape)}, not {len(plan.seeds)} seeds x {epochs} epochs")


def apply_snapshot(plan: Plan, state: RunState, snapshot: Snapshot) -> None:
    """Put a checked snapshot into a fresh run state, which `run` goes on from. Learners' states may be missing."""
    done, arrays = snapshot.facts.done, snapshot.arrays
    state.done, state.curves = dict(done), restored_curves(arrays)
    trees = {}
    for prefix, tree in _templates(plan, done):
        if prefix != "labels" and all(name in arrays for name in named_shapes(prefix, tree)):
            trees[prefix] = _widened(restore_tree(prefix, tree, arrays), tree)
    states = {prefix.removeprefix("states/"): tree for prefix, tree in trees.items() if prefix.startswith("states/")}
    state.probe = states.pop("probe", None)
    state.learners = states
    if "embedded" in trees:
        found = snapshot.facts.clusters
        clusters = [restored_clusters(arrays["labels"][index], entry) for index, entry in enumerate(found)]
        failures = {index: entry.failure for index, entry in enumerate(found) if entry.failure}
        state.clustered = {"trained": ClusteredTasks(state.probe, trees["embedded"], clusters, failures)}


def restored_curves(arrays: dict[str, np.ndarray]) -> dict[str, ArmCurves]:
    """Return the curves `curves/ARM/QUANTITY` `[S, E, ...]` as records by arm."""
    by_arm: dict[str, dict[str, np.ndarray]] = {}
    for name in arrays:
        if name.startswith("curves/"):
            arm, quantity = name.removeprefix("curves/").split("/", 1)
            by_arm.setdefault(arm, {})[quantity] = arrays[name]
    return {arm: ArmCurves.unstacked(own) for arm, own in by_arm.items()}


def restored_clusters(labels: Integer[np.ndarray, " D"], entry: ClusterFacts) -> Clusters:
    """Return the clusters of one seed from their labels `[D]` and what the facts say of them."""
    unknown = float("nan")
    scores = {
        name: {int(k): unknown if score is None else score for k, score in values.items()}
        for name, values in entry.scores.items()
    }
    return Clusters(labels, entry.k, scores)


def _templates(plan: Plan, done: dict[str, int]) -> Iterator[tuple[str, PyTree]]:
    """Yield prefix of names and tree of shapes of what exists after `done`; states first, what is computed from them after."""
    one, seeds = state_shapes(plan), len(plan.seeds)
    for arm in plan.arms.values():
        if arm.trains and any(done[stage] for stage in arm.stages):
            yield f"states/{arm.name}", with_axes(one, seeds, arm.size)
    if done[EMBEDDINGS]:
        yield "states/probe", with_axes(without_replay(plan.learner, one), seeds)
        yield "labels", jax.ShapeDtypeStruct((seeds, len(plan.embedded_task)), np.int64)
        yield "embedded", with_axes(embedded_shapes(plan), seeds)


def _is_ring(node: PyTree) -> bool:
    return isinstance(node, ReplayBuffer)


def _map_rings(fn: Callable[[ReplayBuffer], ReplayBuffer], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda node: fn(node) if _is_ring(node) else node, tree, is_leaf=_is_ring)


def _capacities(tree: PyTree) -> list[int]:
    return [replay.capacity_of(node) for node in jax.tree.leaves(tree, is_leaf=_is_ring) if _is_ring(node)]


def _of_capacities(tree: PyTree, capacities: Sequence[int]) -> PyTree:
    """Shapes of a tree whose rings have room for as many transitions at most, one number for each."""
    numbers = iter(capacities)

    def cut(ring: ReplayBuffer) -> ReplayBuffer:
        axis, most = len(ring.size.shape), min(next(numbers, 0), replay.capacity_of(ring))

        def room(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*leaf.shape[:axis], most, *leaf.shape[axis + 1 :]), leaf.dtype)

        return dataclasses.replace(ring, experience=jax.tree.map(room, ring.experience))

    return _map_rings(cut, tree)


def _widened(trimmed: PyTree, template: PyTree) -> PyTree:
    """A tree whose rings have their room again, as in the template."""
    capacities = iter(_capacities(template))
    return _map_rings(lambda ring: replay.widen(ring, next(capacities)), trimmed)
