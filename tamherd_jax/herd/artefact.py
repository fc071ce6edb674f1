"""A trained herd as a thing of its own: assign a task to a member, adapt that member, save and load all of it.

On disk a herd is two files: `herd.json`, which names environment, task set, learner and settings, and `arrays.npz`.
Loading runs no code from either.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tamherd_jax
from tamherd_jax.envs import TASK_SETS, Episodes, Locomotion, TaskSet, collect_policy_episodes
from tamherd_jax.herd.algorithm import EmbeddedTasks, assign_tasks, embed_training_tasks, stratified_tasks
from tamherd_jax.herd.clustering import membership_weights
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig, make_embedding
from tamherd_jax.registry.algorithms import ALGORITHMS
from tamherd_jax.serialization import array_entry, named_arrays, named_shapes, rebuild, restore_tree, write_arrays, write_json
from tamherd_jax.types import MetaLearner, ReplayLearner

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class EpisodeCounts:
    """How many episodes a herd plays.

    Attributes:
      embedding: of the probe in each training task, to embed it.
      probe: of the probe in a new task, to assign it.
      explore: of the member in a new task, to adapt to it.
      test: of the adapted policy, to measure it.
    """

    embedding: int
    probe: int
    explore: int
    test: int


@dataclasses.dataclass(frozen=True)
class TaskAssignment:
    """Which member a task was given to.

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
    policy: Any
    learner: MetaLearner

    def initial_carry(self) -> Any:
        """Return the policy's hidden state at the start of an episode; `()` for a policy without memory."""
        return self.learner.initial_carry(self.policy)

    def act(self, carry: Any, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        """Return the action `[A]` at observation `[O]` and the next hidden state; may be jitted and vmapped."""
        return self.learner.act(self.policy, carry, obs, key)

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
    probe: Any
    members: Any
    embedding: Embedding
    embedded: EmbeddedTasks
    labels: np.ndarray
    episodes: EpisodeCounts
    seed: int = 0

    @property
    def size(self) -> int:
        """K, the number of members."""
        return int(jax.tree.leaves(self.members)[0].shape[0])

    @property
    def member_tasks(self) -> np.ndarray:
        """`[K, N]` each member's training distribution over the tasks of the set."""
        index = np.asarray(stratified_tasks(self.task_set.tasks, len(self.labels))[1])
        return membership_weights(self.labels, index, len(self.task_set), self.size)

    def assign(self, key: jax.Array, task: Any) -> TaskAssignment:
        """Probe a task and give it to the nearest cluster's member (Algorithm 2 lines 1 and 2).

        Args:
          key: consumed.
          task: a task of the kind the herd was trained on, or the name of one of its task set.

        Raises:
          ValueError: the task set has no task of that name.
        """
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], self._task(task))
        found, steps = self._assign_program(key, self.probe, one)
        return TaskAssignment(
            int(found.nearest[0]),
            np.asarray(found.distances[0]),
            float(found.margin[0]),
            float(found.confidence[0]),
            int(steps),
        )

    def adapt(self, key: jax.Array, task: Any, member: int | None = None) -> AdaptedPolicy:
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
        task = jax.tree.map(jnp.asarray, self._task(task))
        policy, before, after = self._adapt_program(adapt_key, self.members, assignment.member, task)
        return AdaptedPolicy(assignment, before, after, policy, self.learner)

    def save(self, directory: str | Path) -> None:
        """Write `herd.json` and `arrays.npz` into a directory, made if need be; each file at once.

        Raises:
          ValueError: the learner is of no algorithm of the registry: a file could not name it.
          OSError: the directory cannot be written.
        """
        directory = Path(directory)
        arrays = {name: array for prefix, tree in self._trees() for name, array in named_arrays(prefix, tree).items()}
        document = {
            "format": FORMAT,
            "version": tamherd_jax.__version__,
            "seed": self.seed,
            "environment": _describe_environment(self.learner.env),
            "task_set": _describe_task_set(self.task_set),
            "learner": _describe_learner(self.learner),
            "embedding": dataclasses.asdict(self.embedding.config),
            "episodes": dataclasses.asdict(self.episodes),
            "members": self.size,
            "labels": [int(label) for label in self.labels],
            "arrays": {name: array_entry(array) for name, array in arrays.items()},
        }
        directory.mkdir(parents=True, exist_ok=True)
        write_arrays(directory / "arrays.npz", arrays, compress=False)
        write_json(directory / "herd.json", document)

    @classmethod
    def load(cls, directory: str | Path, env: Any = None, task_set: TaskSet | None = None) -> Herd:
        """The herd that `save` wrote.

        Args:
          directory: that was given to `save`.
          env: the environment, where it is not one of the package's; or another that takes the same tasks.
          task_set: the task set, where it is not one of the package's.

        Raises:
          ValueError: in one line, if there is no herd, a file is damaged or of another version, or `env` or `task_set` is
            needed or another than the herd's.
        """
        directory = Path(directory)
        document, arrays = _read(directory)
        try:
            return cls._from_document(document, arrays, env, task_set)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{directory / 'herd.json'} is damaged: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"the herd in {directory}: {error}") from error

    @classmethod
    def _from_document(cls, document: dict[str, Any], arrays: dict[str, np.ndarray], env: Any, task_set: Any) -> Herd:
        env = _environment(document["environment"]) if env is None else env
        task_set = _find_task_set(document["task_set"], task_set)
        learner = _build_learner(document["learner"], env)
        embedding = make_embedding(rebuild(EmbeddingConfig, document["embedding"]))
        episodes, labels = rebuild(EpisodeCounts, document["episodes"]), np.asarray(document["labels"], int)
        shapes = _shapes(learner, embedding, task_set, document["members"], len(labels), episodes.embedding)
        _check_arrays(shapes, arrays)
        if not ((labels >= 0) & (labels < document["members"])).all():
            raise ValueError(f"labels are not of {document['members']} members")
        trees = {prefix: restore_tree(prefix, tree, arrays) for prefix, tree in shapes.items()}
        return cls(learner, task_set, embedding=embedding, labels=labels, episodes=episodes, seed=document["seed"], **trees)

    def _trees(self) -> list[tuple[str, Any]]:
        return [("probe", self.probe), ("members", self.members), ("embedded", self.embedded)]

    def _task(self, task: Any) -> Any:
        if not isinstance(task, str):
            return task
        index = self.task_set.index(task)
        return jax.tree.map(lambda leaf: leaf[index], self.task_set.tasks)

    @functools.cached_property
    def _assign_program(self) -> Any:
        membership = np.eye(self.size, dtype=np.float32)[self.labels]

        def assign(key, probe, tasks):
            return assign_tasks(self.learner, self.embedding, key, probe, self.embedded, membership, tasks, self.episodes.probe)

        return jax.jit(assign)

    @functools.cached_property
    def _adapt_program(self) -> Any:
        learner, counts = self.learner, self.episodes

        def adapt(key, members, member, task):
            explore_key, test_key = jax.random.split(key)
            state = jax.tree.map(lambda leaf: leaf[member], members)
            policy, before = learner.adapt(explore_key, state, task, counts.explore)
            return policy, before, collect_policy_episodes(learner, policy, task, test_key, counts.test)

        return jax.jit(adapt)


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Both files, checked against each other.

    Raises:
      ValueError: in one line.
    """
    document = _read_file(directory, "herd.json", lambda stream: json.loads(stream.read()))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{directory / 'herd.json'} is not of this version (format {FORMAT})")
    arrays = _read_file(directory, "arrays.npz", _load_arrays)
    entries = document.get("arrays")
    if not isinstance(entries, dict) or set(entries) != set(arrays):
        raise ValueError(f"{directory}: herd.json and arrays.npz are not of the same herd")
    for name, array in arrays.items():
        if array_entry(array) != entries[name]:
            raise ValueError(f"{directory / 'arrays.npz'} is damaged: {name} is not what was written")
    return document, arrays


def _read_file(directory: Path, name: str, read: Callable[[Any], Any]) -> Any:
    try:
        with open(directory / name, "rb") as stream:
            return read(stream)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} holds no trained herd: {name} is missing") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{directory / name} is damaged: {' '.join(str(error).split())}") from error


def _load_arrays(stream: Any) -> dict[str, np.ndarray]:
    with np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check_arrays(shapes: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Check names, shapes and dtypes against what the settings say they are.

    Raises:
      ValueError: naming the first that differs.
    """
    wanted = {name: leaf for prefix, tree in shapes.items() for name, leaf in named_shapes(prefix, tree).items()}
    if set(wanted) != set(arrays):
        raise ValueError(f"{min(set(wanted) ^ set(arrays))} is missing or too many: its learner is another than here")
    for name, leaf in wanted.items():
        theirs, ours = (arrays[name].shape, str(arrays[name].dtype)), (tuple(leaf.shape), str(leaf.dtype))
        if theirs != ours:
            raise ValueError(f"{name} is {theirs[1]} {theirs[0]}, not {ours[1]} {ours[0]}")


