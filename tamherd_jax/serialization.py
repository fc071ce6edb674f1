"""Trees as named arrays and settings as plain JSON: what checkpoints, herds and result files are made of. Nothing is code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import typing
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_arrays(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a tree by name, `prefix/path`, on the host; random keys as their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(prefix, path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves}


def named_shapes(prefix: str, tree: Any) -> dict[str, Any]:
    """Shape and dtype of every array that `named_arrays` makes of a tree of such shapes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(prefix, p): jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for p, leaf in leaves}


def restore_tree(prefix: str, template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The tree that `named_arrays` took apart, in the structure of `template`."""

    def restore(path: Any, leaf: Any) -> Any:
        array = jnp.asarray(arrays[_name(prefix, path)])
        return jax.random.wrap_key_data(array) if _is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(restore, template)


def array_entry(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and checksum of an array, as JSON."""
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "blake2b": digest}


def rebuild(cls: Any, document: Any, optional: Mapping[str, tuple[str, ...]] | None = None) -> Any:
    """A nested dataclass from the dictionaries that `dataclasses.asdict` made of it; lists become tuples.

    Args:
      cls: the dataclass.
      document: its fields.
      optional: by the name of a dataclass, its fields that may be missing; they get their defaults.

    Raises:
      ValueError: in one line, if another field is missing, or one is unknown or of the wrong type.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    missing_or_unknown = set(document) ^ names if isinstance(document, dict) else {cls.__name__}
    if wrong := missing_or_unknown - set((optional or {}).get(cls.__name__, ())):
        raise ValueError(f"the configuration lacks or does not know {min(wrong)}")
    types, values = typing.get_type_hints(cls), {}
    for name, value in document.items():
        if dataclasses.is_dataclass(types[name]):
            values[name] = rebuild(types[name], value, optional)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"the configuration has a value of the wrong type: {error}") from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON atomically, keys in the order given."""
    write_atomically(path, lambda file: file.write((json.dumps(document, indent=1, allow_nan=False) + "\n").encode()))


def write_arrays(path: Path, arrays: dict[str, np.ndarray], compress: bool = True) -> None:
    """Write an npz atomically."""
    save: Any = np.savez_compressed if compress else np.savez
    write_atomically(path, lambda file: save(file, **arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz, which may not hold Python objects.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, in one line.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged: {' '.join(str(error).split())}") from error


def write_atomically(path: Path, write: Any) -> None:
    """Let `write` fill a file beside `path`, then put it there: a reader never sees half of it."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _name(prefix: str, path: Any) -> str:
    return "/".join([prefix, jax.tree_util.keystr(path, simple=True, separator="/")]).rstrip("/")
