"""A trained herd on its own, without its experiment: assign a task to a member, adapt that member, save and load all of it.

On disk a herd is two files, `herd.json` and `arrays.npz`; see `herd.files`.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.codec import named_arrays, one_line, restore_tree
from tamherd_jax.envs import Episodes, TaskSet, collect_policy_episodes
from tamherd_jax.herd import files
from tamherd_jax.herd.algorithm import EmbeddedTasks, assign_tasks, embed_training_tasks, stratified_tasks
from tamherd_jax.herd.clustering import Assignment, membership_weights
from tamherd_jax.herd.embeddings import Embedding
from tamherd_jax.herd.files import EpisodeCounts
from tamherd_jax.types import ExportingLearner, MetaLearner, PyTree, TaskEnv


@dataclasses.dataclass(frozen=True)
class TaskAssignment:
    """Which member a task was assigned to.

    Attributes:
      member: the nearest cluster's, 0 to K - 1.
      distances: `[K]` squared distances to the clusters' means.
      margin: distance to the second nearest mean less that to the nearest.
      confidence: in [1/2, 1], the second distance over the sum of both.
      steps: environment steps that the probe took.
    """

    member: int
    distances: np.ndarray
    margin: float
    confidence: float
    steps: int


@dataclasses.dataclass(frozen=True)
class AdaptedPolicy:
    """A member adapted to one task; R episodes of T steps.

    Attributes:
      assignment: which member, and why.
      before: the member's exploration episodes, leaves `[R, T, ...]`: what it adapted to.
      after: the adapted policy's test episodes, leaves `[R, T, ...]`.
      policy: the learner's own form of the policy.
      learner: which acts with it.
    """

    assignment: TaskAssignment
    before: Episodes
    after: Episodes
    policy: PyTree
    learner: MetaLearner

    def initial_carry(self) -> PyTree:
        """Return the policy's hidden state at the start of an episode; `()` for a policy without memory."""
        return self.learner.initial_carry(self.policy)

    def act(self, carry: PyTree, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, PyTree]:
        """Return the action `[A]` at observation `[O]` and the next hidden state; may be jitted and vmapped."""
        return self.learner.act(self.policy, carry, obs, key)

    def export(self) -> dict[str, np.ndarray]:
        """Return the policy as NumPy arrays by name; `numpy_policy.forward(weights, obs)` acts with them without JAX.

        Keep them with `np.savez(path, **policy.export())`.

        Raises:
          ValueError: The learner's policies are no perceptrons.
        """
        if not isinstance(self.learner, ExportingLearner):
            raise ValueError(f"{type(self.learner).__name__} has no export(): its policies are no perceptrons without memory")
        return self.learner.export(self.policy)

    @property
    def member(self) -> int:
        """Index of the member."""
        return self.assignment.member

    @property
    def steps(self) -> int:
        """Environment steps taken to assign and to adapt; the test episodes are not counted."""
        return self.assignment.steps + int(jnp.sum(self.before.steps))


