"""Training scalars for TensorBoard, W&B or Trackio: what `tamherd run --log-to` names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from tamherd_jax.experiments.plan import Plan
    from tamherd_jax.experiments.run import Progress
    from tamherd_jax.experiments.state import RunState

PROJECT = "tamherd_jax"

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""Tracker -> the package that it needs. The last two are extras of the same names."""


class Tracker(Protocol):
    """Where scalars go."""

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Scalars by name at a number of environment steps."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


def parse_names(text: str) -> tuple[str, ...]:
    """Trackers from `tensorboard,wandb,trackio` or `none`.

    Raises:
      ValueError: an unknown name, or a package that is missing, in one line.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if names in ((), ("none",)):
        return ()
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"unknown tracker {name!r}; choose from {', '.join(PACKAGES)} (several with commas) or none")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"--log-to {name} needs the package {PACKAGES[name]}: pip install 'tamherd-jax[{name}]'")
    return names


class TensorBoard:
    """Event files under `DIR/tensorboard`, read by `tensorboard --logdir`."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        del config
        writer = importlib.import_module(PACKAGES["tensorboard"]).SummaryWriter
        self._writer = writer(str(directory / "tensorboard"))

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Write scalars; they are on disk within two minutes."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it on disk."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        wandb = importlib.import_module(PACKAGES["wandb"])
        self._run = wandb.init(project=PROJECT, name=directory.name, dir=str(directory), config=config)
        # Arms are trained one after another, so their steps do not ascend as W&B's own step must.
        self._run.define_metric("environment_steps")
        self._run.define_metric("*", step_metric="environment_steps")

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Send scalars."""
        self._run.log({**scalars, "environment_steps": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A run of Trackio, kept on this machine."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        self._trackio = importlib.import_module(PACKAGES["trackio"])
        self._trackio.init(project=PROJECT, name=directory.name, config=config)

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Store scalars."""
        self._trackio.log({**scalars, "environment_steps": step})

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


_TRACKERS: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


class Trackers:
    """Several trackers as one; one that fails is dropped with a line, for training must not die of its log.

    Args:
      names: of `parse_names`.
      directory: the run directory.
      config: the run's configuration.
      warn: takes a line of text.

    Raises:
      ValueError: a tracker cannot be started.
    """

    def __init__(self, names: Sequence[str], directory: Path, config: dict[str, Any], warn: Callable[[str], None]):
        self._warn = warn
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._trackers[name] = _TRACKERS[name](directory, config)
            except Exception as error:  # whatever a tracker of others raises
                self.close()
                raise ValueError(f"cannot start {name}: {_first_line(error)}; choose another with --log-to") from error

    def __enter__(self) -> Trackers:
        """Nothing to start."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all."""
        self.close()

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Scalars to all trackers."""
        self._each(lambda tracker: tracker.log(scalars, step))

    def close(self) -> None:
        """Close all."""
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[name]
                self._warn(f"{name} failed and is left out from here on: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def log_event(trackers: Trackers, event: Progress, plan: Plan, state: RunState) -> None:
    """An epoch's returns after adaptation: `arm/body` and `arm/task`, mean over seeds, and over all as `arm/all`.

    The step is that of Figure 2, environment steps of the arm's budget.
    """
    from tamherd_jax.experiments.state import budget_steps

    task_set = plan.task_set
    for arm, values in event.returns.items():
        steps = budget_steps(plan, state, plan.arms[arm], len(state.curves_of(arm).after))
        scalars = {f"{arm}/all": float(values.mean())}
        for mode, body in enumerate(task_set.mode_names):
            scalars[f"{arm}/{body}"] = float(values[:, task_set.modes == mode].mean())
        for index, task in enumerate(task_set.task_names):
            scalars[f"{arm}/{task}"] = float(values[:, index].mean())
        trackers.log({name: value for name, value in scalars.items() if np.isfinite(value)}, int(steps[-1]))
