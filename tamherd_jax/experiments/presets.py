"""The presets: configurations that the command line names. Their values stand in the registry entry of their algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tamherd_jax.envs.tasks import get_task_set
from tamherd_jax.experiments.config import ExperimentConfig, all_controls
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.registry.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, Algorithm, Fields


def _preset(name: str, entry: Algorithm, fields: Fields) -> ExperimentConfig:
    """Build a preset from its entry's fields."""
    changes = {key: value for key, value in fields.items() if key != "about"}
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
advantages by their standard deviation, with a smaller lambda. `tuned-pearl`: normalised categorical critics, a target Q,
rewards in units of their magnitude, six times the updates of `quick-pearl`.

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
    """Return a preset with fields replaced.

    Args:
      name: Of `PRESETS`.
      **overrides: See `override`.

    Raises:
      ValueError: Unknown preset or impossible value, in one line.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    config, algorithm = PRESETS[name], overrides.get("algorithm")
    if algorithm not in (None, config.algorithm) and algorithm in ALGORITHMS:
        raise ValueError(f"preset {name} trains {config.algorithm}, not {algorithm}; leave one of the two out")
    return override(config, **overrides)


def override(config: ExperimentConfig, **overrides: Any) -> ExperimentConfig:
    """Return a configuration with fields replaced.

    Args:
      config: The configuration.
      **overrides: Fields of `ExperimentConfig`; None keeps what is there. New `member_epochs` and `probe_epochs` move
        `single_epochs` along. Other `tasks` have as many clusters as modes, if that is what the old ones had.

    Raises:
      ValueError: An impossible value, in one line.
    """
    changes = {key: value for key, value in overrides.items() if value is not None}
    if "tasks" in changes:
        changes.setdefault("clustering", _clustering_of(config, changes["tasks"]))
    if "single_epochs" not in changes:
        longer = dataclasses.replace(config, **changes, single_epochs=max(config.single_epochs, changes.get("probe_epochs", 0)))
        changes["single_epochs"] = moved_single_epochs(config, longer)
    return dataclasses.replace(config, **changes)


def _clustering_of(config: ExperimentConfig, tasks: str) -> ClusteringConfig:
    """Return the clustering for another task set: as many clusters as modes, where the configuration had that many."""
    before, after = (len(get_task_set(name).mode_names) for name in (config.tasks, tasks))
    if config.clustering.clusters != before:
        return config.clustering
    return dataclasses.replace(config.clustering, clusters=after)


def moved_single_epochs(before: ExperimentConfig, after: ExperimentConfig) -> int:
    """Return the single learner's epochs after a change of the probe's and the members', which it covers as before."""
    grown = after.member_epochs - before.member_epochs + after.probe_epochs - before.probe_epochs
    return before.single_epochs + grown
