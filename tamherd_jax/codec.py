"""One codec for everything that is read back: settings as plain JSON, trees as named arrays, files that cannot be half written.

A versioned document is a JSON object with a `format`, a `checksum` of everything else in it, and, where arrays belong to it,
a checksum of each. Settings are dataclasses: a field that a document lacks gets its default, one that the dataclass does not
know is refused by name. Nothing that is read is code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import struct
import tokenize
import types
import typing
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.validation import check_fields

T = TypeVar("T")

# Settings ------------------------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """Return a nested dataclass, or a part of one, as what JSON has: tuples become lists, numpy and JAX scalars numbers.

    Raises:
      ValueError: A value has no form in JSON, such as an array of several settings.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [encode(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        if value.ndim:
            raise ValueError(f"settings hold an array of shape {value.shape} where a file can hold one number")
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"settings hold {value}, which a file cannot")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"settings hold a {type(value).__name__}, which a file cannot")


def decode(cls: type[T], document: Any, where: str = "") -> T:
    """Return the dataclass that `encode` wrote, checked field by field.

    Args:
      cls: The dataclass.
      document: Its fields, as JSON has them. A missing field gets its default.
      where: Dotted name of the document within a larger one, for messages.

    Raises:
      ValueError: In one line, if a field without default is missing, or one is unknown, of the wrong type or impossible.
    """
    what = where or "the document"
    if not isinstance(document, dict):
        raise ValueError(f"{what} must be an object with named fields, not {_short(document)}")
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    if unknown := sorted(set(document) - set(fields)):
        raise ValueError(f"{what} has a field that is not known: {unknown[0]}")
    if missing := [name for name, field in fields.items() if name not in document and _is_required(field)]:
        raise ValueError(f"{what} lacks {missing[0]}")
    values = {
        name: decode_value(type_hints(typing.cast(Any, cls))[name], value, _join(where, name))
        for name, value in document.items()
    }
    try:
        found = cls(**values)
        check_fields(found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error
    except TypeError as error:
        raise ValueError(f"{what} has a value of the wrong type: {error}") from error
    return found


def decode_value(hint: Any, value: Any, where: str) -> Any:
    """Return a value as a field annotated `hint` holds it: lists become tuples, objects dataclasses; all else stays.

    Raises:
      ValueError: See `decode`.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return decode_value(args[0], value, where)
    if origin in (typing.Union, types.UnionType):
        chosen = [one for one in args if (one is type(None)) == (value is None)]
        nested = [one for one in chosen if dataclasses.is_dataclass(one) or typing.get_origin(one) in (tuple, list, dict)]
        return decode_value(nested[0], value, where) if nested and isinstance(value, dict | list) else value
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value, where)
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {_short(value)}")
        return origin(decode_value(args[0], entry, where) for entry in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object with named fields, not {_short(value)}")
        return {key: decode_value(args[1], entry, _join(where, key)) for key, entry in value.items()}
    if hint in (int, str, bool) and (type(value) is not hint):
        raise ValueError(f"{where} must be {_NOUNS[hint]}, not {_short(value)}")
    if hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{where} must be a number, not {_short(value)}")
    if origin is Literal and value not in args:
        raise ValueError(f"{where} must be one of {', '.join(map(str, args))}, not {_short(value)}")
    return value


_NOUNS = {int: "an integer", str: "a text", bool: "true or false"}


@functools.cache
def type_hints(cls: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, resolved."""
    return typing.get_type_hints(cls, include_extras=True)


def _is_required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


# Documents -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON atomically, keys in the order given.

    Raises:
      OSError: It cannot be written.
    """
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: In one line: it is damaged, or holds something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is damaged: it must hold an object with named fields, not {_short(document)}")
    return document


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with a checksum of everything in it."""
    return {**document, "checksum": checksum(document)}


def unsealed(document: Mapping[str, Any], where: Path, formats: Mapping[int, bool], name: str = "format") -> dict[str, Any]:
    """Return a versioned document without format and checksum, after checking both.

    Args:
      document: As it was read.
      where: Its file, for messages.
      formats: The formats that can be read, and whether a checksum must be there; 0 is a document without format.
      name: Field that holds the format.

    Raises:
      ValueError: In one line: another format, or the checksum is missing or another.
    """
    found = document.get(name, 0)
    if type(found) is not int or found not in formats:
        known = " or ".join(str(number) for number in formats if number)
        raise ValueError(f"{where} is not of this version ({name} {known}, not {_short(found)})")
    body = {key: value for key, value in document.items() if key != "checksum"}
    if ("checksum" in document or formats[found]) and document.get("checksum") != checksum(body):
        raise ValueError(f"{where} is damaged: it is not what was written (its checksum differs)")
    body.pop(name, None)
    return body


def checksum(document: Mapping[str, Any]) -> str:
    """Return a checksum of a JSON object, whatever the order of its keys and its layout in a file."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, or its type if it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclasses.dataclass(frozen=True)
class ArrayEntry:
    """What a document says of an array: shape, dtype and checksum."""

    shape: tuple[int, ...]
    dtype: str
    blake2b: str


# Arrays --------------------------------------------------------------------------------------------------------------


def named_arrays(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves of a tree by name, `prefix/path`, on the host; random keys as their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(prefix, path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves}


def named_shapes(prefix: str, tree: Any) -> dict[str, Any]:
    """Return shape and dtype of every array that `named_arrays` makes of a tree of such shapes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(prefix, p): jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for p, leaf in leaves}


def restore_tree(prefix: str, template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return the tree that `named_arrays` took apart, in the structure of `template`."""

    def restore(path: Any, leaf: Any) -> Any:
        array = jnp.asarray(arrays[_name(prefix, path)])
        return jax.random.wrap_key_data(array) if _is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(restore, template)


def array_entry(array: np.ndarray) -> dict[str, Any]:
    """Return shape, dtype and checksum of an array, as JSON."""
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "blake2b": digest}


def arrays_checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return one checksum of named arrays, whatever their order and however they are compressed."""
    return checksum({name: array_entry(array) for name, array in arrays.items()})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], compress: bool = True) -> None:
    """Write an npz atomically.

    Raises:
      OSError: It cannot be written.
    """
    save: Any = np.savez_compressed if compress else np.savez
    write_atomically(path, lambda file: save(file, **arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz, which may not hold Python objects.

    Raises:
      FileNotFoundError: There is none.
      ValueError: It is damaged, in one line.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error


# What numpy and zipfile raise on flipped bits: "encrypted" is a RuntimeError, an unknown compression a NotImplementedError,
# an array larger than memory a MemoryError, a header that is no literal a SyntaxError or TokenError.
_DAMAGE = (
    *(ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError, OverflowError, TypeError, AttributeError, IndexError),
    *(SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)


_PART = ".part"


def is_unused(directory: Path, *first: str) -> bool:
    """Return whether a directory holds nothing, or only what a process leaves that dies while it writes a file of name `first`.

    Raises:
      OSError: It cannot be read.
    """
    return {path.name for path in directory.iterdir()} <= {name + _PART for name in first}


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it there: a reader never sees half of it.

    Raises:
      OSError: It cannot be written; nothing is left beside `path`, and the error names it.
    """
    temporary = path.with_name(path.name + _PART)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _name(prefix: str, path: Any) -> str:
    return "/".join([prefix, jax.tree_util.keystr(path, simple=True, separator="/")]).rstrip("/")
