"""Calling vector code from JAX: a foreign-function call, batched by `vmap`, kept by the persistent compilation cache."""

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tamherd_jax.simd import machine
from tamherd_jax.simd.machine import SimdUnavailableError
from tamherd_jax.simd.program import Signature, llvm_module, trace

ElementFunction = Callable[..., Any]
"""A function of one batch element: arrays to an array or a tuple of arrays."""

_LOCK = threading.Lock()


@functools.cache
def availability() -> str | None:
    """Return None where vector code can be made and called, else one line that says why not."""
    try:
        _compiled(_probe, (), (jax.ShapeDtypeStruct((), np.float32),), None)
    except SimdUnavailableError as error:
        return str(error)
    return None


def _probe(x: jax.Array) -> jax.Array:
    return x + 1


def batched_call(
    function: ElementFunction, *arguments: jax.Array, shared: Sequence[jax.Array] = (), width: int | None = None
) -> Any:
    """Apply a function of one batch element to a batch, as vector instructions.

    Result i is `function(*shared, *(x[i] for x in arguments))`. Under `vmap` the new axis joins the batch, unless there are
    `shared` arrays, which have no batching rule.

    Args:
      function: takes the arrays of one batch element and returns an array or a tuple of arrays. It is compiled once for each
        combination of shapes, and known by its identity: do not make it anew for each call.
      arguments: `[B, ...]`, float32 or int32, at least one.
      shared: arrays that every batch element reads, by whole rows `array[index]`, with an index clipped into the array.
      width: batch elements of a vector, a power of two; by default what fits the host's registers.

    Returns:
      What `function` returns, with the leading axis `[B]`.

    Raises:
      NotImplementedError: for an operation that vector code cannot do, by name.
      SimdUnavailableError: where there is no vector code; see `availability`.
      ValueError: without arguments, with batch axes that differ, or for a batch too large for 32-bit addresses.
    """
    specs = tuple(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in arguments)
    sizes = {x.shape[0] for x in arguments}
    if len(sizes) != 1:
        raise ValueError(f"arguments need a common leading batch axis; their sizes are {sorted(sizes)}")
    batch = sizes.pop()
    whole = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shared)
    name, signature, tree = _compiled(function, whole, specs, width)
    largest = max(int(np.prod(spec.shape)) for spec in (*signature.arguments, *signature.results))
    if batch * largest >= 2**31:
        raise ValueError(f"{batch:,} batch elements of {largest} numbers exceed 32-bit addresses: call on parts of the batch")
    results = [jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype) for spec in signature.results]
    method = None if shared else "broadcast_all"
    return jax.tree.unflatten(tree, jax.ffi.ffi_call(name, results, vmap_method=method)(*shared, *arguments))


@functools.lru_cache(maxsize=256)
def _compiled(
    function: ElementFunction,
    shared: tuple[jax.ShapeDtypeStruct, ...],
    arguments: tuple[jax.ShapeDtypeStruct, ...],
    width: int | None,
) -> tuple[str, Signature, Any]:
    """Compile and register a function once; return its target's name, its signature and the tree of its results."""
    target = machine.host()
    trees = []

    def flat(*values: jax.Array) -> list[jax.Array]:
        leaves, tree = jax.tree.flatten(function(*values))
        trees.append(tree)
        return leaves

    closed, signature = trace(flat, shared, arguments)
    text = llvm_module(closed, signature, width or target.width, machine.SLEEP)
    name = "tamherd_simd_" + hashlib.sha256(text.encode()).hexdigest()[:32]
    _register(name, text)
    return name, signature, trees[0]


_NAMES: set[str] = set()


def _register(name: str, text: str) -> None:
    """Compile a module and register its handler, unless that has been done."""
    with _LOCK:
        if name not in _NAMES:
            machine.register(name, machine.compile_handler(text, machine.host()))
            _NAMES.add(name)
