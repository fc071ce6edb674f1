"""Everything an experiment has to remember, as named arrays and plain JSON: for checkpoints and for joining processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.herd.clustering import Clusters
from tamherd_jax.pearl import replay
from tamherd_jax.pearl.replay import ReplayBuffer
from tamherd_jax.serialization import named_arrays, named_shapes, restore_tree


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run between two epochs.

    Attributes:
      arrays: name -> array whose first axis is that of the S seeds: `states/ARM/leaf`, `curves/ARM/quantity` `[S, E, ...]`,
        `embedded/leaf`, `labels` `[S, D]`. Random keys are stored as their data, replay rings cut to what the fullest holds.
      facts: JSON: `seeds`, `done` (epochs per stage), a list over seeds of `clusters`, and for each arm with replay rings how
        many transitions its `rings` are cut to.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def take_snapshot(experiment: Experiment, states: bool = True) -> Snapshot:
    """Copy an experiment, between two events of its `run()`, to the host; without the learners' states if so asked."""
    arrays = {f"curves/{name}": np.stack([np.asarray(v) for v in values], 1) for name, values in experiment.curves.items()}
    rings = {}
    for arm, state in experiment.states.items() if states else ():
        trimmed = _map_rings(replay.trim, state)
        arrays |= named_arrays(f"states/{arm}", trimmed)
        if held := _capacities(trimmed):
            rings[arm] = held
    clusters: list[dict[str, Any]] = []
    if experiment.done["embeddings"]:
        arrays |= named_arrays("embedded", experiment.embedded)
        arrays["labels"] = np.stack([np.asarray(c.labels) for c in experiment.clusters])
        for index, found in enumerate(experiment.clusters):
            scores = {name: {str(k): float(v) for k, v in values.items()} for name, values in found.scores.items()}
            clusters.append({"k": found.k, "scores": scores, "failure": experiment.cluster_failures.get(index)})
    seeds = [int(seed) for seed in experiment.seeds]
    return Snapshot(arrays, {"seeds": seeds, "done": dict(experiment.done), "clusters": clusters, "rings": rings})


def join_snapshots(parts: Sequence[Snapshot]) -> Snapshot:
    """One snapshot of all seeds from those of processes that shared them, in their order."""
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    facts = {key: [x for part in parts for x in part.facts[key]] for key in ("seeds", "clusters")}
    return Snapshot(arrays, {**facts, "done": parts[0].facts["done"], "rings": {}})


def expected_arrays(experiment: Experiment, facts: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of every array but the curves that a snapshot of this experiment and these facts holds."""
    for prefix, tree in _templates(experiment, facts["done"]):
        tree = _of_capacities(tree, facts["rings"].get(prefix.removeprefix("states/"), ()))
        for name, leaf in named_shapes(prefix, tree).items():
            yield name, tuple(leaf.shape), str(leaf.dtype)


def check_curves(experiment: Experiment, done: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that curves have every seed and exactly the epochs done.

    Raises:
      ValueError: naming the first that has not.
    """
    for name, shape in shapes.items():
        arm = experiment.arms.get(name.split("/")[1])
        epochs = sum(done[stage] for stage in arm.stages) if arm else 0
        if tuple(shape[:2]) != (len(experiment.seeds), epochs):
            raise ValueError(f"{name} has shape {tuple(shape)}, not {len(experiment.seeds)} seeds x {epochs} epochs")


def apply_snapshot(experiment: Experiment, snapshot: Snapshot) -> None:
    """Put a checked snapshot into a fresh experiment; its `run()` goes on from there. States may be missing."""
    done, arrays = snapshot.facts["done"], snapshot.arrays
    names = [name for name in arrays if name.startswith("curves/")]
    experiment.curves = {name.removeprefix("curves/"): list(np.moveaxis(arrays[name], 1, 0)) for name in names}
    for prefix, tree in _templates(experiment, done):
        if prefix == "labels" or any(name not in arrays for name in named_shapes(prefix, tree)):
            continue
        restored = _widened(restore_tree(prefix, tree, arrays), tree)
        if prefix == "embedded":
            experiment.embedded = restored
        else:
            experiment.states[prefix.removeprefix("states/")] = restored
    experiment.clusters, experiment.cluster_failures = [], {}
    for index, found in enumerate(snapshot.facts["clusters"]):
        scores = {name: {int(k): v for k, v in values.items()} for name, values in found["scores"].items()}
        experiment.clusters.append(Clusters(arrays["labels"][index], found["k"], scores))
        if found["failure"]:
            experiment.cluster_failures[index] = found["failure"]
    experiment.done = dict(done)


def _templates(experiment: Experiment, done: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """Prefix of names and tree of shapes of what exists after `done`; states first, what is computed from them after."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    one = jax.eval_shape(experiment.init_one, key)
    seeds = len(experiment.seeds)
    for arm in experiment.arms.values():
        if arm.trains and any(done[stage] for stage in arm.stages):
            yield f"states/{arm.name}", _batched(one, seeds, arm.size)
    if done["embeddings"]:
        probe = jax.eval_shape(experiment.snapshot, one)
        yield "states/probe", _batched(probe, seeds)
        yield "labels", jax.ShapeDtypeStruct((seeds, len(experiment.embedded_index)), np.int64)
        yield "embedded", _batched(jax.eval_shape(experiment.embed_one, key, probe), seeds)


def _is_ring(node: Any) -> bool:
    return isinstance(node, ReplayBuffer)


def _map_rings(fn: Callable[[ReplayBuffer], ReplayBuffer], tree: Any) -> Any:
    return jax.tree.map(lambda node: fn(node) if _is_ring(node) else node, tree, is_leaf=_is_ring)


def _capacities(tree: Any) -> list[int]:
    return [replay.capacity_of(node) for node in jax.tree.leaves(tree, is_leaf=_is_ring) if _is_ring(node)]


def _of_capacities(tree: Any, capacities: Sequence[int]) -> Any:
    """Shapes of a tree whose rings have room for as many transitions at most, one number for each."""
    numbers = iter(capacities)

    def cut(ring: ReplayBuffer) -> ReplayBuffer:
        axis, most = len(ring.size.shape), min(next(numbers, 0), replay.capacity_of(ring))

        def room(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*leaf.shape[:axis], most, *leaf.shape[axis + 1 :]), leaf.dtype)

        return dataclasses.replace(ring, experience=jax.tree.map(room, ring.experience))

    return _map_rings(cut, tree)


def _widened(trimmed: Any, template: Any) -> Any:
    """A tree whose rings have their room again, as in the template."""
    capacities = iter(_capacities(template))
    return _map_rings(lambda ring: replay.widen(ring, next(capacities)), trimmed)


def _batched(tree: Any, *axes: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), tree)