@dataclasses.dataclass(frozen=True, eq=False)
class Herd:
    """A trained herd of one seed: the probe, K members, and the D embedded training tasks with their clusters.

    Attributes:
      learner: the meta-learner that probes and adapts (the same for all members).
      task_set: what it was trained on.
      probe: the probe's state.
      members: the members' states, leaves `[K, ...]`.
      embedding: of tasks.
      embedded: the training tasks' features.
      labels: `[D]` int, their clusters.
      episodes: how many are played for what.
      seed: of the run that trained it.
    """

    learner: MetaLearner
    task_set: TaskSet
    probe: PyTree
    members: PyTree
    embedding: Embedding
    embedded: EmbeddedTasks
    labels: np.ndarray
    episodes: EpisodeCounts
    seed: int = 0

    def __repr__(self) -> str:
        """Name learner, task set, and what each member trained on."""
        names = self.task_set.task_names
        trained = ("+".join(name for name, share in zip(names, row, strict=True) if share > 0) for row in self.member_tasks)
        return f"Herd({type(self.learner).__name__} on {self.task_set.name}, seed {self.seed}: {', '.join(trained)})"

    @property
    def size(self) -> int:
        """K, the number of members."""
        return int(jax.tree.leaves(self.members)[0].shape[0])

    @property
    def member_tasks(self) -> np.ndarray:
        """`[K, N]` each member's training distribution over the tasks of the set."""
        index = np.asarray(stratified_tasks(self.task_set.tasks, len(self.labels))[1])
        return membership_weights(self.labels, index, len(self.task_set), self.size)

    def assign(self, key: jax.Array, task: PyTree) -> TaskAssignment:
        """Probe a task and give it to the nearest cluster's member (Algorithm 2 lines 1 and 2).

        Args:
          key: consumed.
          task: a task of the kind the herd was trained on, or the name of one of its task set.

        Raises:
          ValueError: the task set has no task of that name.
        """
        found, steps = _assign(*self._assign_arguments(key, task))
        return TaskAssignment(
            int(found.nearest[0]),
            np.asarray(found.distances[0]),
            float(found.margin[0]),
            float(found.confidence[0]),
            int(steps),
        )

    def adapt(self, key: jax.Array, task: PyTree, member: int | None = None) -> AdaptedPolicy:
        """Assign a task, let the member explore and adapt to it, and measure the result (Algorithm 2).

        Args:
          key: consumed.
          task: as in `assign`.
          member: take this member, whatever the assignment says.

        Raises:
          ValueError: the task set has no task of that name, or the herd no such member.
        """
        if member is not None and not 0 <= member < self.size:
            raise ValueError(f"member must be 0 to {self.size - 1}, not {member}")
        assign_key, adapt_key = jax.random.split(key)
        assignment = self.assign(assign_key, task)
        if member is not None:
            assignment = dataclasses.replace(assignment, member=member)
        policy, before, after = _adapt(*self._adapt_arguments(adapt_key, assignment.member, task))
        return AdaptedPolicy(assignment, before, after, policy, self.learner)

    def with_shots(self, count: int) -> Herd:
        """Return the same herd whose members adapt to another number of exploration episodes; 0 leaves them as they are."""
        return dataclasses.replace(self, episodes=dataclasses.replace(self.episodes, explore=count))

    def compact(self, key: jax.Array, tasks: int, episodes: int) -> Herd:
        """Return a herd of the same probe and members whose training tasks are embedded from less experience.

        The embedded tasks are most of a herd's file. With less of them it is smaller, and assignment is noisier.

        Args:
          key: consumed; the probe plays the training tasks anew.
          tasks: D', embedded training tasks, in equal shares of the task set's.
          episodes: of the probe in each.

        Raises:
          ValueError: Fewer tasks than the task set has, or a task of the set that is in several clusters.
        """
        count = len(self.task_set)
        if tasks < count:
            raise ValueError(f"a compact herd embeds at least the task set's {count} tasks, not {tasks}")
        chosen, index = stratified_tasks(self.task_set.tasks, tasks)
        old = np.asarray(stratified_tasks(self.task_set.tasks, len(self.labels))[1])
        clusters = [set(self.labels[old == task]) for task in range(count)]
        for name, found in zip(self.task_set.task_names, clusters, strict=True):
            if len(found) != 1:
                raise ValueError(f"{name} is in {len(found)} clusters: fewer tasks cannot stand for it")
        labels = np.array([int(*clusters[task]) for task in np.asarray(index)])
        embedded = jax.jit(embed_training_tasks, static_argnums=(0, 1, 5))(
            self.learner, self.embedding, key, self.probe, chosen, episodes
        )
        counts = dataclasses.replace(self.episodes, embedding=episodes)
        return dataclasses.replace(self, embedded=embedded, labels=labels, episodes=counts)

    def save(self, directory: str | Path) -> None:
        """Write `herd.json` and `arrays.npz` into a directory, made if need be; each file at once.

        Raises:
          ValueError: The learner is of no algorithm of the registry: a file could not name it.
          OSError: The directory cannot be written.
        """
        arrays = {name: array for prefix, tree in self._trees() for name, array in named_arrays(prefix, tree).items()}
        facts = self.learner, self.task_set, self.embedding, self.episodes, self.seed, self.size, self.labels
        files.write_herd(Path(directory), files.describe_herd(*facts, arrays), arrays)

    @classmethod
    def load(cls, directory: str | Path, env: TaskEnv | None = None, task_set: TaskSet | None = None) -> Herd:
        """Return a herd that comes with the package, or one that `save` wrote, in this version or an earlier one.

        Args:
          directory: One of `files.shipped_herds()`, such as `"ml2-maml"`, or a directory given to `save`, which comes first.
          env: The environment, if it is not one of the package's; or another that takes the same tasks.
          task_set: The task set, if it is not one of the package's.

        Raises:
          ValueError: In one line, if there is no herd, a file is damaged or of another version, or `env` or `task_set` is
            needed or another than the herd's.
        """
        directory = files.herd_directory(directory)
        document, arrays = files.read_herd(directory)
        try:
            return cls._from_document(document, arrays, env, task_set)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"the herd in {directory}: {one_line(error)}") from error

    @classmethod
    def _from_document(
        cls, document: files.HerdDocument, arrays: dict[str, np.ndarray], env: TaskEnv | None, task_set: TaskSet | None
    ) -> Herd:
        env = files.find_environment(document.environment) if env is None else env
        task_set = files.find_task_set(document.task_set, task_set)
        learner = files.build_learner(document.learner, env)
        embedding = Embedding(document.embedding)
        shapes = files.herd_shapes(learner, embedding, task_set, document)
        arrays = files.acting_arrays(learner, shapes, arrays)
        files.check_arrays(shapes, arrays)
        trees = {prefix: restore_tree(prefix, tree, arrays) for prefix, tree in shapes.items()}
        return cls(
            learner=learner,
            task_set=task_set,
            embedding=embedding,
            labels=np.asarray(document.labels, int),
            episodes=document.episodes,
            seed=document.seed,
            **trees,
        )

    def _trees(self) -> list[tuple[str, PyTree]]:
        return [("probe", self.probe), ("members", self.members), ("embedded", self.embedded)]

    def _task(self, task: PyTree) -> PyTree:
        if not isinstance(task, str):
            return task
        return self.task_set.task(task)

    @property
    def _membership(self) -> np.ndarray:
        """`[D, K]` one-hot clusters of the training tasks."""
        membership: np.ndarray = np.eye(self.size, dtype=np.float32)[self.labels]
        return membership

    def _assign_arguments(self, key: jax.Array, task: PyTree) -> tuple[Any, ...]:
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], self._task(task))
        static = self.learner, self.embedding, self.episodes.probe
        return *static, key, self.probe, self.embedded, self._membership, one

    def _adapt_arguments(self, key: jax.Array, member: int, task: PyTree) -> tuple[Any, ...]:
        return self.learner, self.episodes, key, self.members, member, jax.tree.map(jnp.asarray, self._task(task))

    def compile(self, task: PyTree) -> None:
        """Compile what `assign` and `adapt` call for tasks like this one, so that they need not.

        Args:
          task: As in `assign`. The herd's own arrays may be shapes (`jax.ShapeDtypeStruct`).
        """
        key = jax.random.key(0)
        _assign.lower(*self._assign_arguments(key, task)).compile()
        _adapt.lower(*self._adapt_arguments(key, 0, task)).compile()


# What is a herd's own is an argument, so that herds of the same learner and shapes share the programs.


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _assign(
    learner: MetaLearner,
    embedding: Embedding,
    episodes: int,
    key: jax.Array,
    probe: PyTree,
    embedded: EmbeddedTasks,
    membership: jax.Array,
    tasks: PyTree,
) -> tuple[Assignment, jax.Array]:
    return assign_tasks(learner, embedding, key, probe, embedded, membership, tasks, episodes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adapt(
    learner: MetaLearner, counts: EpisodeCounts, key: jax.Array, members: PyTree, member: jax.Array, task: PyTree
) -> tuple[PyTree, Episodes, Episodes]:
    explore_key, test_key = jax.random.split(key)
    state = jax.tree.map(lambda leaf: leaf[member], members)
    if counts.explore:
        policy, before = learner.adapt(explore_key, state, task, counts.explore)
    else:
        policy, before = learner.probe(explore_key, state, task, 1)
        before = jax.tree.map(lambda leaf: leaf[:0], before)
    return policy, before, collect_policy_episodes(learner, policy, task, test_key, counts.test)
