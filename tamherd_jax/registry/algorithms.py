"""Algorithms that the package can run: an entry holds everything that distinguishes one from another.

To add an algorithm, write its learner (`tamherd_jax.types.MetaLearner`) and its frozen configuration class, and add one entry
to `ALGORITHMS`. Configuration, command line, controls, presets, saved herds, tables and reports look the entry up. Classes are
imported when they are first needed, so that reading the registry imports neither a learner nor JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tamherd_jax.registry.choices import Choices

if TYPE_CHECKING:
    from tamherd_jax.types import MetaLearner, TaskEnv

AlgorithmConfig: TypeAlias = Any
"""Frozen dataclass with an algorithm's settings, an instance of its entry's configuration class."""

Fields: TypeAlias = Mapping[str, Any]
"""Values of dataclass fields by name, nested for fields that are dataclasses themselves."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What an experiment asks of one learner.

    Attributes:
      meta_batch_size: tasks sampled per epoch.
      tasks: N, tasks of the task set.
      epochs: most epochs that any learner of the experiment trains.
      largest_meta_batch: most tasks that any learner of the experiment samples per epoch.
    """

    meta_batch_size: int
    tasks: int
    epochs: int
    largest_meta_batch: int


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """Results that the paper reports for an algorithm.

    Attributes:
      number: of the table.
      returns: body to arm to the median over 10 seeds of the best return.
    """

    number: int
    returns: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """Entry of one algorithm.

    Attributes:
      name: in configurations, on the command line and in files; also the field of `ExperimentConfig` with its settings.
      title: in texts.
      herd_title: heading of the herd's results.
      load: returns the learner class and the configuration class.
      build: `(env, settings, share) -> learner`.
      sizes: constructor arguments of the learner class besides environment and configuration, which saved herds record.
      former_sizes: their names in herds of earlier releases, to those of today.
      presets: name to fields of `ExperimentConfig`; what it is in a few words under `"about"`, the algorithm's settings under
        `"settings"`, and `"all"` for all controls.
      default_preset: the preset where the user names only the algorithm.
      panels: embeddings that `tamherd embed` shows by default.
      build_plain: `(env, settings, share, train_reward) -> learner` of one policy for all tasks, without the inner step; None
        for an algorithm without an inner step.
      replay: whether the learner is a `ReplayLearner`, so that members can start from the probe's replay.
      latent: whether the learner is a `LatentLearner`, so that tasks can be embedded by their posterior.
      gradient_steps: whether `settings.gradient_steps` gradient steps are taken per epoch, which a control can double.
      paper: the paper's results.
    """

    name: str
    title: str
    herd_title: str
    load: Callable[[], tuple[type, type]]
    build: Callable[[TaskEnv, AlgorithmConfig, Share], MetaLearner]
    sizes: tuple[str, ...]
    presets: Mapping[str, Fields]
    default_preset: str
    panels: tuple[str, ...]
    build_plain: Callable[[TaskEnv, AlgorithmConfig, Share, Any], MetaLearner] | None = None
    replay: bool = False
    latent: bool = False
    gradient_steps: bool = False
    paper: PaperTable | None = None
    former_sizes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def learner(self) -> type:
        """Learner class."""
        return self.load()[0]

    @property
    def config(self) -> type:
        """Configuration class."""
        return self.load()[1]

    @property
    def inner_step(self) -> bool:
        """Whether the algorithm has an inner step that can be left out."""
        return self.build_plain is not None


def _load_maml() -> tuple[type, type]:
    from tamherd_jax.maml.learner import MAML, MAMLConfig

    return MAML, MAMLConfig


def _build_maml(env: TaskEnv, settings: AlgorithmConfig, share: Share) -> MetaLearner:
    from tamherd_jax.maml.learner import MAML

    return MAML(env, share.meta_batch_size, settings)


def _build_plain_maml(env: TaskEnv, settings: AlgorithmConfig, share: Share, train_reward: Any) -> MetaLearner:
    from tamherd_jax.maml.learner import MAML

    return MAML(env, share.meta_batch_size, dataclasses.replace(settings, inner_steps=0), train_reward)


def _load_pearl() -> tuple[type, type]:
    from tamherd_jax.pearl.config import PEARLConfig
    from tamherd_jax.pearl.learner import PEARL

    return PEARL, PEARLConfig


def _build_pearl(env: TaskEnv, settings: AlgorithmConfig, share: Share) -> MetaLearner:
    """Build the learner with room for no more transitions than the run can collect, were every draw of the same task."""
    from tamherd_jax.pearl.learner import PEARL

    collected = settings.initial_steps + share.epochs * share.largest_meta_batch * (
        settings.prior_steps + settings.posterior_steps
    )
    capacity = max(settings.encoder_capacity, min(settings.replay_capacity, collected))
    return PEARL(env, share.meta_batch_size, share.tasks, dataclasses.replace(settings, replay_capacity=capacity))


# Found the bodies in every seed of `benchmarks.embedding_study`; the paper's reward weights did in 17 of 20.
_FISHER = {"reward": "none", "metric": "cosine"}
_LITERAL_MAML = {"advantage_scale": "variance", "outer_loss": "likelihood"}
# A minute of training: inner step, inner loss and wide trust region of `tuned-maml`. Over eight seeds the herd ends ahead of
# the single learner on the mean of bodies (benchmarks/results/quick-8-seeds).
_QUICK_MAML = {
    "inner_step_size": 0.2,
    "inner_loss": "ratio",
    "gae_lambda": 0.95,
    "trpo": {"max_kl": 0.2},
}
# Twice the inner step is worth 30 to 50 to a cheetah oracle; ProMP's inner loss keeps its policy from leaning to one direction.
# Walkers need large steps, lasting noise and advantages that look further ahead to leave a first gait behind, all need small
# steps at the end (docs/learning.md).
_LONG_TUNED_MAML = {
    "inner_step_size": 0.2,
    "inner_loss": "ratio",
    "discount": 0.995,
    "gae_lambda": 0.98,
    "entropy_coefficient": 0.015,
    "entropy_decay_steps": 200,
    "trpo": {"max_kl": 0.2, "final_max_kl": 0.05, "decay_begin": 140, "decay_steps": 100},
}
_PEARL_COUNTS = {
    "expected_action_scale": 1.0,
    "embedding_episodes": 1,
    "explore_episodes": 2,
    "probe_test_episodes": 1,
    "test_episodes": 1,
    "test_repeats": 4,
}
# LayerNorm in the critics, a target Q, the exact tanh density, rewards in units of their magnitude and a discount of 0.98:
# oracles return more with them after 20,000 updates (docs/learning.md). Exploration is noisy, as are the episodes from which a
# belief is inferred in training; and each of those beliefs is of two recent episodes, as in a test. Networks are sized for two
# cores.
_SMALL_PEARL = {
    "encoder_sizes": (64, 64),
    "hidden_sizes": (128, 128),
    "discount": 0.98,
    "learning_rate": 1e-3,
    "target_rate": 0.01,
    "reward_scale": 5.0,
    "reward_unit": "magnitude",
    "critic_norm": "layer",
    "bootstrap": "q",
    "squash": "exact",
    "deterministic_exploration": False,
    "context_window": 4000,
    "context_episodes": 2,
    "prior_steps": 400,
    "posterior_steps": 400,
    "gradient_steps": 800,
    "batch_size": 64,
    "context_size": 64,
    "replay_capacity": 40_000,
}
# Recipe `fine-scale-20-d99` of `benchmarks.pearl_learning`. Its epochs are longer than those of `quick-pearl`, with the same
# ratio of updates to environment steps.
_TUNED_PEARL = {
    **_SMALL_PEARL,
    "discount": 0.99,
    "reward_scale": 20.0,
    "critic_loss": "categorical",
    "value_bins": 401,
    "value_limit": 4000.0,
    "prior_steps": 600,
    "posterior_steps": 600,
    "gradient_steps": 1250,
    "replay_capacity": 60_000,
}

_MAML = Algorithm(
    name="maml",
    title="MAML",
    herd_title="Herd of MAMLs",
    load=_load_maml,
    build=_build_maml,
    build_plain=_build_plain_maml,
    sizes=("meta_batch_size",),
    default_preset="quick",
    panels=("fisher", "transition", "gradient"),
    presets={
        "quick": {
            "about": "minutes on two cores",
            "probe_epochs": 8,
            "member_epochs": 24,
            "single_epochs": 33,
            "embedding_tasks": 20,
            "embedding_episodes": 5,
            "embedding": _FISHER,
            "settings": _QUICK_MAML,
        },
        "paper-maml": {"about": "the paper's Table 3", "seeds": 10, "controls": "all", "settings": _LITERAL_MAML},
        "tuned-maml": {
            "about": "what learns best here",
            "seeds": 10,
            "member_epochs": 240,
            "single_epochs": 251,
            "draws_per_task": 10,
            "embedding": _FISHER,
            "settings": _LONG_TUNED_MAML,
        },
        "long-maml": {
            "about": "paper-maml with garage's 300 epochs",
            "seeds": 10,
            "member_epochs": 300,
            "single_epochs": 311,
            "controls": "all",
            "settings": _LITERAL_MAML,
        },
    },
    paper=PaperTable(
        number=1,
        returns={  # the single MAML's walker is also printed as 229.1
            "cheetah": {"oracle": 221.6, "single": 236.6, "herd": 221.2},
            "walker": {"oracle": 298.5, "single": 229.7, "herd": 298.5},
        },
    ),
)

_PEARL = Algorithm(
    name="pearl",
    title="PEARL",
    herd_title="String of PEARLs",
    load=_load_pearl,
    build=_build_pearl,
    sizes=("meta_batch_size", "tasks"),
    former_sizes={"draws": "meta_batch_size"},
    default_preset="quick-pearl",
    panels=("fisher", "transition", "latent", "gradient"),
    replay=True,
    latent=True,
    gradient_steps=True,
    presets={
        "quick-pearl": {
            "about": "minutes on two cores",
            "probe_epochs": 5,
            "member_epochs": 24,
            "single_epochs": 30,
            "embedding_tasks": 20,
            "embedding": _FISHER,
            "settings": _SMALL_PEARL,
            **_PEARL_COUNTS,
        },
        "tuned-pearl": {
            "about": "what learns best here",
            "seeds": 10,
            "probe_epochs": 4,
            "member_epochs": 100,
            "single_epochs": 105,
            "controls": ("double-gradient",),
            "embedding_tasks": 20,
            "embedding": _FISHER,
            "settings": _TUNED_PEARL,
            **_PEARL_COUNTS,
        },
        "paper-pearl": {
            "about": "the paper's Table 4",
            "seeds": 10,
            "probe_epochs": 1,
            "member_epochs": 100,
            "single_epochs": 102,
            "controls": "all",
            **_PEARL_COUNTS,
        },
    },
    paper=PaperTable(
        number=2,
        returns={
            "cheetah": {"oracle": 1004.5, "single": 447.7, "herd": 1004.5},
            "walker": {"oracle": 414.9, "single": 507.6, "herd": 414.9},
        },
    ),
)

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType({entry.name: entry for entry in (_MAML, _PEARL)})
"""Entries by name, in the order of the paper's tables."""

DEFAULT_ALGORITHM = next(iter(ALGORITHMS))
"""Algorithm of a configuration that names none."""

PRESETS: Choices = {name: fields["about"] for entry in ALGORITHMS.values() for name, fields in entry.presets.items()}
"""Presets of all algorithms, and what each is."""


def get_algorithm(name: str) -> Algorithm:
    """Return an entry by its name.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; choose from {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def names_with(capability: str) -> str:
    """Return the names of all algorithms with a capability (a boolean attribute of `Algorithm`), for messages."""
    return " or ".join(name for name, entry in ALGORITHMS.items() if getattr(entry, capability)) or "of another kind"
