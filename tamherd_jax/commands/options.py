"""How commands describe and read their options."""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro


def option(metavar: str | None = None) -> Any:
    """Describe an option whose help says what leaving it out means, so that its default value is not shown."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def by_name(*groups: Any) -> dict[str, Any]:
    """Return the options of groups (dataclasses) by their names, in order."""
    return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
