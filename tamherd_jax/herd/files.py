"""The two files of a trained herd: `herd.json` names environment, task set, learner and settings; `arrays.npz` has the states.

Loading runs no code from either, and checks every value before anything is built from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

import tamherd_jax
from tamherd_jax.codec import (
    ArrayEntry,
    array_entry,
    decode,
    encode,
    named_shapes,
    one_line,
    read_arrays,
    read_json,
    sealed,
    unsealed,
    write_arrays,
    write_json,
)
from tamherd_jax.envs import TASK_SETS, Locomotion, TaskSet
from tamherd_jax.herd.algorithm import embed_training_tasks, stratified_tasks
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig
from tamherd_jax.registry.algorithms import ALGORITHMS
from tamherd_jax.registry.bodies import ADJUSTABLE_FRAME_SKIP
from tamherd_jax.types import MetaLearner, TaskEnv, acting, without_replay
from tamherd_jax.validation import NonNegativeInt, PositiveFloat, PositiveInt, check_fields, within

FORMAT = 3
FORMATS = {2: False, FORMAT: True}
"""Formats that can be read, and whether the settings of each have a checksum; those of the first release have none."""

LARGEST = 10**6
"""More episodes, steps or members than any herd has: a number that a file did not get from here."""

Count = Annotated[int, within(1, LARGEST)]

SHIPPED = Path(tamherd_jax.__file__).parent / "trained"
"""Where the package keeps the trained herds that come with it, a directory each."""


@dataclasses.dataclass(frozen=True)
class EpisodeCounts:
    """How many episodes a herd plays.

    Attributes:
      embedding: Of the probe in each training task, to embed it.
      probe: Of the probe in a new task, to assign it.
      explore: Of the member in a new task, to adapt to it.
      test: Of the adapted policy, to measure it.
    """

    embedding: Count
    probe: Count
    explore: Annotated[int, within(0, LARGEST)]
    test: Count

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class EnvironmentEntry:
    """The environment that a herd was trained in; one that is not the package's is only named.

    Attributes:
      name: `locomotion`, or the class of a user's environment.
      physics: Name of the backend.
      expected_action_scale, variants, walker_frame_skip, bodies: As `Locomotion` takes them; None is its default.
    """

    name: str
    physics: str = "auto"
    expected_action_scale: PositiveFloat = 10.0
    variants: NonNegativeInt = 0
    walker_frame_skip: PositiveInt = ADJUSTABLE_FRAME_SKIP
    bodies: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TaskSetEntry:
    """The task set that a herd was trained on."""

    name: str
    version: int
    tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LearnerEntry:
    """The meta-learner: its algorithm's name, the sizes that it is made with, and its settings."""

    name: str
    sizes: dict[str, int]
    config: Any


@dataclasses.dataclass(frozen=True)
class HerdDocument:
    """Content of herd.json besides its format and checksum; see `artefact.Herd` for the parts."""

    version: str
    seed: Annotated[int, within(0, 2**32 - 1)]
    environment: EnvironmentEntry
    task_set: TaskSetEntry
    learner: LearnerEntry
    embedding: EmbeddingConfig
    episodes: EpisodeCounts
    members: Count
    labels: tuple[int, ...]
    arrays: dict[str, ArrayEntry]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.labels or not all(0 <= label < self.members for label in self.labels):
            raise ValueError(f"labels must be at least one, each of {self.members} members")


def shipped_herds() -> tuple[str, ...]:
    """Return the names of the trained herds that come with the package."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/herd.json")))


def herd_directory(name: str | Path) -> Path:
    """Return the directory of that name where there is one, else that of the herd of that name that comes with the package."""
    return SHIPPED / name if not Path(name).exists() and str(name) in shipped_herds() else Path(name)


def write_herd(directory: Path, document: HerdDocument, arrays: Mapping[str, np.ndarray]) -> None:
    """Write both files into a directory, made if need be; each file at once, herd.json last.

    Raises:
      OSError: They cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_arrays(directory / "arrays.npz", arrays, compress=False)
    write_json(directory / "herd.json", sealed({"format": FORMAT, **encode(document)}))


