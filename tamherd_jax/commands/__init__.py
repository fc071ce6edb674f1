"""The commands of `tamherd`, a file each, and what they share; importing any of it must not import JAX."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_SHOTS = 1000


class UserError(Exception):
    """A mistake of the user's: printed as one line, exit status 2."""


@contextlib.contextmanager
def mistakes_of_the_user() -> Iterator[None]:
    """Turn the `ValueError` and `OSError` of checking input into a `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def writing_to(directory: Path, advice: str = "make room or choose another directory") -> Iterator[None]:
    """Turn the `OSError` of a write into a `UserError` that names a place and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or directory}: {error.strerror or error}; {advice}") from error


def new_console(**options: Any) -> Any:
    """Return a rich console whose output may stop being read (`| head`): the work goes on, and what nobody reads is dropped."""
    from rich.console import Console

    class PatientConsole(Console):
        def on_broken_pipe(self) -> None:
            drop_output()

    return PatientConsole(**options)


def drop_output() -> None:
    """Send standard output to nowhere from here on, so that neither a print nor the interpreter's end fails on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def numbered_directory(where: Path, name: str) -> Path:
    """Make the first directory of `name-1`, `name-2`, ... that is not there; of two processes each gets its own."""
    where.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count(1)
    while True:
        path = where / f"{name}-{next(numbers)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def check_count(option: str, value: int | None, most: int = 10**6) -> None:
    """Check a number that an option gives, if it was given.

    Raises:
      ValueError: It is not from 1 to `most`.
    """
    if value is not None and value < 1:
        raise ValueError(f"{option.replace('_', ' ')} must be at least 1, not {value}")
    if value is not None and value > most:
        raise ValueError(f"{option.replace('_', ' ')} must be at most {most}, not {value}")


def parse_shots(text: str) -> tuple[int, ...]:
    """Return the numbers of exploration episodes that `--shots` names.

    Raises:
      ValueError: In one line.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if any(not part.isdecimal() or int(part) > MOST_SHOTS for part in parts):
        raise ValueError(f"shots are numbers of episodes from 0 to {MOST_SHOTS} with commas between, not {text!r}")
    return tuple(int(part) for part in parts)
