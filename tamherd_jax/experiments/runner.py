"""Running an experiment: all seeds and arms as rows of the learner axis, stage by stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.envs import TaskSet, get_task_set, make_environment, take_tasks
from tamherd_jax.experiments.arms import EMBEDDINGS, MEMBERS, PROBE, SINGLE, STAGES, Arm, Partition
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.learners import doubled_gradient_steps, make_learner, make_probe_learner
from tamherd_jax.experiments.ledger import Budget
from tamherd_jax.herd.algorithm import EmbeddedTasks, assign_tasks, embed_training_tasks, meta_test, stratified_tasks
from tamherd_jax.herd.clustering import Clusters, cluster, membership_weights
from tamherd_jax.herd.embeddings import make_embedding
from tamherd_jax.parallel import concatenate, map_learners, one_program
from tamherd_jax.types import ReplayLearner

_ROLES = (
    *("single", "oracle", "herd", "embed", "cluster", "assign", "test_single", "test_oracle", "test_herd"),
    *("random_assignment", "random_clusters", "probe", "test_probe"),
)
"""Every random number descends from (seed, role, index, epoch); a new role goes to the end."""

_PREPARATION = np.uint32(2**32 - 1)
"""In place of an epoch: what is collected before the first."""


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
    """The compiled programs of one configuration, and the loop over its stages and arms.

    `run()` yields a `Progress` per epoch; afterwards `curves`, `clusters` and `embedded` hold what the results need. At every
    yield all attributes agree with `done`, and `run()` goes on from there (see `experiments.snapshot`). Axes: S seeds, N tasks,
    A learners of an arm (oracle: modes; herd: members), B = N R test tasks, R repeats of each of the N.

    Args:
      config: what to run.
      env, task_set: replace the configuration's, for tests and for users' own tasks.
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
        self.task_set = get_task_set(config.tasks) if task_set is None else task_set
        if env is None:
            env = make_environment(
                self.task_set, config.physics, config.expected_action_scale, walker_frame_skip=config.walker_frame_skip
            )
        self.env = env
        self.members, self.modes = config.clustering.most, len(self.task_set.mode_names)
        self.seeds = np.arange(config.first_seed, config.first_seed + config.seeds) if seeds is None else np.asarray(seeds)
        self.devices = jax.local_devices()[:1] if devices is None else list(devices)
        self._map = functools.partial(map_learners, devices=devices, per_call=per_call)
        # Where clusters are as many as modes, herd and oracle share one compiled program.
        self.single, self.member, self.expert = map(self.learner_of, (1, self.members, self.modes))
        self.embedding = make_embedding(config.embedding)
        single, oracle, herd = self._main_arms()
        self.probe_arm = config.probe if config.probe != "meta" and config.probe_epochs else single.name
        probes = [self._own_probe(single)] if self.probe_arm != single.name else []
        single = dataclasses.replace(single, stages=(SINGLE,)) if probes else single
        self.arms = {arm.name: arm for arm in (single, oracle, herd, *probes, *self._controls(single, herd))}
        self.curves: dict[str, list[np.ndarray]] = {}
        self.clusters: list[Clusters] = []
        self.embedded: EmbeddedTasks
        self.cluster_failures: dict[int, str] = {}
        self.states: dict[str, Any] = {}
        self._trail: dict[str, Any] = {}  # what to test of the epochs of the last call, `[S, A, E, ...]`
        self.done = dict.fromkeys(STAGES, 0)

    @functools.cache  # noqa: B019 (an Experiment lives as long as its process)
    def learner_of(self, count: int) -> Any:
        """The learner, of `count` that share an epoch's task draws."""
        return make_learner(self.config, self.env, len(self.task_set), count)

    @property
    def grouped(self) -> bool:
        """Whether every seed has its own number of members."""
        return self.config.clustering.clusters == "auto"

    def _main_arms(self) -> tuple[Arm, ...]:
        """The paper's three."""
        c, b = self.config, self.budget
        single = Arm(
            name="single",
            source="single",
            role="single",
            stages=(PROBE, SINGLE),
            learner=self.single,
            size=1,
            weights=lambda: np.ones((len(self.seeds), 1, len(self.task_set)), np.float32),
            assign=self._the_only_learner,
            explore=c.explore_episodes,
            budget=b.single,
        )
        oracle = dataclasses.replace(
            single,
            name="oracle",
            source="oracle",
            role="oracle",
            stages=(MEMBERS,),
            learner=self.expert,
            size=self.modes,
            weights=lambda: np.tile(self.task_set.mode_weights(), (len(self.seeds), 1, 1)),
            assign=self._learner_of_mode,
            budget=b.oracle,
        )
        herd = dataclasses.replace(
            oracle,
            name="herd",
            source="herd",
            role="herd",
            learner=self.member,
            size=self.members,
            grouped=self.grouped,
            weights=self.member_weights,
            assign=functools.partial(self._nearest_member, "herd"),
            explore=c.explore_episodes - c.probe_test_episodes,
            # What the probe collected is charged already, its initial collection included.
            budget=dataclasses.replace(b, preparation=0).herd if c.reuse_probe else b.herd,
            charged=(PROBE, EMBEDDINGS),
            inherits=c.reuse_probe,
        )
        return single, oracle, herd

    def _own_probe(self, single: Arm) -> Arm:
        """A probe that is not the single learner: trained, tested and counted as that would be for as long."""
        learner = make_probe_learner(self.config, self.env, len(self.task_set))
        return dataclasses.replace(
            single, name=self.config.probe, source=self.config.probe, role="probe", stages=(PROBE,), learner=learner
        )

    def _controls(self, single: Arm, herd: Arm) -> list[Arm]:
        """The configured controls: the arm that each is compared with, and what differs from it."""

        def trained(arm: Arm, name: str, **changes: Any) -> Arm:
            return dataclasses.replace(arm, name=name, source=name, **changes)

        def clustered(name: str, **changes: Any) -> Arm:
            weights, assign = (functools.partial(fn, name) for fn in (self.member_weights, self._nearest_member))
            return trained(herd, name, weights=weights, assign=assign, **changes)

        make: dict[str, Callable[[], Arm]] = {
            "random-assignment": lambda: dataclasses.replace(herd, name="random-assignment", assign=self._random_member),
            "oracle-assignment": lambda: dataclasses.replace(herd, name="oracle-assignment", assign=self._member_of_mode),
            "random-clusters": lambda: clustered("random-clusters"),
            "untrained-probe": lambda: clustered(
                "untrained-probe", budget=self.budget.untrained_herd, charged=(EMBEDDINGS,), inherits=False
            ),
            "double-gradient": lambda: trained(
                single,
                "double-gradient",
                learner=make_learner(doubled_gradient_steps(self.config), self.env, len(self.task_set)),
            ),
        }
        return [make[name]() for name in make if name in self.config.controls]

    def check_memory(self, stages: tuple[str, ...] = (PROBE, MEMBERS)) -> None:
        """Refuse learners whose replay does not fit into memory; `run` does so when it is called.

        Args:
          stages: that are to be run.

        Raises:
          ValueError: in one line that says what to change.
        """
        if not isinstance(self.single, ReplayLearner):
            return
        rows = [sum(arm.size for arm in self.arms.values() if arm.trains and stage in arm.stages) for stage in stages]
        # One device keeps all learners and a second copy of those in training; of several, each holds a call's, old and new.
        alone = len(self.devices) == 1 or self.devices[0].platform == "cpu"
        self.single.check_memory(len(self.seeds) * (sum(rows) + max(rows)) if alone else 2)

    @property
    def budget(self) -> Budget:
        """Environment steps that each part may take."""
        c, preparation = self.config, 0
        counts = range(1, self.members + 1) if self.grouped else (self.members,)
        if isinstance(self.single, ReplayLearner):
            preparation = self.single.preparation_steps * len(self.task_set)
        return Budget(
            single_epoch=self.single.steps_per_epoch,
            herd_epoch=max(count * self.learner_of(count).steps_per_epoch for count in counts),
            oracle_epoch=self.modes * self.expert.steps_per_epoch,
            probe=preparation * (c.probe_epochs > 0) + c.probe_epochs * self.single.steps_per_epoch,
            embedding=c.embedding_tasks * c.embedding_episodes * self.single.horizon,
            preparation=preparation,
        )

    # Stages ----------------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Progress]:
        """All stages: probe, embeddings and clusters, herd beside oracle, and the rest of the single learner.

        Nothing is allocated or looked at before the first event is asked for: a snapshot may still be put in.

        Raises:
          ValueError: at the call, see `check_memory`.
        """
        self.check_memory()
        return self._run()

    def _run(self) -> Iterator[Progress]:
        yield from self._train_probes()
        if not self.done[EMBEDDINGS]:
            yield self._embed_and_cluster()
        yield from self._train_and_test(MEMBERS, 0)
        yield from self._train_and_test(SINGLE, self.config.single_epochs - self.epochs(SINGLE))

    def train_probes(self) -> Iterator[Progress]:
        """The first stage alone; afterwards `states["probe"]` `[S, ...]` are the probes.

        Raises:
          ValueError: at the call, see `check_memory`.
        """
        self.check_memory((PROBE,))
        return self._train_probes()

    def _train_probes(self) -> Iterator[Progress]:
        yield from self._train_and_test(PROBE, 0)
        if "probe" not in self.states:
            trained = self.states[self.probe_arm] if self.config.probe_epochs else self._init(self.arms["single"])
            self.states["probe"] = jax.tree.map(lambda leaf: leaf[:, 0], self.snapshot(trained))

    def epochs(self, stage: str) -> int:
        """Epochs that a stage has."""
        c = self.config
        return {
            PROBE: c.probe_epochs,
            EMBEDDINGS: 1,
            MEMBERS: c.member_epochs,
            SINGLE: c.single_epochs - c.probe_epochs * (PROBE in self.arms["single"].stages),
        }[stage]

    def _train_and_test(self, stage: str, before: int) -> Iterator[Progress]:
        """The epochs of a stage that are not done yet; its learners had `before` epochs in earlier stages."""
        arms = [arm for arm in self.arms.values() if stage in arm.stages]
        while self.done[stage] < self.epochs(stage):
            count = min(self.config.epochs_per_call, self.epochs(stage) - self.done[stage])
            epochs = before + self.done[stage] + np.arange(1, count + 1)
            whole = [arm for arm in arms if arm.trains and not arm.grouped]
            for learner, inherits in dict.fromkeys((arm.learner, arm.inherits) for arm in whole):
                self._train(learner, [arm for arm in whole if (arm.learner, arm.inherits) == (learner, inherits)], epochs)
            for arm in (arm for arm in arms if arm.trains and arm.grouped):
                self._train_grouped(arm, epochs)
            for index, epoch in enumerate(epochs):
                for arm in arms:
                    self._test(arm, int(epoch), index)
            yield self._progress(stage, count, arms)

    def _progress(self, stage: str, count: int, arms: list[Arm]) -> Progress:
        """Progress of the epochs just recorded for some arms, `count` of them."""
        self.done[stage] += count
        curves = (self.curves.get(f"{arm.name}/{kind}", []) for arm in arms for kind in ("steps", "test_steps"))
        steps = sum(int(values.sum()) for curve in curves for values in curve[-count:])
        notes = tuple(line for arm in arms if arm.trains for line in self._new_faults(arm.name, count))
        returns = {arm.name: self.curves[f"{arm.name}/after"][-1] for arm in arms}
        work = count * len(self.seeds) * sum(map(self._epoch_work, arms))
        return Progress(stage, self.done[stage], self.epochs(stage), returns, steps, work, notes)

    @property
    def total_work(self) -> int:
        """Sum of `Progress.work` over a whole run."""
        return self._work(dict.fromkeys(STAGES, 0))

    @property
    def work_left(self) -> int:
        """Sum of `Progress.work` over what is not done yet."""
        return self._work(self.done)

    def _work(self, done: dict[str, int]) -> int:
        left = {stage: self.epochs(stage) - done[stage] for stage in STAGES}
        work = sum(left[stage] * self._epoch_work(arm) for arm in self.arms.values() for stage in arm.stages)
        return len(self.seeds) * (work + left[EMBEDDINGS] * self.budget.embedding)

    def _epoch_work(self, arm: Arm) -> int:
        """Environment steps of one epoch and meta-test of an arm, a seed."""
        c = self.config
        test = (c.explore_episodes + c.test_episodes) * self.single.horizon * len(self.task_set) * c.test_repeats
        return test + (int(np.diff(arm.budget(2))[0]) if arm.trains else 0)

    # Embeddings and clusters -----------------------------------------------------------------------------------------

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

    @functools.cached_property
    def _embed_program(self) -> Any:
        return self._map(self.embed_one, in_axes=(0, 0))

    def _embed_and_cluster(self) -> Progress:
        """Embed the training tasks with every seed's frozen probe and cluster each seed's own."""
        found = self._partition(self.states["probe"])
        self.embedded, self.clusters, self.cluster_failures = found.embedded, list(found.clusters), found.failures
        self.done[EMBEDDINGS] = 1
        steps = int(np.sum(self.embedded.steps))
        notes = tuple(f"seed {self.seeds[i]}: {why}" for i, why in self.cluster_failures.items())
        return Progress(EMBEDDINGS, 1, 1, {}, steps, self.budget.embedding * len(self.seeds), notes)

    def _partition(self, probe: Any) -> Partition:
        """Training tasks as a probe sees and clusters them. Where there can be no clusters, equal shares keep a seed's rows
        busy, and its herd is not counted.
        """
        embedded, failures = self._embed_program(self._keys("embed"), probe), {}
        clusters = []
        for index, gram in enumerate(np.asarray(embedded.gram, np.float64)):
            try:
                clusters.append(cluster(gram, self.config.clustering, int(self.seeds[index])))
            except ValueError as error:
                failures[index], shares = str(error), 1 if self.grouped else self.members
                clusters.append(Clusters(np.arange(len(gram)) % shares, shares, {"silhouette": {}}))
        return Partition(probe, embedded, clusters, failures)

    @functools.cached_property
    def _random_partition(self) -> Partition:
        """The trained probe's embeddings, in clusters of equal size that are drawn at random."""
        counts = self.member_counts()
        shares = np.arange(len(self.embedded_index)) % counts[:, None]
        labels = np.asarray(jax.vmap(jax.random.permutation)(self._keys("random_clusters"), shares)).astype(np.int64)
        clusters = [Clusters(row, int(k), {"silhouette": {}}) for row, k in zip(labels, counts, strict=True)]
        return Partition(self.states.get("probe"), self.embedded, clusters, {})

    @functools.cached_property
    def _untrained_partition(self) -> Partition:
        """The training tasks as the probe saw and clustered them before its first epoch."""
        fresh = self.snapshot(self._init(self.arms["single"]))
        return self._partition(jax.tree.map(lambda leaf: leaf[:, 0], fresh))

    def partition(self, arm: str = "herd") -> Partition:
        """What an arm's members train on and how its test tasks are assigned.

        That of a control is computed when first asked for: training changes nothing in it.
        """
        if arm == "random-clusters":
            return self._random_partition
        if arm == "untrained-probe":
            return self._untrained_partition
        return Partition(self.states.get("probe"), self.embedded, self.clusters, self.cluster_failures)

    def member_counts(self, arm: str = "herd") -> np.ndarray:
        """`[S]` how many members each seed's herd has."""
        clusters = self.partition(arm).clusters
        return np.array([found.k if self.grouped else self.members for found in clusters], np.int32)

    def member_weights(self, arm: str = "herd") -> np.ndarray:
        """`[S, K, N]` each member's distribution over tasks: the empirical one of its cluster, however impure."""
        index, clusters = np.asarray(self.embedded_index), self.partition(arm).clusters
        rows = [membership_weights(c.labels, index, len(self.task_set), self.members) for c in clusters]
        return np.stack(rows).astype(np.float32)

    # Training --------------------------------------------------------------------------------------------------------

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

    def _init(self, arm: Arm) -> Any:
        """Fresh states `[S, A, ...]`, of an arm that inherits with the probe's replay of each learner's tasks."""
        states = self._init_program(_flatten(self._row_keys(arm.role, arm.size)))
        if arm.inherits:
            probe = jax.tree.map(lambda leaf: _flatten(leaf.repeat(arm.size, 1)), self.states[self.probe_arm])
            # Without their empty replay, which would be in memory beside what takes its place.
            states = self._inherit_program(self.snapshot(states), probe, _flatten(arm.weights()))
        return _rows_of(states, len(self.seeds), 0, arm.size)

    @functools.cached_property
    def _inherit_program(self) -> Any:
        """Compiled for the flat axis of L = S A learners and as many copies of their probes."""
        return self._map(self.single.inherit, in_axes=(0, 0, 0))

    def snapshot(self, state: Any) -> Any:
        """The part of a state, or of a batch of them, that probes, adapts and may go wrong: all but a learner's replay."""
        return self.single.snapshot(state) if isinstance(self.single, ReplayLearner) else state

    @functools.cached_property
    def _prepare_program(self) -> Any:
        """Compiled preparation for the flat axis of L = S A learners."""

        def prepare(row_key, state, tasks, weights):
            return self.single.prepare(jax.random.fold_in(row_key, _PREPARATION), state, tasks, weights)

        return self._map(prepare, in_axes=(0, 0, None, 0), donate=(1,))

    @functools.cache  # noqa: B019 (an Experiment lives as long as its process)
    def _train_program(self, learner: Any) -> Any:
        """Compiled training epochs for the flat axis of L = S A learners; one with a fault stays as it was.

        E epochs `[E]` a call: the last state, and after each epoch the snapshot for its test, metrics and fault, `[E, ...]`.
        """

        def train(row_key, epochs, state, tasks, weights, fault):
            def step(carry, number):
                state, metrics, fault = epoch(row_key, number, carry[0], tasks, weights, carry[1])
                return (state, fault), (self.snapshot(state), metrics, fault)

            if epochs.shape[0] > 1:
                (state, _), trail = jax.lax.scan(step, (state, fault), epochs)
            else:  # a loop of one would only cost compilation
                (state, _), trail = step((state, fault), epochs[0])
                trail = jax.tree.map(lambda leaf: leaf[None], trail)
            return state, trail

        def epoch(row_key, epoch, state, tasks, weights, fault):
            new, metrics = learner.train_epoch(jax.random.fold_in(row_key, epoch), state, tasks, weights)
            fault = jnp.where(fault >= 0, fault, first_nonfinite(self.snapshot(new)))

            def keep(part, old, new):
                # Replay holds finite steps only; to choose between its old and new would copy it.
                return new if part is None else jnp.where(fault < 0, new, old)

            return jax.tree.map(keep, self.snapshot(new), state, new, is_leaf=lambda part: part is None), metrics, fault

        return self._map(train, in_axes=(0, None, 0, None, 0, 0), donate=(2,))

    def _train(self, learner: Any, arms: list[Arm], epochs: np.ndarray) -> None:
        """Some epochs `[E]` of all arms of a learner in one call; records their metrics."""
        if epochs[0] == 1:
            self.states |= {arm.name: self._init(arm) for arm in arms}
        popped = [self.states.pop(arm.name) for arm in arms]  # so that no second reference keeps old replay alive
        states = _side_by_side(popped)
        del popped
        keys = _flatten(jnp.concatenate([self._row_keys(arm.role, arm.size) for arm in arms], 1))
        weights = _flatten(np.concatenate([arm.weights() for arm in arms], 1))
        faults = _flatten(np.concatenate([self.faults(arm.name, arm.size) for arm in arms], 1))
        out = self._train_rows(learner, keys, states, weights, faults, epochs, prepare=not arms[0].inherits)
        del states
        self._take_rows(arms, *out)

    def _train_grouped(self, arm: Arm, epochs: np.ndarray) -> None:
        """Some epochs `[E]` of a herd whose seeds have different numbers of members: those with as many share a program.

        A seed's rows beyond its members are never trained: they take no steps, and their returns and diagnostics are NaN.
        """
        if epochs[0] == 1:
            self.states[arm.name] = self._init(arm)
        keys, weights, counts = self._row_keys(arm.role, arm.size), arm.weights(), self.member_counts(arm.name)
        states, faults, trail = self.states.pop(arm.name), self.faults(arm.name, arm.size), None
        for count in map(int, np.unique(counts)):
            rows = np.ix_(np.flatnonzero(counts == count), np.arange(count))
            pick = functools.partial(jax.tree.map, lambda leaf, rows=rows: _flatten(leaf[rows]))
            out = self._train_rows(
                self.learner_of(count), pick(keys), pick(states), pick(weights), pick(faults), epochs, not arm.inherits
            )
            trail = _untrained(out[1], counts.size, arm.size) if trail is None else trail
            states, trail = (
                jax.tree.map(lambda whole, part, rows=rows: _put(whole, rows, part), *pair)
                for pair in zip((states, trail), out, strict=True)
            )
        self._take_rows([arm], *jax.tree.map(_flatten, (states, trail)))

    def _train_rows(
        self, learner: Any, keys: Any, states: Any, weights: Any, faults: Any, epochs: np.ndarray, prepare: bool
    ) -> tuple[Any, Any]:
        """States of the flat axis of L learners after E more epochs, and their trail of snapshots, metrics and faults
        `[L, E, ...]`; the first epoch includes preparation, if there is any.
        """
        tasks, prepared = self.task_set.tasks, None
        if prepare and epochs[0] == 1 and isinstance(learner, ReplayLearner):
            states, prepared = self._prepare_program(keys, states, tasks, weights)
        states, trail = self._train_program(learner)(keys, epochs.astype(np.uint32), states, tasks, weights, faults)
        if prepared is not None:
            snapshots, metrics, faults = trail
            more = {name: _add_to_first(getattr(metrics, name), getattr(prepared, name)) for name in ("steps", "nonfinite")}
            trail = snapshots, dataclasses.replace(metrics, **more), faults
        return states, trail

    def _take_rows(self, arms: list[Arm], *flat: Any) -> None:
        """Hand each arm its rows `[S, A, ...]` of states `[L, ...]` and of the trail of epochs `[L, E, ...]`."""
        states, (snapshots, metrics, faults) = flat
        parts = states, snapshots, jax.tree.map(np.asarray, metrics), np.asarray(faults)
        stop = 0
        for arm in arms:
            start, stop = stop, stop + arm.size
            own = (_rows_of(part, len(self.seeds), start, stop) for part in parts)
            self.states[arm.name], self._trail[arm.name], metrics, faults = own
            for index in range(faults.shape[2]):
                own = jax.tree.map(lambda leaf, index=index: leaf[:, :, index], metrics)
                self._record(arm.name, train_before=own.before, train_after=own.after, steps=own.steps, nonfinite=own.nonfinite)
                self._record(arm.name, fault=faults[:, :, index], **own.diagnostics)

    def _record(self, arm: str, **values: Any) -> None:
        for name, value in values.items():
            self.curves.setdefault(f"{arm}/{name}", []).append(np.asarray(value))

    def faults(self, arm: str, rows: int) -> np.ndarray:
        """`[S, A]` -1 for a sound learner, else the leaf of its state that stopped being finite, when it was frozen."""
        recorded = self.curves.get(f"{arm}/fault")
        return recorded[-1] if recorded else np.full((len(self.seeds), rows), -1, np.int32)

    @functools.cached_property
    def float_leaves(self) -> list[str]:
        """Names of the leaves of a learner's state that a fault counts."""
        state = jax.eval_shape(lambda key: self.snapshot(self.init_one(key)), jax.random.key(0))
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if _is_float(leaf)]

    def _new_faults(self, arm: str, count: int) -> list[str]:
        """A line for each learner frozen in the last `count` epochs recorded."""
        recorded = np.stack([np.full_like(self.curves[f"{arm}/fault"][0], -1), *self.curves[f"{arm}/fault"]])
        new = (recorded[1:] >= 0) & (recorded[:-1] < 0)
        return [
            f"seed {self.seeds[s]}: learner {a} of {arm} frozen at its epoch {epoch + 1}: "
            f"{self.float_leaves[recorded[epoch + 1, s, a]]} is not finite; it is left out of the statistics"
            for epoch, s, a in np.argwhere(new)
            if epoch >= len(new) - count
        ]

    # Meta-test -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def test_index(self) -> np.ndarray:
        """`[B]` the task that each test task is: every one R times in a row."""
        return np.repeat(np.arange(len(self.task_set)), self.config.test_repeats)

    def _by_task(self, values: Any) -> Any:
        """`[..., B]` to the means over repeats `[..., N]`."""
        return values.reshape(*values.shape[:-1], len(self.task_set), self.config.test_repeats).mean(-1)

    @functools.cache  # noqa: B019 (an Experiment lives as long as its process)
    def _test_program(self, explore: int) -> Any:
        """Compiled meta-test of one seed on all test tasks, with `explore` exploration episodes, for the axis of seeds."""

        def test(key, epoch, states):
            key, learner = jax.random.fold_in(key, epoch), jnp.arange(len(self.test_index))
            tasks = take_tasks(self.task_set.tasks, self.test_index)
            result = meta_test(self.single, key, states, learner, tasks, explore, self.config.test_episodes)
            return dataclasses.replace(result, before=self._by_task(result.before), after=self._by_task(result.after))

        return self._map(test, in_axes=(0, None, 0))

    def _test(self, arm: Arm, epoch: int, index: int) -> None:
        """Meta-test every task with the learner of the arm that it is given to; records the returns.

        The learners are those after `epoch`, the `index`-th of the epochs just trained.
        """
        # Every test task's learner is picked out here, so that arms of any number of learners share one program.
        seed, member = np.arange(len(self.seeds))[:, None], np.asarray(arm.assign(epoch))
        states = _picked(self._trail[arm.source], seed, member, index)
        result = self._test_program(arm.explore)(self._keys(f"test_{arm.role}"), np.uint32(epoch), states)
        steps, nonfinite = result.steps, result.nonfinite
        self._record(arm.name, before=result.before, after=result.after, test_steps=steps, test_nonfinite=nonfinite)
        if arm.role == "herd":
            given = member.reshape(len(self.seeds), len(self.task_set), -1, 1) == np.arange(arm.size)
            share = given.mean(2, dtype=np.float32)
            self._record(arm.name, share=share, member=share.argmax(-1).astype(np.int32))

    def _the_only_learner(self, epoch: int) -> np.ndarray:
        return np.zeros((len(self.seeds), len(self.test_index)), np.int32)

    def _learner_of_mode(self, epoch: int) -> np.ndarray:
        """The learner of each test task's own mode, which only an oracle knows."""
        return np.tile(self.task_set.modes[self.test_index].astype(np.int32), (len(self.seeds), 1))

    def _member_of_mode(self, epoch: int) -> np.ndarray:
        """The member of the trained herd whose training tasks are most often of the test task's mode."""
        of_mode = self.member_weights() @ (self.task_set.mode_weights() > 0).T.astype(np.float32)  # [S, K, modes]
        exists = np.arange(self.members) < self.member_counts()[:, None]
        return np.where(exists[..., None], of_mode, -1.0).argmax(1)[:, self.task_set.modes[self.test_index]]

    def _random_member(self, epoch: int) -> jax.Array:
        def draw(key, count):
            return jax.random.randint(jax.random.fold_in(key, epoch), self.test_index.shape, 0, count)

        return jax.vmap(draw)(self._keys("random_assignment"), self.member_counts())

    @functools.cached_property
    def _assign_program(self) -> Any:
        """Compiled assignment of all test tasks for S seeds."""
        c = self.config

        def assign(key, epoch, probe, embedded, membership):
            key, tasks = jax.random.fold_in(key, epoch), take_tasks(self.task_set.tasks, self.test_index)
            return assign_tasks(self.single, self.embedding, key, probe, embedded, membership, tasks, c.probe_test_episodes)

        return self._map(assign, in_axes=(0, None, 0, 0, 0))

    def _nearest_member(self, arm: str, epoch: int) -> np.ndarray:
        """The member with the nearest centroid, from fresh probe episodes in each test task."""
        found = self.partition(arm)
        membership = np.stack([np.eye(self.members, dtype=np.float32)[c.labels] for c in found.clusters])
        keys = self._keys("assign")
        assignment, steps = self._assign_program(keys, np.uint32(epoch), found.probe, found.embedded, membership)
        sure = {name: self._by_task(np.asarray(getattr(assignment, name))) for name in ("confidence", "margin")}
        self._record(arm, **sure, assign_steps=steps)
        return np.asarray(assignment.nearest)