def read_herd(directory: Path) -> tuple[HerdDocument, dict[str, np.ndarray]]:
    """Return both files, checked against each other.

    Raises:
      ValueError: In one line, if there is no herd, or a file is damaged or of another version.
    """
    path = directory / "herd.json"
    try:
        body = unsealed(read_json(path), path, FORMATS)
        arrays = read_arrays(directory / "arrays.npz")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} holds no trained herd: {Path(error.filename).name} is missing") from error
    try:
        document = decode(HerdDocument, body)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    if set(document.arrays) != set(arrays):
        raise ValueError(f"{directory}: herd.json and arrays.npz are not of the same herd")
    for name, array in arrays.items():
        if array_entry(array) != encode(document.arrays[name]):
            raise ValueError(f"{directory / 'arrays.npz'} is damaged: {name} is not what was written")
    return document, arrays


def describe_herd(
    learner: MetaLearner,
    task_set: TaskSet,
    embedding: Embedding,
    episodes: EpisodeCounts,
    seed: int,
    members: int,
    labels: np.ndarray,
    arrays: Mapping[str, np.ndarray],
) -> HerdDocument:
    """Return what herd.json says of a herd.

    Raises:
      ValueError: The learner is of no algorithm of the registry, so that a file cannot name it.
    """
    return HerdDocument(
        version=tamherd_jax.__version__,
        seed=seed,
        environment=describe_environment(learner.env),
        task_set=describe_task_set(task_set),
        learner=describe_learner(learner),
        embedding=embedding.config,
        episodes=episodes,
        members=members,
        labels=tuple(int(label) for label in labels),
        arrays={name: decode(ArrayEntry, array_entry(array)) for name, array in arrays.items()},
    )


def acting_arrays(learner: MetaLearner, shapes: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a herd's arrays without those that only training needs, which earlier versions saved as well.

    Args:
      learner: The meta-learner.
      shapes: Of the parts that a herd has today.
      arrays: By name.
    """
    wanted = {name for part, tree in shapes.items() for name in named_shapes(part, tree)}
    if set(arrays) == wanted:
        return arrays
    state = jax.eval_shape(lambda key: without_replay(learner, learner.init(key)), jax.random.key(0))
    former = wanted | {name for part in ("probe", "members") for name in named_shapes(part, state)}
    return {name: arrays[name] for name in arrays if name in wanted} if set(arrays) == former else arrays


def check_arrays(shapes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Check names, shapes and dtypes against what the settings say they are.

    Raises:
      ValueError: Naming the first that differs.
    """
    wanted = {name: leaf for prefix, tree in shapes.items() for name, leaf in named_shapes(prefix, tree).items()}
    if set(wanted) != set(arrays):
        raise ValueError(f"{min(set(wanted) ^ set(arrays))} is missing or too many: its learner is another than here")
    for name, leaf in wanted.items():
        theirs, ours = (arrays[name].shape, str(arrays[name].dtype)), (tuple(leaf.shape), str(leaf.dtype))
        if theirs != ours:
            precision = " (this process has jax_enable_x64 on, the herd was trained without)" if _is_wide(ours[1]) else ""
            raise ValueError(f"{name} is {theirs[1]} {theirs[0]}, not {ours[1]} {ours[0]}{precision}")


def _is_wide(dtype: str) -> bool:
    return dtype.endswith("64") and bool(jax.config.read("jax_enable_x64"))


def herd_shapes(learner: MetaLearner, embedding: Embedding, task_set: TaskSet, document: HerdDocument) -> dict[str, Any]:
    """Return shapes of probe, members and embedded tasks of a herd of such parts, without computing any."""
    members, count = document.members, len(document.labels)

    def parts(key: jax.Array) -> dict[str, Any]:
        state = acting(learner, learner.init(key))
        tasks, _ = stratified_tasks(task_set.tasks, count)
        herd = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape)), state)
        embedded = embed_training_tasks(learner, embedding, key, state, tasks, document.episodes.embedding)
        return {"probe": state, "members": herd, "embedded": embedded}

    shapes: dict[str, Any] = jax.eval_shape(parts, jax.random.key(0))
    return shapes


