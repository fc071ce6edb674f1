"""How commands describe and read their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import tyro

from tamherd_jax.registry.choices import Choices


def option(metavar: str | None = None, help_text: str | None = None) -> Any:
    """Describe an option whose help says what leaving it out means, so that its default value is not shown."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", help=help_text)


def one_of(names: Iterable[str]) -> tyro.constructors.PrimitiveConstructorSpec[str | None]:
    """Take one of some names, which shells complete; any other is refused in a line that lists them."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
        choices=tuple(names),
    )


def some_of(names: Iterable[str]) -> tyro.constructors.PrimitiveConstructorSpec[tuple[str, ...]]:
    """Take any number of some names, as `one_of` takes one."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME ...",
        instance_from_str=tuple,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=list,
        choices=tuple(names),
    )


def listed(before: str, choices: Choices, after: str = "") -> str:
    """Return the help of an option that takes a name: what it sets, each name with what it stands for, and a remark."""
    names = ", ".join(f"{name} ({about})" if about else name for name, about in choices.items())
    return f"{before}: {names}. {after}".strip()


def by_name(*groups: Any) -> dict[str, Any]:
    """Return the options of groups (dataclasses) by their names, in order."""
    return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
