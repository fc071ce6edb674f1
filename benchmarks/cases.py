"""What a benchmark hands over to be measured, and how much of it each mode asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Mode:
    """How thorough a run is.

    Attributes:
      name: `smoke` (seconds; for tests, its timings mean nothing), `quick` or `full`.
      limit: seconds after which no further case is started.
      repeats: least number of timed runs of a case.
      most_repeats: largest number.
      case_seconds: timed seconds a case is given beyond the least number of runs.
      accelerator: whether JAX computes elsewhere than on the CPU.
    """

    name: str
    limit: float
    repeats: int
    most_repeats: int
    case_seconds: float
    accelerator: bool = False

    def pick(self, smoke: Value, quick: Value, full: Value, accelerator: Value | None = None) -> Value:
        """The value for this mode; `accelerator` replaces `full` there."""
        if self.name == "full" and self.accelerator and accelerator is not None:
            return accelerator
        return {"smoke": smoke, "quick": quick, "full": full}[self.name]


MODES = {
    "smoke": Mode("smoke", limit=120.0, repeats=2, most_repeats=3, case_seconds=0.1),
    "quick": Mode("quick", limit=170.0, repeats=3, most_repeats=15, case_seconds=1.0),
    "full": Mode("full", limit=1800.0, repeats=5, most_repeats=31, case_seconds=2.0),
}
ACCELERATOR_LIMIT = 510.0  # under nine minutes, whatever the last case takes


def get_mode(name: str, limit: float | None = None) -> Mode:
    """A mode by name, for the device that JAX computes on; with another limit if one is given.

    Raises:
      ValueError: there is no such mode, or the limit is no positive number.
    """
    import jax

    if name not in MODES:
        raise ValueError(f"unknown mode {name!r}; choose from {', '.join(MODES)}")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be a positive number of seconds, not {limit}")
    mode = dataclasses.replace(MODES[name], accelerator=jax.default_backend() != "cpu")
    if mode.accelerator:
        mode = dataclasses.replace(mode, limit=min(mode.limit, ACCELERATOR_LIMIT))
    return mode if limit is None else dataclasses.replace(mode, limit=limit)


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function to be compiled ahead of time and run on these arguments."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A function to be called as it is.

    Attributes:
      fn: returns what it computed or, where `own_clock`, its seconds or a `Child`.
      compiles: whether its first call compiles programs.
      own_clock: whether it returns its own time.
      close: called in the end.
    """

    fn: Callable[[], Any]
    compiles: bool = False
    own_clock: bool = False
    close: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Child:
    """What a child process took: wall seconds, and the largest memory it held, bytes."""

    seconds: float
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Quoted:
    """A published figure that is not measured here: printed beside ours, marked as quoted, never compared.

    Attributes:
      name: of the case.
      seconds: of one run.
      unit, work: as in `Case`.
      source: machine, versions and date.
      short: what a ratio to it is called by.
    """

    name: str
    seconds: float
    unit: str
    work: float
    source: str
    short: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One figure of the suite.

    Attributes:
      name: unique in its benchmark and the same from run to run, because runs are compared by it.
      make: builds the arguments, when its turn comes.
      unit: what `work` counts, a key of `definitions.UNITS`.
      work: units a run does, or how to tell from what it returned.
      series, size: which line of the plot of cost against size it is a point of, and where.
      repeats: number of timed runs, instead of the mode's.
      against: a quoted figure of the same work, that the ratio of rates is shown to.
    """

    name: str
    make: Callable[[], Program | Call]
    unit: str
    work: float | Callable[[Any], float]
    series: str = ""
    size: int = 0
    repeats: int | None = None
    against: Quoted | None = None
