"""Meta-reinforcement learning on multi-modal task distributions, entirely on the accelerator.

The names below are loaded on first use; the subpackages hold the rest.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "Locomotion": "envs",
    "Task": "envs",
    "TaskSet": "envs",
    "ml2": "envs",
    "MAML": "maml",
    "MAMLConfig": "maml",
    "adapt": "maml",
    "trpo_step": "maml",
    "Herd": "herd.artefact",
    "MetaLearner": "types",
    "Experiment": "experiments.runner",
    "ExperimentConfig": "experiments.config",
    "get_preset": "experiments.presets",
    "track_progress": "reporting.terminal",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Load a public name from its subpackage."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)