def first_nonfinite(state: Any) -> jax.Array:
    """`[]` index of the first floating-point leaf that holds a number that is not finite, -1 where all are finite."""
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state) if _is_float(leaf)])
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _put(whole: Any, rows: Any, part: Any) -> Any:
    """`whole` `[S, A, ...]` with some rows replaced by those of `part` `[L, ...]`, on the host where it is there."""
    shape = np.broadcast_shapes(*(index.shape for index in rows))
    part = part.reshape(*shape, *part.shape[1:])
    if not isinstance(whole, np.ndarray):
        return whole.at[rows].set(part)
    whole = whole.copy()
    whole[rows] = np.asarray(part)
    return whole


def _untrained(trail: Any, seeds: int, size: int) -> Any:
    """A trail `[S, A, E, ...]` of learners that were not trained: no steps, no fault, and NaN for what was not measured."""
    snapshots, metrics, faults = trail

    def blank(leaf: Any, value: Any, dtype: Any = None) -> np.ndarray:
        return np.full((seeds, size, *leaf.shape[1:]), value, dtype or leaf.dtype)

    unknown = jax.tree.map(lambda leaf: blank(leaf, np.nan, np.float32), metrics)
    nothing = {name: blank(getattr(metrics, name), 0) for name in ("steps", "nonfinite")}
    states = jax.tree.map(lambda leaf: jnp.zeros((seeds, size, *leaf.shape[1:]), leaf.dtype), snapshots)
    return states, unknown.replace(**nothing), blank(faults, -1)


def _add_to_first(values: Any, more: Any) -> Any:
    """`[L, E]` with `[L]` added to its first epoch."""
    first = np.arange(values.shape[1]) == 0
    return values + first.astype(values.dtype) * more[:, None]


def _flatten(leaf: Any) -> Any:
    """`[S, A, ...]` to `[S A, ...]`."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


@one_program
def _side_by_side(arms: Any) -> Any:
    """States `[S, A, ...]` of some arms to `[S sum(A), ...]`, a seed's learners in a row."""
    return jax.tree.map(lambda *leaves: _flatten(concatenate(leaves, 1)), *arms)


@functools.partial(one_program, static=(1, 2, 3))
def _rows_of(tree: Any, seeds: int, start: int, stop: int) -> Any:
    """Learners `start` to `stop` `[S, stop - start, ...]` of every seed's, of leaves `[S A, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(seeds, len(leaf) // seeds, *leaf.shape[1:])[:, start:stop], tree)


@one_program
def _picked(tree: Any, *index: Any) -> Any:
    """Elements of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
