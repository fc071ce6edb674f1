"""Training scalars for TensorBoard, W&B or Trackio: what `tamherd run --log-to` names."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from tamherd_jax.experiments.plan import Plan
    from tamherd_jax.experiments.run import Progress
    from tamherd_jax.experiments.state import RunState

PROJECT = "tamherd_jax"
WAITING = 10_000
"""Epochs of scalars that may wait for trackers."""

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
    """Event files under `DIR/tensorboard`, read by `tensorboard --logdir`.

    Written here, not by tensorboardX's own thread: that one dies of a full disk, and who logs then waits for it for ever.
    """

    def __init__(self, directory: Path, config: dict[str, Any]):
        del config
        where = directory / "tensorboard"
        where.mkdir(parents=True, exist_ok=True)
        package = PACKAGES["tensorboard"]
        self._event = importlib.import_module(f"{package}.proto.event_pb2").Event
        self._summary = importlib.import_module(f"{package}.proto.summary_pb2").Summary
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._writer = importlib.import_module(f"{package}.record_writer").RecordWriter(str(where / name))
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Write scalars to the disk."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def tracked_run(directory: Path) -> str:
    """Return the identifier under which trackers know the run in a directory, the same after `--resume`.

    It is random, as names of directories repeat, and kept in `DIR/tracked_run.txt`.

    Raises:
      OSError: It cannot be written.
    """
    path = directory / "tracked_run.txt"
    with contextlib.suppress(FileNotFoundError):
        if name := path.read_text().strip():
            return name
    path.parent.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex[:8]
    path.write_text(f"{name}\n")
    return name


class WandB:
    """A run of Weights & Biases, the same one after `--resume`; `WANDB_MODE=offline` keeps it on disk."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        wandb = importlib.import_module(PACKAGES["wandb"])
        own = {"id": tracked_run(directory), "resume": "allow"}
        self._run = wandb.init(project=PROJECT, name=directory.name, dir=str(directory), config=config, **own)
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
    """A run of Trackio, kept on this machine; the same one after `--resume`. Trackio knows runs by their names alone."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        self._trackio = importlib.import_module(PACKAGES["trackio"])
        name = f"{directory.name}-{tracked_run(directory)}"
        self._trackio.init(project=PROJECT, name=name, config=config, resume="allow")

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
    """Several trackers as one, behind a queue: training never waits for them. One that fails is dropped with a line.

    Args:
      names: of `parse_names`.
      directory: the run directory.
      config: the run's configuration.
      warn: takes a line of text.
      patience: seconds that closing waits for what is not written yet.

    Raises:
      ValueError: a tracker cannot be started.
    """

    def __init__(
        self,
        names: Sequence[str],
        directory: Path,
        config: dict[str, Any],
        warn: Callable[[str], None],
        patience: float = 60.0,
    ):
        self._warn, self._patience = warn, patience
        self._trackers: dict[str, Tracker] = {}
        self._queue: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(WAITING)
        self._full = False
        for name in names:
            try:
                self._trackers[name] = _TRACKERS[name](directory, config)
            except Exception as error:  # whatever a tracker of others raises
                self._each(lambda tracker: tracker.close())
                raise ValueError(f"cannot start {name}: {_first_line(error)}; choose another with --log-to") from error
        self._worker = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._worker.start()

    def __enter__(self) -> Trackers:
        """Nothing to start."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all."""
        self.close()

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Hand scalars to all trackers, or drop them where those are too far behind."""
        try:
            self._queue.put_nowait((scalars, step))
            self._full = False
        except queue.Full:
            if not self._full:
                self._warn(f"{', '.join(self._trackers)}: too slow, scalars are left out until there is room again")
            self._full = True

    def close(self) -> None:
        """Close all trackers once their queue is written, or after `patience` seconds."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=self._patience)
        self._worker.join(self._patience)
        if self._worker.is_alive():
            self._warn(f"{', '.join(self._trackers)}: not done after {self._patience:.0f} s; the last scalars may be missing")

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            scalars, step = entry
            self._each(functools.partial(_log, scalars=scalars, step=step))
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[name]
                with contextlib.suppress(Exception):
                    tracker.close()
                self._warn(f"{name} failed and is left out from here on: {_first_line(error)}")


def _log(tracker: Tracker, scalars: dict[str, float], step: int) -> None:
    tracker.log(scalars, step)


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
