"""Running an experiment: all seeds and arms as rows of the learner axis, stage by stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.envs import Locomotion, TaskSet, ml2
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.ledger import Budget
from tamherd_jax.herd.algorithm import EmbeddedTasks, assign_tasks, embed_training_tasks, meta_test, stratified_tasks
from tamherd_jax.herd.clustering import Clusters, cluster, membership_weights
from tamherd_jax.herd.embeddings import make_embedding
from tamherd_jax.maml.learner import MAML
from tamherd_jax.parallel import concatenate, map_learners

_ROLES = ("single", "oracle", "herd", "embed", "cluster", "assign", "test_single", "test_oracle", "test_herd")
"""Every random number descends from (seed, role, index, epoch); a new role goes to the end."""

STAGES = ("probe", "embeddings", "herd and oracle", "single")
"""In the order of a run."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """One line of progress.

    Attributes:
      stage: what is being done.
      epoch, epochs: done and planned within the stage (embedding: 1 of 1).
      returns: arm -> `[S, N]` meta-test return after adaptation, where the stage tests.
      steps: environment steps taken since the last line, tests included.
      work: environment steps of the budget since the last line, tests included; for the time left.
      notes: what a person should know, a line each.
    """

    stage: str
    epoch: int
    epochs: int
    returns: dict[str, np.ndarray]
    steps: int
    work: int
    notes: tuple[str, ...] = ()


class Experiment:
    """The compiled programs of one configuration, and the loop over its stages.

    `run()` yields a `Progress` per epoch; afterwards `curves`, `clusters` and `embedded` hold what the results need. At every
    yield all attributes agree with `done`, and `run()` goes on from there (see `experiments.snapshot`). Axes: S seeds, N tasks,
    A learners of an arm (oracle: modes; herd: members).

    Args:
      config: what to run.
      env, task_set: replace ML2, for tests and for users' own tasks.
      seeds: `[S]` some of the configuration's seeds, where several processes share them.
      devices: of this process, that the learners are dealt to; by default its first.
      per_call: learners a device and call; see `map_learners`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        env: Any = None,
        task_set: TaskSet | None = None,
        *,
        seeds: Sequence[int] | np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
        per_call: int | None = None,
    ):
        self.config = config
        self.task_set = ml2() if task_set is None else task_set
        self.env = Locomotion(config.physics, config.expected_action_scale) if env is None else env
        self.members, self.modes = int(config.clustering.clusters), len(self.task_set.mode_names)
        self.seeds = np.arange(config.first_seed, config.first_seed + config.seeds) if seeds is None else np.asarray(seeds)
        self._map = functools.partial(map_learners, devices=devices, per_call=per_call)
        draws = config.draws_per_task * len(self.task_set)
        self.single = MAML(self.env, draws, config.maml)
        self.member = MAML(self.env, max(1, draws // self.members), config.maml)
        # Where clusters are as many as modes, herd and oracle share one compiled program.
        self.expert = self.member if self.members == self.modes else MAML(self.env, max(1, draws // self.modes), config.maml)
        self.embedding = make_embedding(config.embedding)
        self.curves: dict[str, list[np.ndarray]] = {}
        self.clusters: list[Clusters] = []
        self.embedded: EmbeddedTasks
        self.cluster_failures: dict[int, str] = {}
        self.states: dict[str, Any] = {}
        self.done = dict.fromkeys(STAGES, 0)

    @property
    def budget(self) -> Budget:
        """Environment steps that each part may take."""
        c = self.config
        return Budget(
            single_epoch=self.single.steps_per_epoch,
            herd_epoch=self.members * self.member.steps_per_epoch,
            oracle_epoch=self.modes * self.expert.steps_per_epoch,
            probe=c.probe_epochs * self.single.steps_per_epoch,
            embedding=c.embedding_tasks * c.embedding_episodes * c.maml.horizon,
        )

    def run(self) -> Iterator[Progress]:
        """All stages: probe, embeddings and clusters, herd beside oracle, and the rest of the single learner."""
        c = self.config
        yield from self.train_probes()
        if "probe" not in self.states:
            self.states["probe"] = jax.tree.map(lambda leaf: leaf[:, 0], self.states["single"])
        if not self.done["embeddings"]:
            yield self._embed_and_cluster()
        yield from self._train_herd_and_oracle()
        yield from self._train_single("single", c.probe_epochs, c.single_epochs)

    def train_probes(self) -> Iterator[Progress]:
        """The first stage alone: the single learners, until they are the probes."""
        if "single" not in self.states:
            self.states["single"] = self._init("single", 1)
        yield from self._train_single("probe", 0, self.config.probe_epochs)

    def _train_single(self, stage: str, start: int, stop: int) -> Iterator[Progress]:
        weights = np.ones((len(self.seeds), 1, len(self.task_set)), np.float32)
        member = np.zeros((len(self.seeds), len(self.task_set)), np.int32)
        for epoch in range(start + self.done[stage] + 1, stop + 1):
            self._train(self.single, ("single",), {"single": weights}, epoch)
            self._test("single", self.config.explore_episodes, member, epoch)
            yield self._progress(stage, epoch - start, stop - start, ("single",))

    def _train_herd_and_oracle(self) -> Iterator[Progress]:
        c, seeds = self.config, len(self.seeds)
        weights = {"oracle": np.tile(self.task_set.mode_weights(), (seeds, 1, 1)), "herd": self.member_weights()}
        if "herd" not in self.states:
            self.states["oracle"] = self._init("oracle", self.modes)
            self.states["herd"] = self._init("herd", self.members)
        modes = np.tile(self.task_set.modes.astype(np.int32), (seeds, 1))
        for epoch in range(self.done["herd and oracle"] + 1, c.member_epochs + 1):
            if self.expert is self.member:
                self._train(self.member, ("oracle", "herd"), weights, epoch)
            else:
                self._train(self.expert, ("oracle",), weights, epoch)
                self._train(self.member, ("herd",), weights, epoch)
            self._test("oracle", c.explore_episodes, modes, epoch)
            self._test("herd", c.explore_episodes - c.probe_test_episodes, self._assign(epoch), epoch)
            yield self._progress("herd and oracle", epoch, c.member_epochs, ("herd", "oracle"))

    @functools.cached_property
    def embedded_index(self) -> np.ndarray:
        """`[D]` the task that each embedded training task is a draw of."""
        return np.asarray(stratified_tasks(self.task_set.tasks, self.config.embedding_tasks)[1])

    @functools.cached_property
    def embed_one(self) -> Callable[[jax.Array, Any], EmbeddedTasks]:
        """Embeds the training tasks with one seed's frozen probe: a pure function of a key and the probe's state."""
        tasks, _ = stratified_tasks(self.task_set.tasks, self.config.embedding_tasks)
        episodes = self.config.embedding_episodes
        return lambda key, probe: embed_training_tasks(self.single, self.embedding, key, probe, tasks, episodes)

    def _embed_and_cluster(self) -> Progress:
        """Embed the training tasks with every seed's frozen probe and cluster each seed's own."""
        self.embedded = self._map(self.embed_one, in_axes=(0, 0))(self._keys("embed"), self.states["probe"])
        grams = np.asarray(self.embedded.gram, np.float64)
        self.clusters = [self._cluster(index, gram) for index, gram in enumerate(grams)]
        self.done["embeddings"] = 1
        steps = int(np.sum(self.embedded.steps))
        notes = tuple(f"seed {self.seeds[i]}: {why}" for i, why in self.cluster_failures.items())
        return Progress("embeddings", 1, 1, {}, steps, self.budget.embedding * len(self.seeds), notes)

    def _cluster(self, index: int, gram: np.ndarray) -> Clusters:
        """One seed's clusters; where there can be none, equal shares keep its rows busy and the seed's herd is not counted."""
        try:
            return cluster(gram, self.config.clustering, int(self.seeds[index]))
        except ValueError as error:
            self.cluster_failures[index] = str(error)
            return Clusters(np.arange(len(gram)) % self.members, self.members, {"silhouette": {}})

    def member_weights(self) -> np.ndarray:
        """`[S, K, N]` each member's distribution over tasks: the empirical one of its cluster, however impure."""
        index = np.asarray(self.embedded_index)
        rows = [membership_weights(c.labels, index, len(self.task_set), self.members) for c in self.clusters]
        return np.stack(rows).astype(np.float32)

    def _keys(self, role: str, index: int = 0) -> jax.Array:
        """`[S]` one key per seed for a role; a seed's keys do not depend on which other seeds run."""
        base = jnp.stack([jax.random.key(int(seed)) for seed in self.seeds])
        return jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, _ROLES.index(role)), index))(base)

    def _row_keys(self, role: str, rows: int) -> jax.Array:
        """`[S, A]` one key per learner."""
        return jnp.stack([self._keys(role, index) for index in range(rows)], axis=1)

    def init_one(self, key: jax.Array) -> Any:
        """Fresh state of one learner, the same for all arms: epoch 0 of the learner's key."""
        return self.single.init(jax.random.fold_in(key, 0))

    @functools.cached_property
    def _init_program(self) -> Any:
        return self._map(self.init_one, in_axes=(0,))

    def _init(self, role: str, rows: int) -> Any:
        """Fresh states `[S, A, ...]`."""
        states = self._init_program(_flatten(self._row_keys(role, rows)))
        return jax.tree.map(lambda leaf: leaf.reshape(len(self.seeds), rows, *leaf.shape[1:]), states)

    @functools.cache  # noqa: B019 (an Experiment lives as long as its process)
    def _train_program(self, learner: Any) -> Any:
        """Compiled training epoch for the flat axis of L = S A learners; one with a fault stays as it was."""

        def epoch(row_key, epoch, state, tasks, weights, fault):
            new, metrics = learner.train_epoch(jax.random.fold_in(row_key, epoch), state, tasks, weights)
            fault = jnp.where(fault >= 0, fault, first_nonfinite(new))
            state = jax.tree.map(lambda old, new: jnp.where(fault < 0, new, old), state, new)
            return state, metrics, fault

        return self._map(epoch, in_axes=(0, None, 0, None, 0, 0), donate=(2,))

    def _train(self, learner: Any, arms: tuple[str, ...], weights: dict[str, np.ndarray], epoch: int) -> None:
        """One epoch of all learners of some arms in one call; records their metrics."""
        sizes = [weights[arm].shape[1] for arm in arms]
        seeds = len(self.seeds)
        states = jax.tree.map(lambda *leaves: _flatten(concatenate(leaves, 1)), *(self.states[arm] for arm in arms))
        keys = _flatten(jnp.concatenate([self._row_keys(arm, size) for arm, size in zip(arms, sizes, strict=True)], 1))
        flat_weights = _flatten(np.concatenate([weights[arm] for arm in arms], 1))
        faults = _flatten(np.concatenate([self.faults(arm, size) for arm, size in zip(arms, sizes, strict=True)], 1))
        program = self._train_program(learner)
        out = program(keys, np.uint32(epoch), states, self.task_set.tasks, flat_weights, faults)
        states, metrics, faults = jax.tree.map(lambda leaf: leaf.reshape(seeds, sum(sizes), *leaf.shape[1:]), out)
        for arm, stop in zip(arms, np.cumsum(sizes), strict=True):
            rows = slice(stop - sizes[arms.index(arm)], stop)
            self.states[arm] = jax.tree.map(lambda leaf, rows=rows: leaf[:, rows], states)
            own = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf[:, rows]), metrics)
            self._record(arm, train_before=own.before, train_after=own.after, steps=own.steps, nonfinite=own.nonfinite)
            self._record(arm, fault=faults[:, rows], **own.diagnostics)

    def faults(self, arm: str, rows: int) -> np.ndarray:
        """`[S, A]` -1 for a sound learner, else the leaf of its state that stopped being finite, when it was frozen."""
        recorded = self.curves.get(f"{arm}/fault")
        return recorded[-1] if recorded else np.full((len(self.seeds), rows), -1, np.int32)

    @functools.cached_property
    def float_leaves(self) -> list[str]:
        """Names of the leaves of a learner's state that a fault counts."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(self.init_one, jax.random.key(0)))
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if _is_float(leaf)]

    def _new_faults(self, arm: str) -> list[str]:
        """A line for each learner frozen in the epoch just recorded."""
        recorded = self.curves[f"{arm}/fault"]
        new = (recorded[-1] >= 0) & (recorded[-2] < 0 if len(recorded) > 1 else True)
        return [
            f"seed {self.seeds[s]}: learner {a} of {arm} frozen at its epoch {len(recorded)}: "
            f"{self.float_leaves[recorded[-1][s, a]]} is not finite; it is left out of the statistics"
            for s, a in np.argwhere(new)
        ]

    @functools.cache  # noqa: B019 (an Experiment lives as long as its process)
    def _test_program(self, explore: int) -> Any:
        """Compiled meta-test of one seed on all tasks, with `explore` exploration episodes, for the axis of seeds."""

        def test(key, epoch, states):
            key, member = jax.random.fold_in(key, epoch), jnp.arange(len(self.task_set))
            return meta_test(self.single, key, states, member, self.task_set.tasks, explore, self.config.test_episodes)

        return self._map(test, in_axes=(0, None, 0))

    def _test(self, arm: str, explore: int, member: np.ndarray | jax.Array, epoch: int) -> None:
        """Meta-test every task with the learner of the arm that `member` `[S, N]` names; records the returns."""
        # Every task's learner is picked out here, so that arms of any number of learners share one program.
        seed = np.arange(len(self.seeds))[:, None]
        states = jax.tree.map(lambda leaf: leaf[seed, member], self.states[arm])
        result = self._test_program(explore)(self._keys(f"test_{arm}"), np.uint32(epoch), states)
        self._record(arm, before=result.before, after=result.after, test_steps=result.steps, test_nonfinite=result.nonfinite)

    @functools.cached_property
    def _assign_program(self) -> Any:
        """Compiled assignment of all tasks for S seeds."""
        c = self.config

        def assign(key, epoch, probe, embedded, membership):
            key = jax.random.fold_in(key, epoch)
            tasks = self.task_set.tasks
            return assign_tasks(self.single, self.embedding, key, probe, embedded, membership, tasks, c.probe_test_episodes)

        return self._map(assign, in_axes=(0, None, 0, 0, 0))

    def _assign(self, epoch: int) -> jax.Array:
        """`[S, N]` the member that each task is assigned to, from fresh probe episodes; records it."""
        membership = np.stack([np.eye(self.members, dtype=np.float32)[c.labels] for c in self.clusters])
        keys = self._keys("assign")
        assignment, steps = self._assign_program(keys, np.uint32(epoch), self.states["probe"], self.embedded, membership)
        self._record("herd", member=assignment.nearest, confidence=assignment.confidence, assign_steps=steps)
        return assignment.nearest.astype(np.int32)

    def _record(self, arm: str, **values: Any) -> None:
        for name, value in values.items():
            self.curves.setdefault(f"{arm}/{name}", []).append(np.asarray(value))

    @property
    def total_work(self) -> int:
        """Sum of `Progress.work` over a whole run."""
        return self._work(dict.fromkeys(STAGES, 0))

    @property
    def work_left(self) -> int:
        """Sum of `Progress.work` over what is not done yet."""
        return self._work(self.done)

    def _work(self, done: dict[str, int]) -> int:
        c, b = self.config, self.budget
        epochs = c.single_epochs - done["probe"] - done["single"]
        work = epochs * (b.single_epoch + self._test_work) + (1 - done["embeddings"]) * b.embedding
        work += (c.member_epochs - done["herd and oracle"]) * (b.herd_epoch + b.oracle_epoch + 2 * self._test_work)
        return len(self.seeds) * work

    @property
    def _test_work(self) -> int:
        """Environment steps of one arm's meta-test."""
        c = self.config
        return (c.explore_episodes + c.test_episodes) * c.maml.horizon * len(self.task_set)

    def _progress(self, stage: str, epoch: int, epochs: int, arms: tuple[str, ...]) -> Progress:
        """Progress of the epoch just recorded for some arms."""
        self.done[stage] = epoch
        latest = {name: values[-1] for name, values in self.curves.items()}
        steps = sum(int(latest[f"{arm}/{kind}"].sum()) for arm in arms for kind in ("steps", "test_steps"))
        training = {"single": self.budget.single_epoch, "herd": self.budget.herd_epoch, "oracle": self.budget.oracle_epoch}
        work = len(self.seeds) * sum(training[arm] + self._test_work for arm in arms)
        notes = tuple(line for arm in arms for line in self._new_faults(arm))
        return Progress(stage, epoch, epochs, {arm: latest[f"{arm}/after"] for arm in arms}, steps, work, notes)


def first_nonfinite(state: Any) -> jax.Array:
    """`[]` index of the first floating-point leaf that holds a number that is not finite, -1 where all are finite."""
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state) if _is_float(leaf)])
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _flatten(leaf: Any) -> Any:
    """`[S, A, ...]` to `[S A, ...]`."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