def _shapes(
    learner: MetaLearner, embedding: Embedding, task_set: TaskSet, members: int, count: int, episodes: int
) -> dict[str, Any]:
    """Shapes of probe, members and embedded tasks of a herd of such parts, without computing any."""

    def parts(key):
        state = learner.init(key)
        state = learner.snapshot(state) if isinstance(learner, ReplayLearner) else state
        tasks, _ = stratified_tasks(task_set.tasks, count)
        herd = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape)), state)
        return {
            "probe": state,
            "members": herd,
            "embedded": embed_training_tasks(learner, embedding, key, state, tasks, episodes),
        }

    return jax.eval_shape(parts, jax.random.key(0))


def _describe_environment(env: Any) -> dict[str, Any]:
    if type(env) is Locomotion:
        names = ("expected_action_scale", "variants", "walker_frame_skip")
        settings = {name: getattr(env, name) for name in names}
        return {"name": "locomotion", "physics": env.backend, "bodies": list(env.bodies)} | settings
    return {"name": type(env).__name__}


def _environment(entry: dict[str, Any]) -> Any:
    """The package's environment of that name.

    Raises:
      ValueError: there is none.
    """
    if entry["name"] != "locomotion":
        raise ValueError(f"its environment {entry['name']} is not the package's: hand it over with load(..., env=...)")
    # Herds from before they recorded these have their defaults.
    later = {name: entry[name] for name in ("variants", "walker_frame_skip", "bodies") if name in entry}
    return Locomotion(entry["physics"], entry["expected_action_scale"], **later)


