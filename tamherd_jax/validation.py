"""Checks of configuration values, declared beside the fields they concern.

A configuration is a frozen dataclass whose `__post_init__` calls `check_fields(self)`. The annotation of a field says what it
may hold: its type, choices (`Literal`), and limits (`Annotated[int, at_least(1)]`, or an alias such as `PositiveInt`).
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np

C = TypeVar("C", bound=type)


class Limit(typing.NamedTuple):
    """A condition on a number.

    Attributes:
      text: What the number must satisfy, as it follows "must".
      holds: `value -> bool`, elementwise on arrays.
    """

    text: str
    holds: Callable[[Any], Any]


def at_least(low: float) -> Limit:
    """Return the limit `value >= low`."""
    return Limit("not be negative" if low == 0 else f"be at least {low}", lambda value: value >= low)


def above(low: float) -> Limit:
    """Return the limit `value > low`."""
    return Limit("be positive" if low == 0 else f"be above {low}", lambda value: value > low)


def within(low: float, high: float) -> Limit:
    """Return the limit `low <= value <= high`."""
    return Limit(f"be from {low} to {high}", lambda value: (value >= low) & (value <= high))


def between(low: float, high: float) -> Limit:
    """Return the limit `low < value < high`."""
    return Limit(f"be between {low} and {high}", lambda value: (value > low) & (value < high))


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
UnitFloat = Annotated[float, within(0, 1)]
"""A number from 0 to 1, both included."""
OpenUnitFloat = Annotated[float, between(0, 1)]
"""A number between 0 and 1, neither included."""


def check_fields(config: Any) -> None:
    """Check every field of a dataclass against its annotation.

    A `float` field also takes integers, and arrays, whose elements are all checked; a value that JAX is tracing has no value
    to check and passes. Numbers must be finite. `bool` is no number. Fields of types this module does not know are not checked.

    Args:
      config: The instance of a dataclass.

    Raises:
      ValueError: In one line, naming the first field at fault, what it must be and what it is.
    """
    cls: Any = type(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if fault := _fault(value, _hints(cls)[field.name]):
            raise ValueError(f"{field.name} must {fault}, not {value!r}")


def is_traced(value: Any) -> bool:
    """Return whether JAX is tracing `value`, so that nothing is known of it but shape and dtype."""
    return isinstance(value, jax.core.Tracer)


def traceable(cls: C) -> C:
    """Register a configuration as a pytree: `float` fields and nested configurations are its leaves, all else is static.

    So one configuration can hold an array of values, `vmap` maps over them, and a jitted function takes them as arguments
    without compiling anew. Unflattening skips `__post_init__`: JAX puts objects of its own in place of leaves.

    Args:
      cls: A frozen dataclass; static fields must be hashable.

    Returns:
      `cls`.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    leaves = tuple(name for name in names if _is_leaf(_hints(cls)[name]))
    static = tuple(name for name in names if name not in leaves)

    def flatten(config: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(config, name)) for name in leaves]
        return children, tuple(getattr(config, name) for name in static)

    def unflatten(values: tuple[Any, ...], children: Any) -> Any:
        config: Any = object.__new__(cls)
        for name, value in (*zip(static, values, strict=True), *zip(leaves, children, strict=True)):
            object.__setattr__(config, name, value)
        return config

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_leaf(hint: Any) -> bool:
    """Whether a field holds a number that may be traced, or a configuration that may hold one."""
    plain = [typing.get_args(one)[0] if typing.get_origin(one) is Annotated else one for one in _alternatives(hint)]
    return any(one is float or dataclasses.is_dataclass(one) for one in plain)


def _fault(value: Any, hint: Any) -> str | None:
    """What `value` must satisfy and does not, as it follows "must"; None where it is as annotated."""
    faults = [_fault_of_one(value, one) for one in _alternatives(hint)]
    if None in faults:
        return None
    described = [fault for fault in faults if fault]
    # Of a union's faults, that of the member whose type fits tells the most: its limit is exceeded.
    exceeded = [fault for fault in described if not fault.startswith(_TYPE)]
    return exceeded[0] if exceeded else "be " + " or ".join(fault.removeprefix(_TYPE) for fault in described)


_TYPE = "be\N{NO-BREAK SPACE}"  # marks a fault of type, which may be one of several alternatives


def _fault_of_one(value: Any, hint: Any) -> str | None:
    """As `_fault`, for an annotation that is no union."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fault_of_one(value, args[0]) or _exceeded(value, args[1:])
    if origin is Literal:
        known = any(type(value) is type(choice) and value == choice for choice in args)
        return None if known else _TYPE + "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return _fault_of_tuple(value, args)
    if hint is float:
        return _fault_of_float(value)
    if hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return None if whole else _TYPE + "an integer"
    if hint is None or hint is type(None):
        return None if value is None else _TYPE + "None"
    if isinstance(hint, type) and hint is not Any:
        return None if isinstance(value, hint) else _TYPE + _NOUNS.get(hint, f"a {hint.__name__}")
    return None


_NOUNS: dict[type, str] = {bool: "True or False", str: "a text"}


def _fault_of_tuple(value: Any, items: tuple[Any, ...]) -> str | None:
    """The fault of a tuple of any length, or the first of its elements'."""
    if not isinstance(value, tuple):
        return _TYPE + "a tuple"
    if len(items) != 2 or items[1] is not Ellipsis:
        return None
    fault = next((fault for element in value if (fault := _fault(element, items[0]))), None)
    return fault and f"hold elements that each must {fault}"


def _fault_of_float(value: Any) -> str | None:
    if is_traced(value):
        return None
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    array = isinstance(value, jax.Array | np.ndarray) and np.issubdtype(value.dtype, np.number)
    if not number and not array:
        return _TYPE + "a number"
    return None if np.all(np.isfinite(np.asarray(value, float))) else "be finite"


def _exceeded(value: Any, limits: tuple[Any, ...]) -> str | None:
    """The first limit that does not hold."""
    if is_traced(value):
        return None
    checked = np.asarray(value) if isinstance(value, jax.Array) else value
    return next((one.text for one in limits if isinstance(one, Limit) and not np.all(one.holds(checked))), None)
