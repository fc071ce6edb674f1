"""What an experiment is: one frozen configuration, and the presets that the command line names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tamherd_jax.envs.tasks import TASK_SETS
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.herd.embeddings import EmbeddingConfig
from tamherd_jax.registry.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    Algorithm,
    Fields,
    Settings,
    get_algorithm,
    names_with,
)
from tamherd_jax.registry.bodies import ADJUSTABLE_FRAME_SKIP
from tamherd_jax.serialization import rebuild

CONTROLS = {
    "random-assignment": "the trained herd, each test task given to a member at random",
    "oracle-assignment": "the trained herd, each test task given to the member that trained most on its body",
    "random-clusters": "a herd whose members train on random halves of the training tasks",
    "untrained-probe": "a herd whose training and test tasks are embedded with a probe that never trained",
    "double-gradient": "a single learner that takes twice the gradient steps, as many as a herd of two",
}
"""Further arms that a run may have, and what each is."""
_NEEDS = {"double-gradient": "gradient_steps"}
"""Capability of the algorithm (attribute of its registry entry) that a control needs."""
PROBES = {
    "meta": "the single learner, stopped early",
    "multitask": "the meta-learner without its inner step: one policy for all tasks",
    "discriminative": "a multitask probe that is also paid for telling tasks apart (see `herd.information`)",
}
"""Kinds of probe. One that is not `meta` is a learner of its own, an arm with the kind's name."""
_LATER = {
    "ExperimentConfig": ("probe", "reuse_probe", "walker_frame_skip"),
    "MAMLConfig": ("inner_loss", "entropy_coefficient", "entropy_decay_steps"),
    "TRPOConfig": ("final_max_kl", "decay_begin", "decay_steps"),
}
"""Fields that came after the first results: JSON has them only where they are not the default, so that those read back."""


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
      probe: kind of the probe, of `PROBES`.
      probe_epochs: epochs after which the probe is frozen; 0 for one that is not trained.
      reuse_probe: PEARL's herd members start from the probe's replay of their tasks in place of a fresh initial collection.
      member_epochs: epochs of every herd member and oracle learner.
      single_epochs: epochs of the single learner; enough to get at least the herd's environment steps, probe included.
      draws_per_task: task draws an epoch for each of the N tasks; a herd shares the same total among its members.
      embedding_tasks: D, training tasks embedded and clustered, in equal shares of the N.
      embedding_episodes: probe episodes for each of them.
      probe_test_episodes: probe episodes that embed a test task, taken from the herd's exploration budget.
      explore_episodes: exploration episodes of a single or oracle learner; a herd member explores with what the probe left.
      test_episodes: episodes that measure an adapted policy.
      test_repeats: R, independent repeats of a meta-test: probe, assignment, exploration, adaptation and test episodes.
      epochs_per_call: training epochs that one call of a compiled program runs; the host sees, and checkpoints, their ends.
        XLA may round a loop of epochs otherwise than one alone.
      controls: further arms, of `CONTROLS`.
      embedding, clustering: settings of the parts. One more field per algorithm of the registry, named after it, holds the
        settings of that algorithm.
    """

    preset: str
    algorithm: str = DEFAULT_ALGORITHM
    seeds: int = 1
    first_seed: int = 0
    tasks: str = "ml2"
    physics: str = "auto"
    expected_action_scale: float = 10.0
    walker_frame_skip: int = ADJUSTABLE_FRAME_SKIP
    probe: str = "meta"
    probe_epochs: int = 10
    reuse_probe: bool = False
    member_epochs: int = 40
    single_epochs: int = 51
    draws_per_task: int = 5
    embedding_tasks: int = 40
    embedding_episodes: int = 10
    probe_test_episodes: int = 2
    explore_episodes: int = 10
    test_episodes: int = 10
    test_repeats: int = 1
    epochs_per_call: int = 1
    controls: tuple[str, ...] = ()
    embedding: EmbeddingConfig = EmbeddingConfig()
    clustering: ClusteringConfig = ClusteringConfig()

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
          ValueError: naming the first field at fault.
        """
        positive = ("seeds", "member_epochs", "draws_per_task", "embedding_episodes", "test_episodes")
        for name in (*positive, "test_repeats", "epochs_per_call", "walker_frame_skip"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}")
        for name in ("first_seed", "probe_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name.replace('_', ' ')} must not be negative, not {getattr(self, name)}")
        if self.single_epochs < self.probe_epochs:
            raise ValueError(f"single epochs ({self.single_epochs}) must cover the probe's ({self.probe_epochs})")
        if not 1 <= self.probe_test_episodes < self.explore_episodes:
            raise ValueError("probe test episodes must leave the herd at least one exploration episode")
        entry = get_algorithm(self.algorithm)
        if self.tasks not in TASK_SETS:
            raise ValueError(f"unknown task set {self.tasks!r}; choose from {', '.join(TASK_SETS)}")
        if self.embedding.kind == "latent" and not entry.latent:
            raise ValueError(
                f"embedding kind 'latent' is a probe's posterior over a latent; it needs algorithm {names_with('latent')}"
            )
        self._check_probe(entry)
        self._check_controls()

    @property
    def settings(self) -> Settings:
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
        """Plain nested dictionary, as result files carry it."""
        return _document(self)

    @classmethod
    def from_json(cls, document: Any) -> ExperimentConfig:
        """The configuration that `to_json` wrote.

        Raises:
          ValueError: in one line, if a field is missing, unknown or impossible.
        """
        config: ExperimentConfig = rebuild(cls, document, optional=_LATER)
        if json.loads(json.dumps(config.to_json())) != document:
            raise ValueError("the configuration does not read back as it was written")
        return config

    @classmethod
    def of_run(cls, directory: Path) -> ExperimentConfig:
        """The configuration of the run in a directory.

        Raises:
          ValueError: in one line, if there is none or it cannot be read.
        """
        path = directory / "config.json"
        try:
            return cls.from_json(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise ValueError(f"{directory} holds no run: config.json is missing") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


def _document(config: Any) -> dict[str, Any]:
    """The fields of a nested dataclass as dictionaries, without those of `_LATER` that are the default."""
    later = _LATER.get(type(config).__name__, ())
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {name: value for name, value in fields.items() if name not in later or value != getattr(type(config), name)}
    return {name: _document(value) if dataclasses.is_dataclass(value) else value for name, value in kept.items()}


def _preset(name: str, entry: Algorithm, fields: Fields) -> ExperimentConfig:
    """Build a preset from its entry's fields."""
    changes = dict(fields)
    if "settings" in changes:
        changes[entry.name] = changes.pop("settings")
    if changes.get("controls") == "all":
        changes["controls"] = all_controls(entry.name)
    return dataclasses.replace(
        ExperimentConfig(preset=name, algorithm=entry.name),
        **{key: _replaced(getattr(ExperimentConfig, key), value) for key, value in changes.items()},
    )


def _replaced(default: Any, value: Any) -> Any:
    """Return `value`, or where it is a mapping, the dataclass `default` with those fields replaced."""
    if not isinstance(value, Mapping):
        return value
    return dataclasses.replace(default, **{name: _replaced(getattr(default, name), part) for name, part in value.items()})


PRESETS = {name: _preset(name, entry, fields) for entry in ALGORITHMS.values() for name, fields in entry.presets.items()}
"""`quick` and `quick-pearl`: the whole method in minutes on two cores. `paper-maml`: Table 3. `paper-pearl`: Table 4.
`long-maml`: garage's 300 epochs. These three have every arm, the controls included. `tuned-maml`: what learns best here, a
wide trust region that narrows, an entropy bonus that fades, ProMP's inner loss, twice the tasks an epoch and the inner step,
advantages by their standard deviation, with a smaller lambda.

`paper-pearl` keeps the paper's probe of one epoch and its reward weights. With the small networks of `quick-pearl` that probe
found the bodies badly: adjusted Rand index 0.80, 0.13 and 0.02 in three seeds (0.62, 1 and 0.80 without reward weights and with
cosine distances). After five epochs it was 1, 0.06 and 0.80, or 1, 1 and 1 with all test tasks assigned right: `quick-pearl`.
"""


def preset_name(name: str | None, algorithm: str | None) -> str:
    """Return the preset that a user's options mean: by default, and in place of the default one, the algorithm's own."""
    default = ALGORITHMS[DEFAULT_ALGORITHM].default_preset
    if algorithm is not None and algorithm in ALGORITHMS and name in (None, default):
        return ALGORITHMS[algorithm].default_preset
    return name or default


def parse_controls(text: str | None, algorithm: str) -> tuple[str, ...] | None:
    """Controls from names with commas between them, `all` that an algorithm can have, or `none`; None stays None."""
    if text in ("all", "none"):
        return all_controls(algorithm) if text == "all" else ()
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def get_preset(name: str, **overrides: Any) -> ExperimentConfig:
    """A preset with fields replaced.

    Args:
      name: of `PRESETS`.
      **overrides: fields of `ExperimentConfig`; None keeps the preset's. New `member_epochs` and `probe_epochs` move
        `single_epochs` along.

    Raises:
      ValueError: unknown preset or impossible value, in one line.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    config = PRESETS[name]
    changes = {key: value for key, value in overrides.items() if value is not None}
    if changes.get("algorithm", config.algorithm) != config.algorithm and changes["algorithm"] in ALGORITHMS:
        raise ValueError(f"preset {name} trains {config.algorithm}, not {changes['algorithm']}; leave one of the two out")
    grown = sum(changes.get(part, getattr(config, part)) - getattr(config, part) for part in ("member_epochs", "probe_epochs"))
    changes.setdefault("single_epochs", config.single_epochs + grown)
    return dataclasses.replace(config, **changes)
