"""What an experiment is: one frozen configuration. The presets are in `experiments.presets`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tamherd_jax.codec import decode, encode, read_json, sealed, unsealed, write_json
from tamherd_jax.envs.tasks import TASK_SETS
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.herd.embeddings import EmbeddingConfig
from tamherd_jax.registry.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    Algorithm,
    AlgorithmConfig,
    get_algorithm,
    names_with,
)
from tamherd_jax.registry.bodies import ADJUSTABLE_FRAME_SKIP
from tamherd_jax.registry.choices import CONTROLS, PROBES
from tamherd_jax.validation import Limit, NonNegativeInt, PositiveFloat, at_least, check_fields

FORMAT = 1
FORMATS = {0: False, FORMAT: True}
"""Formats of config.json that can be read, and whether each has a checksum; the first release wrote none."""
MOST = 10**6
"""More of anything than any experiment has; an array of so many is still small."""
Count = Annotated[int, at_least(1), Limit(f"be at most {MOST}", lambda value: value <= MOST)]
MAX_SHOTS = 1000
"""Most exploration episodes of a test."""
MAX_SEED = 2**32 - 1
"""JAX makes random keys of 32 bits: the seed after this one would have the keys of seed 0."""
_NEEDS = {"double-gradient": "gradient_steps"}
"""Capability of the algorithm (attribute of its registry entry) that a control needs."""


def all_controls(algorithm: str) -> tuple[str, ...]:
    """The controls that an algorithm can have."""
    entry = get_algorithm(algorithm)
    return tuple(name for name in CONTROLS if name not in _NEEDS or getattr(entry, _NEEDS[name]))


T = TypeVar("T")


def add_learner_settings(cls: type[T]) -> type[T]:
    """Add a field with the default settings of each algorithm of the registry, named after it, to a dataclass in the making."""
    for name, entry in ALGORITHMS.items():
        cls.__annotations__[name] = entry.config
        setattr(cls, name, entry.config())
    return cls


@dataclasses.dataclass(frozen=True)
@add_learner_settings
class ExperimentConfig:
    """One experiment: probe, embeddings, clusters, herd, single learner and oracle on ML2, for several seeds.

    Attributes:
      preset: name it started from.
      algorithm: the meta-learner, of `registry.ALGORITHMS`.
      seeds: S, number of seeds.
      first_seed: seeds are `first_seed, ..., first_seed + seeds - 1`.
      tasks: name of a task set of `envs.TASK_SETS`.
      physics: backend name.
      expected_action_scale: environment actions are `clip(a / scale, -1, 1)`; garage has 10 for MAML, 1 for PEARL.
      walker_frame_skip: physics steps of 0.002 s in an environment step of the walker: gymnasium's 4, or ProMP's 8.
      probe: kind of the probe, of `registry.choices.PROBES`.
      probe_epochs: epochs after which the probe is frozen; 0 for one that is not trained.
      reuse_probe: members copy the probe's replay of their tasks, and do not prefill their own.
      member_epochs: epochs of every herd member and oracle learner.
      single_epochs: epochs of the single learner; enough to get at least the herd's environment steps, probe included.
      draws_per_task: tasks sampled in an epoch for each of the N tasks; a herd shares the same total among its members.
      embedding_tasks: D, training tasks embedded and clustered, in equal shares of the N.
      embedding_episodes: probe episodes for each of them.
      probe_test_episodes: probe episodes that embed a test task, taken from the herd's exploration budget.
      explore_episodes: exploration episodes of a single or oracle learner; a herd member explores with what the probe left.
      test_episodes: episodes that measure an adapted policy.
      test_repeats: R, independent repeats of a meta-test: probe, assignment, exploration, adaptation and test episodes.
      epochs_per_call: training epochs that one call of a compiled program runs; the host sees, and checkpoints, their ends.
        XLA may round a loop of epochs otherwise than one alone.
      stop_at: return after adaptation, mean over seeds and tasks, at which training ends early: that of herd and oracle once
        the herd has had it in three tests in a row, that of the single learner likewise; None trains all epochs.
      shots: numbers of exploration episodes that the trained learners are tested with at the end, besides the usual one.
      test_tasks: name of the task set of these last tests, by default that of training.
      controls: further arms, of `registry.choices.CONTROLS`.
      embedding, clustering: settings of the parts. One more field per algorithm of the registry, named after it, holds the
        settings of that algorithm.
    """

    preset: str
    algorithm: str = DEFAULT_ALGORITHM
    seeds: Count = 1
    first_seed: NonNegativeInt = 0
    tasks: str = "ml2"
    physics: str = "auto"
    expected_action_scale: PositiveFloat = 10.0
    walker_frame_skip: Count = ADJUSTABLE_FRAME_SKIP
    probe: str = "meta"
    probe_epochs: NonNegativeInt = 10
    reuse_probe: bool = False
    member_epochs: Count = 40
    single_epochs: Count = 51
    draws_per_task: Count = 5
    embedding_tasks: Count = 40
    embedding_episodes: Count = 10
    probe_test_episodes: Count = 2
    explore_episodes: Count = 10
    test_episodes: Count = 10
    test_repeats: Count = 1
    epochs_per_call: Count = 1
    stop_at: float | None = None
    shots: tuple[NonNegativeInt, ...] = ()
    test_tasks: str | None = None
    controls: tuple[str, ...] = ()
    embedding: EmbeddingConfig = EmbeddingConfig()
    clustering: ClusteringConfig = ClusteringConfig()

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
          ValueError: naming the first field at fault.
        """
        check_fields(self)
        entry = get_algorithm(self.algorithm)
        if self.tasks not in TASK_SETS:
            raise ValueError(f"unknown task set {self.tasks!r}; choose from {', '.join(TASK_SETS)}")
        if self.test_tasks is not None and self.test_tasks not in TASK_SETS:
            raise ValueError(f"unknown task set {self.test_tasks!r}; choose from {', '.join(TASK_SETS)}")
        if self.test_tasks is not None and not self.shots:
            raise ValueError("test_tasks need shots, the numbers of exploration episodes to test with")
        if len(set(self.shots)) < len(self.shots) or max(self.shots, default=0) > MAX_SHOTS:
            raise ValueError(f"shots must be different numbers up to {MAX_SHOTS}, not {list(self.shots)}")
        if self.first_seed + self.seeds > MAX_SEED + 1:
            raise ValueError(f"first_seed must leave {self.seeds} seeds up to {MAX_SEED}, not be {self.first_seed}")
        if self.single_epochs < self.probe_epochs:
            raise ValueError(f"single_epochs ({self.single_epochs}) must cover the probe's ({self.probe_epochs})")
        if self.probe_test_episodes >= self.explore_episodes:
            raise ValueError("probe_test_episodes must leave the herd at least one exploration episode")
        if self.embedding.kind == "latent" and not entry.latent:
            raise ValueError(
                f"embedding kind 'latent' is a probe's posterior over a latent; it needs algorithm {names_with('latent')}"
            )
        self._check_probe(entry)
        self._check_controls()

    @property
    def settings(self) -> AlgorithmConfig:
        """Settings of the algorithm."""
        return getattr(self, self.algorithm)

    def _check_probe(self, entry: Algorithm) -> None:
        if self.probe not in PROBES:
            raise ValueError(f"a probe is one of {', '.join(PROBES)}, not {self.probe!r}; probe epochs of 0 leave it untrained")
        if self.probe != "meta" and not entry.inner_step:
            raise ValueError(
                f"a {self.probe} probe is a meta-learner without its inner step; it needs algorithm "
                f"{names_with('inner_step')}: {self.algorithm} has no inner step"
            )
        if self.reuse_probe and not entry.replay:
            raise ValueError(
                f"reusing the probe's trajectories needs algorithm {names_with('replay')}: {self.algorithm} learns from "
                "trajectories of the learner's own policy, which a fresh member's is not"
            )
        if self.reuse_probe and self.probe_epochs == 0:
            raise ValueError("there are no trajectories of a probe of 0 epochs to reuse")

    def _check_controls(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                raise ValueError(f"unknown control {name!r}; choose from {', '.join(CONTROLS)}, or all or none")
        for name in self.controls:
            if name not in all_controls(self.algorithm):
                raise ValueError(f"control {name} needs algorithm {names_with(_NEEDS[name])}, not {self.algorithm}")
        if len(set(self.controls)) < len(self.controls):
            raise ValueError(f"a control is named twice: {', '.join(self.controls)}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a plain nested dictionary, as result files carry them."""
        document: dict[str, Any] = encode(self)
        return document

    @classmethod
    def from_json(cls, document: Any) -> ExperimentConfig:
        """Return the configuration that `to_json` wrote, in this version or an earlier one.

        Raises:
          ValueError: In one line, if a field is unknown or impossible.
        """
        return decode(cls, document)

    def write(self, directory: Path) -> None:
        """Write `config.json` into a run directory.

        Raises:
          OSError: It cannot be written.
        """
        write_json(directory / "config.json", sealed({"format": FORMAT, **self.to_json()}))

    @classmethod
    def of_run(cls, directory: Path) -> ExperimentConfig:
        """Return the configuration of the run in a directory.

        Raises:
          ValueError: In one line, if there is none or it cannot be read.
        """
        path = directory / "config.json"
        try:
            return cls.from_json(unsealed(read_json(path), path, FORMATS))
        except FileNotFoundError as error:
            raise ValueError(f"{directory} holds no run: config.json is missing") from error
        except NotADirectoryError as error:
            raise ValueError(f"{directory} is no directory") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