# Environment, task set and learner -----------------------------------------------------------------------------------


def describe_environment(env: TaskEnv) -> EnvironmentEntry:
    """Return what a file says of an environment."""
    if type(env) is not Locomotion:
        return EnvironmentEntry(type(env).__name__)
    names = ("expected_action_scale", "variants", "walker_frame_skip")
    return EnvironmentEntry("locomotion", env.backend, bodies=tuple(env.bodies), **{name: getattr(env, name) for name in names})


def find_environment(entry: EnvironmentEntry) -> TaskEnv:
    """Return the package's environment of that name.

    Raises:
      ValueError: There is none.
    """
    if entry.name != "locomotion":
        raise ValueError(f"its environment {entry.name} is not the package's: hand it over with load(..., env=...)")
    options: dict[str, Any] = {"variants": entry.variants, "walker_frame_skip": entry.walker_frame_skip}
    if entry.bodies is not None:
        options["bodies"] = entry.bodies
    return Locomotion(entry.physics, entry.expected_action_scale, **options)


def describe_task_set(task_set: TaskSet) -> TaskSetEntry:
    """Return what a file says of a task set."""
    return TaskSetEntry(task_set.name, task_set.version, tuple(task_set.task_names))


def find_task_set(entry: TaskSetEntry, given: TaskSet | None) -> TaskSet:
    """Return the task set given, or the package's of that name.

    Raises:
      ValueError: There is none, or it is not the one described.
    """
    if given is None:
        make = TASK_SETS.get(entry.name.lower())
        if make is None:
            raise ValueError(f"its task set {entry.name} is not the package's: hand it over with load(..., task_set=...)")
        given = make()
    if describe_task_set(given) != entry:
        raise ValueError(f"it was trained on {entry.name} version {entry.version}, not {given.name} {given.version}")
    return given


def describe_learner(learner: Any) -> LearnerEntry:
    """Return what a file says of a learner.

    Raises:
      ValueError: The learner is of no algorithm of the registry.
    """
    kind = type(learner)
    for name, entry in ALGORITHMS.items():
        if kind is entry.learner:
            return LearnerEntry(name, {size: int(getattr(learner, size)) for size in entry.sizes}, learner.config)
    raise ValueError(f"a herd of {kind.__name__} cannot be saved: only {', '.join(ALGORITHMS)} can be named in a file")


def build_learner(entry: LearnerEntry, env: TaskEnv) -> MetaLearner:
    """Return the learner that a file describes.

    Raises:
      ValueError: There is no such algorithm, or a size or setting is impossible.
    """
    if entry.name not in ALGORITHMS:
        raise ValueError(f"its learner {entry.name!r} is none of {', '.join(ALGORITHMS)}")
    algorithm = ALGORITHMS[entry.name]
    sizes = {algorithm.former_sizes.get(name, name): size for name, size in entry.sizes.items()}
    if set(sizes) != set(algorithm.sizes):
        raise ValueError(f"learner.sizes must name {', '.join(algorithm.sizes)}")
    if any(type(size) is not int or not 1 <= size <= LARGEST for size in sizes.values()):
        raise ValueError(f"learner.sizes must be from 1 to {LARGEST}")
    settings: Any = decode(algorithm.config, entry.config, "learner.config")
    if getattr(settings, "horizon", 1) > LARGEST:
        raise ValueError(f"learner.config: horizon must be from 1 to {LARGEST}")
    return algorithm.learner(env, **sizes, config=settings)
