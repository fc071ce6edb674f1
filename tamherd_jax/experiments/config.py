"""What an experiment is: one frozen configuration, and the presets that the command line names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tamherd_jax.envs.tasks import TASK_SETS
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.herd.embeddings import EmbeddingConfig
from tamherd_jax.maml.learner import MAMLConfig
from tamherd_jax.maml.trpo import TRPOConfig
from tamherd_jax.pearl.config import PEARLConfig
from tamherd_jax.physics.bodies import FRAME_SKIP, WALKER
from tamherd_jax.serialization import rebuild

ALGORITHMS = ("maml", "pearl")
CONTROLS = {
    "random-assignment": "the trained herd, each test task given to a member at random",
    "oracle-assignment": "the trained herd, each test task given to the member that trained most on its body",
    "random-clusters": "a herd whose members train on random halves of the training tasks",
    "untrained-probe": "a herd whose training and test tasks are embedded with a probe that never trained",
    "double-gradient": "a single PEARL learner that takes twice the gradient steps, as many as a herd of two",
}
"""Further arms that a run may have, and what each is."""
PROBES = {
    "meta": "the single learner, stopped early",
    "multitask": "MAML without its inner step: one policy for all tasks",
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
    return tuple(name for name in CONTROLS if name != "double-gradient" or algorithm == "pearl")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: probe, embeddings, clusters, herd, single learner and oracle on ML2, for several seeds.

    Attributes:
      preset: name it started from.
      algorithm: the meta-learner, `maml` or `pearl`.
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
      embedding, clustering, maml, pearl: settings of the parts.
    """

    preset: str
    algorithm: str = "maml"
    seeds: int = 1
    first_seed: int = 0
    tasks: str = "ml2"
    physics: str = "auto"
    expected_action_scale: float = 10.0
    walker_frame_skip: int = FRAME_SKIP[WALKER]
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
    maml: MAMLConfig = MAMLConfig()
    pearl: PEARLConfig = PEARLConfig()

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
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; choose from {', '.join(ALGORITHMS)}")
        if self.tasks not in TASK_SETS:
            raise ValueError(f"unknown task set {self.tasks!r}; choose from {', '.join(TASK_SETS)}")
        if self.embedding.kind == "latent" and self.algorithm != "pearl":
            raise ValueError("embedding kind 'latent' is the posterior of a PEARL probe; it needs algorithm pearl")
        self._check_probe()
        self._check_controls()

    def _check_probe(self) -> None:
        if self.probe not in PROBES:
            raise ValueError(f"a probe is one of {', '.join(PROBES)}, not {self.probe!r}; probe epochs of 0 leave it untrained")
        if self.probe != "meta" and self.algorithm != "maml":
            raise ValueError(
                f"a {self.probe} probe is MAML without its inner step; {self.algorithm} has no such step, and its replay would "
                "go on paying what an earlier batch's classifier said"
            )
        if self.reuse_probe and self.algorithm != "pearl":
            raise ValueError(
                f"reusing the probe's trajectories needs algorithm pearl: {self.algorithm} learns from trajectories of the "
                "learner's own policy, which a fresh member's is not"
            )
        if self.reuse_probe and self.probe_epochs == 0:
            raise ValueError("there are no trajectories of a probe of 0 epochs to reuse")

    def _check_controls(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                raise ValueError(f"unknown control {name!r}; choose from {', '.join(CONTROLS)}, or all or none")
        if not set(self.controls) <= set(all_controls(self.algorithm)):
            raise ValueError("control double-gradient needs algorithm pearl; MAML takes one meta-update an epoch")
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


# What found the bodies in every seed of `benchmarks.embedding_study`; the paper's reward weights did in 17 of 20.
_FISHER = EmbeddingConfig(reward="none", metric="cosine")
_LITERAL_MAML = MAMLConfig(advantage_scale="variance", outer_loss="likelihood")
# The literal recipe is slowed by its trust region: at a KL of 0.01 a cheetah oracle was at 24 / 117 (forward / backward) after
# 50 epochs of 20 tasks, at 0.05 at 74 / 182; 0.1 with 10 tasks was no better than 0.03 (benchmarks/results/learning.csv).
_TUNED_MAML = MAMLConfig(trpo=TRPOConfig(max_kl=0.05))
# Twice the inner step is worth 30 to 50 to a cheetah oracle; ProMP's inner loss keeps its policy from leaning to one direction.
# Walkers need large steps and lasting noise to leave a first gait behind, all need small steps at the end (docs/learning.md).
_LONG_TUNED_MAML = MAMLConfig(
    inner_step_size=0.2,
    inner_loss="ratio",
    gae_lambda=0.95,
    entropy_coefficient=0.015,
    entropy_decay_steps=200,
    trpo=TRPOConfig(max_kl=0.2, final_max_kl=0.05, decay_begin=140, decay_steps=100),
)
_PEARL: dict[str, Any] = {
    "algorithm": "pearl",
    "expected_action_scale": 1.0,
    "embedding_episodes": 1,
    "explore_episodes": 2,
    "probe_test_episodes": 1,
    "test_episodes": 1,
    "test_repeats": 4,
}
# At a tenth of the paper's gradient steps the policy has to leave the noise of maximum entropy behind sooner: with the paper's
# reward scale of 5 a cheetah oracle was at 120 after 16,000 steps, with 25 at 289. Networks are sized for two cores.
_SMALL_PEARL = PEARLConfig(
    encoder_sizes=(64, 64),
    hidden_sizes=(128, 128),
    learning_rate=1e-3,
    target_rate=0.01,
    reward_scale=25.0,
    prior_steps=400,
    posterior_steps=400,
    gradient_steps=800,
    batch_size=64,
    context_size=64,
    replay_capacity=40_000,
)

PRESETS = {
    "quick": ExperimentConfig(
        preset="quick",
        probe_epochs=8,
        member_epochs=20,
        single_epochs=29,
        embedding_tasks=20,
        embedding_episodes=5,
        embedding=_FISHER,
        maml=_TUNED_MAML,
    ),
    "quick-pearl": ExperimentConfig(
        preset="quick-pearl",
        probe_epochs=5,
        member_epochs=24,
        single_epochs=30,
        embedding_tasks=20,
        embedding=_FISHER,
        pearl=_SMALL_PEARL,
        **_PEARL,
    ),
    "paper-maml": ExperimentConfig(preset="paper-maml", seeds=10, controls=all_controls("maml"), maml=_LITERAL_MAML),
    "paper-pearl": ExperimentConfig(
        preset="paper-pearl",
        seeds=10,
        probe_epochs=1,
        member_epochs=100,
        single_epochs=102,
        controls=all_controls("pearl"),
        **_PEARL,
    ),
    "tuned-maml": ExperimentConfig(
        preset="tuned-maml",
        seeds=10,
        member_epochs=240,
        single_epochs=251,
        draws_per_task=10,
        embedding=_FISHER,
        maml=_LONG_TUNED_MAML,
    ),
    "long-maml": ExperimentConfig(
        preset="long-maml",
        seeds=10,
        member_epochs=300,
        single_epochs=311,
        controls=all_controls("maml"),
        maml=_LITERAL_MAML,
    ),
}
"""`quick` and `quick-pearl`: the whole method in minutes on two cores. `paper-maml`: Table 3. `paper-pearl`: Table 4.
`long-maml`: garage's 300 epochs. These three have every arm, the controls included. `tuned-maml`: what learns best here, a
wide trust region that narrows, an entropy bonus that fades, ProMP's inner loss, twice the tasks an epoch and the inner step,
advantages by their standard deviation, with a smaller lambda.

`paper-pearl` keeps the paper's probe of one epoch and its reward weights. With the small networks of `quick-pearl` that probe
found the bodies badly: adjusted Rand index 0.80, 0.13 and 0.02 in three seeds (0.62, 1 and 0.80 without reward weights and with
cosine distances). After five epochs it was 1, 0.06 and 0.80, or 1, 1 and 1 with all test tasks assigned right: `quick-pearl`.
"""


def preset_name(name: str | None, algorithm: str | None) -> str:
    """The preset that a user's options mean: `quick` by default, which is `quick-pearl` for PEARL."""
    return "quick-pearl" if name in (None, "quick") and algorithm == "pearl" else name or "quick"


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
