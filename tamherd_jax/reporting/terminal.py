"""Live progress of a run: a bar in a terminal, a line per epoch elsewhere, and log.jsonl in either case."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

import numpy as np
from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tamherd_jax.experiments.run import Progress as Event
from tamherd_jax.experiments.runner import Experiment

_SMOOTHING = 0.3  # weight of the newest epoch in the speed shown


def track_progress(experiment: Experiment, console: Console | None = None) -> Iterator[Event]:
    """Run an experiment and show how far it is: a bar in a terminal or a notebook, elsewhere a line per epoch.

    Args:
      experiment: What is not done of it yet is run.
      console: Where to show; by default standard output, or the notebook's cell.

    Yields:
      The events of `experiment.run()`.
    """
    plan, state = experiment.plan, experiment.state
    names, modes = plan.task_set.mode_names, plan.task_set.modes
    with ProgressDisplay(console or get_console(), None, names, modes, plan.work(state.done)) as display:
        for event in experiment.run():
            display.show(event)
            yield event


def _has_widgets() -> bool:
    """Return whether a notebook can show what changes: rich does it with ipywidgets."""
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return True


class ProgressDisplay:
    """Shows events and logs them with their timings, the only file of a run that depends on the clock.

    Args:
      console: where to show.
      log: path of log.jsonl, appended to; None for no log.
      bodies: names of the true modes.
      modes: `[N]` mode of each task.
      total_work: environment steps of the whole run, for the time left.
    """

    def __init__(self, console: Console, log: Path | None, bodies: tuple[str, ...], modes: np.ndarray, total_work: int):
        self._console, self._bodies, self._modes = console, bodies, modes
        self._log: TextIO | None = None if log is None else log.open("a", encoding="utf-8")
        self._remaining, self._last = total_work, time.perf_counter()
        self._speed, self._pace, self._settled = 0.0, 0.0, False
        self._bar: Progress | None = None
        if console.is_terminal or (console.is_jupyter and _has_widgets()):
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[info]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> ProgressDisplay:
        """Start the display."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the display and close the log."""
        if self._bar:
            self._bar.stop()
        self._close_log()

    def note(self, text: str) -> None:
        """Show one line of text."""
        self._console.print(text, highlight=False)

    def show(self, event: Event) -> None:
        """Show and log one event."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        speed = event.steps / seconds
        self._remaining -= event.work
        # A stage's first line holds compilation, which says nothing of the lines to come.
        if event.epoch > 1 or not self._speed:
            weight = _SMOOTHING if self._settled else 1.0
            self._speed += weight * (speed - self._speed)
            self._pace += weight * (event.work / seconds - self._pace)
            self._settled = event.epoch > 1
        left = max(self._remaining, 0) / self._pace
        record = {
            "time": time.time(),
            "stage": event.stage,
            "epoch": event.epoch,
            "seconds": round(seconds, 4),
            "steps": event.steps,
            "steps_per_second": round(speed, 1),
            "returns": {arm: [round(float(x), 3) for x in values.mean(0)] for arm, values in event.returns.items()},
            **({"notes": list(event.notes)} if event.notes else {}),
        }
        self._write(json.dumps(record) + "\n")
        info = f"{self._returns(event)}  {self._speed / 1e3:.0f}k steps/s"
        if self._bar:
            self._advance(event, info)
        else:
            self.note(f"{event.stage} {event.epoch}/{event.epochs}  {info}  {_clock(left)} left")
        for line in event.notes:
            self.note(line)

    def _write(self, line: str) -> None:
        """Append a line to the log; one that cannot be written is reported once, and training goes on."""
        if self._log is None:
            return
        try:
            self._log.write(line)
            self._log.flush()
        except OSError as error:
            self._close_log()
            self.note(f"log.jsonl cannot be written and ends here: {error.strerror}")

    def _close_log(self) -> None:
        log, self._log = self._log, None
        with contextlib.suppress(OSError):
            if log is not None:
                log.close()

    def _advance(self, event: Event, info: str) -> None:
        assert self._bar is not None
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bar.add_task(event.stage, total=event.epochs, info="")
        self._bar.update(self._tasks[event.stage], completed=event.epoch, info=info)  # type: ignore[arg-type]

    def _returns(self, event: Event) -> str:
        """Mean return per body of each arm, for instance `herd: cheetah 12 walker 80`."""
        texts = []
        for arm, values in event.returns.items():
            means = [f"{body} {values[:, self._modes == mode].mean():.0f}" for mode, body in enumerate(self._bodies)]
            texts.append(f"{arm}: {' '.join(means)}")
        return " | ".join(texts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
