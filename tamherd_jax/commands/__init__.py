"""The commands of `tamherd` but `run`, and what they share; importing any of it must not import JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake of the user's: printed as one line, exit status 2."""


@contextlib.contextmanager
def mistakes_of_the_user() -> Iterator[None]:
    """Turn the `ValueError` and `OSError` of checking input into a `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
