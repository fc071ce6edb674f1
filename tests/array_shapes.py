"""What checks arrays of the package's functions while tests run: jaxtyping's annotations of dtypes and axes, by beartype.

Annotations of other types are left to mypy: tests hand over wrong ones on purpose, and stand-ins for learners.
"""

import re
from typing import Any

from beartype import beartype

ARRAY = re.compile(r"\b(Float|Integer|Bool|Shaped|Real)\[")


def checked(function: Any) -> Any:
    """Return a function whose annotated arrays are checked at every call, as jaxtyping's import hook wants it."""
    hints = {name: hint for name, hint in function.__annotations__.items() if ARRAY.search(str(hint))}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)