def _describe_task_set(task_set: TaskSet) -> dict[str, Any]:
    return {"name": task_set.name, "version": task_set.version, "tasks": list(task_set.task_names)}


def _find_task_set(entry: dict[str, Any], given: TaskSet | None) -> TaskSet:
    """The task set given, or the package's of that name.

    Raises:
      ValueError: there is none, or it is not the one described.
    """
    if given is None:
        make = TASK_SETS.get(str(entry["name"]).lower())
        if make is None:
            raise ValueError(f"its task set {entry['name']} is not the package's: hand it over with load(..., task_set=...)")
        given = make()
    if _describe_task_set(given) != entry:
        raise ValueError(f"it was trained on {entry['name']} version {entry['version']}, not {given.name} {given.version}")
    return given


def _describe_learner(learner: Any) -> dict[str, Any]:
    kind = type(learner)
    for name, entry in ALGORITHMS.items():
        if kind is entry.learner:
            settings = dataclasses.asdict(learner.config)
            return {"name": name, "sizes": {size: getattr(learner, size) for size in entry.sizes}, "config": settings}
    raise ValueError(f"a herd of {kind.__name__} cannot be saved: only {', '.join(ALGORITHMS)} can be named in a file")


def _build_learner(document: dict[str, Any], env: Any) -> Any:
    if document["name"] not in ALGORITHMS:
        raise ValueError(f"its learner {document['name']!r} is none of {', '.join(ALGORITHMS)}")
    entry = ALGORITHMS[document["name"]]
    sizes = {size: int(document["sizes"][size]) for size in entry.sizes}
    return entry.learner(env, **sizes, config=rebuild(entry.config, document["config"]))
