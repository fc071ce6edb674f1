"""The learner axis: one compiled program for any number of learners that never communicate, over devices and processes.

`ROUTE` says whether `jax.pmap` or `jax.shard_map` deals learners to devices; both are in this module and give the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from tamherd_jax.types import PyTree

Route: TypeAlias = Literal["pmap", "shard_map"]
ROUTE: Route = "pmap"
"""Default of `map_learners`."""
SILENCE = 300.0
"""Seconds without a result after which a line on stderr says so, and again after as long."""

_log = logging.getLogger(__name__)
_MEMORY_SHARE = 0.8  # of a device's free memory that a program may plan for; the rest is for fragmentation


def map_learners(
    fn: Callable[..., Any],
    in_axes: tuple[int | None, ...],
    per_call: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    donate: tuple[int, ...] = (),
    route: Route | None = None,
) -> LearnerMap:
    """Extend `fn`, written for one learner, to a leading axis of L learners.

    Learners are dealt to devices in equal numbers, and each device takes at most `per_call` at a time; the rest run in further
    calls of the same compiled program, the last one padded by repeating a learner, which no result shows. With one learner a
    device and call, what a learner computes does not depend, to the bit, on how many others there are. Between one CPU device
    and several, and between one learner a call and several, XLA may round differently: measured, means of returns differ by up
    to 1e-6 of their size, and MAML's linear baseline by 1e-7 of the largest return; without it, training on several CPU devices
    has the bits of one.

    Args:
      fn: pure function of one learner.
      in_axes: per argument 0 where it has the axis of learners, None where it is shared.
      per_call: learners a device and call. By default one on a CPU, where a learner's own batches fill the cores (measured: as
        fast as batching learners, and compiled in half the time); elsewhere as many as XLA's account of the compiled program
        says fit into the device's free memory.
      devices: of this process; by default its first.
      donate: arguments whose memory an accelerator may reuse for results. Where one call of one device takes all learners,
        that is the memory of the caller's own arrays, which are gone then; a copy of large states might not fit.
      route: JAX's function that runs a program on several devices; the results are the same to the bit. `ROUTE` by default.

    Returns:
      The function of `[L, ...]` arguments, compiled on its first call. From several devices results come back as numpy arrays
      (rows of one array on several devices could not be cut and joined without communication). A program that calls back to
      Python, as MuJoCo C's physics does, runs on one CPU device however many there are, with one line of warning: callbacks on
      several wait for each other's threads without end (JAX issue 24255).

    Raises:
      ValueError: `per_call` is less than 1, or there is no such route.
    """
    if per_call is not None and per_call < 1:
        raise ValueError(f"learners per call must be at least 1, not {per_call}")
    route = ROUTE if route is None else route
    if route not in _ROUTES:
        raise ValueError(f"route must be one of {', '.join(_ROUTES)}, not {route!r}")
    return LearnerMap(fn, in_axes, per_call, devices, donate, route)


def cores() -> int:
    """Return the number of cores that this process may use: the number of CPU devices that keeps all of them busy."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def concatenate(parts: Sequence[Any], axis: int = 0) -> Any:
    """Join leaves along an axis, numpy arrays on the host and all else on the device they are on."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, axis) if all(isinstance(part, np.ndarray) for part in parts) else jnp.concatenate(parts, axis)


def one_program(fn: Callable[..., Any], static: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Compile `fn` of a tree (and hashable arguments `static`) as one program, where a leaf at a time would be one for each.

    A tree with numpy leaves, as several devices return it, stays on the host.
    """
    program = jax.jit(fn, static_argnums=static)

    @functools.wraps(fn)
    def on_host_or_device(tree: PyTree, *args: Any) -> Any:
        host = any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
        return (fn if host else program)(tree, *args)

    return on_host_or_device


def start_processes(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Join the other processes of a run; must come before anything that uses a device.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" to ask the cluster (Slurm, Open MPI, Kubernetes, TPU pods).
      processes, process_id: how many there are and which this is; None where the cluster knows.

    Raises:
      ValueError: options that do not go together, or no cluster to ask, in one line.
    """
    if coordinator is None:
        if processes is not None or process_id is not None:
            raise ValueError("processes and process id need a coordinator (HOST:PORT, or auto)")
        return
    explicit = coordinator != "auto"
    if explicit and (processes is None or process_id is None):
        raise ValueError("a coordinator needs the number of processes and this one's id")
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise ValueError(f"process id must be from 0 to {processes - 1}, not {process_id}")
    try:
        jax.distributed.initialize(coordinator if explicit else None, processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"cannot join the processes at {coordinator}: {str(error).splitlines()[0]}") from error


class LearnerMap:
    """What `map_learners` returns: deals rows to devices and calls, and keeps one program per shape of arguments."""

    def __init__(
        self,
        fn: Callable[..., Any],
        in_axes: tuple[int | None, ...],
        per_call: int | None,
        devices: Sequence[jax.Device] | None,
        donate: tuple[int, ...],
        route: Route,
    ):
        # Traced once, though it is traced as part of other functions.
        self._fn = jax.jit(fn, inline=True)
        self._in_axes, self._per_call, self._route = in_axes, per_call, route
        self._devices = tuple(jax.local_devices()[:1] if devices is None else devices)
        # On a CPU an array can be numpy memory that someone else still reads.
        self._donate = () if self._devices[0].platform == "cpu" else donate
        self._programs: dict[tuple[int, int], Any] = {}
        self._plans: dict[Any, tuple[int, Any]] = {}
        self._early: Future[None] | None = None

    def compile_early(self, pool: Executor, shapes: Callable[[], tuple[Any, ...]]) -> None:
        """Compile in a thread of `pool` for arguments of these shapes, arrays or `jax.ShapeDtypeStruct`, asked for there.

        The next call waits for that, or compiles by itself where it has not begun. On a CPU only: elsewhere the program depends
        on the memory that is free when it is called.
        """
        if self._devices[0].platform == "cpu":
            self._early = pool.submit(lambda: self._compile(shapes()))

    def _compile(self, args: tuple[Any, ...]) -> None:
        """Compile the program that a call with such arguments takes; JAX keeps it for that call."""
        count = self._count(args)
        width = self._width(args, count)
        rows, program = self._plan(args, count, width)
        program.lower(*self._shapes(args, 0, count, width, rows)).compile()

    def _count(self, args: tuple[Any, ...]) -> int:
        """L, the number of learners."""
        return int(next(jax.tree.leaves(arg)[0].shape[0] for arg, axis in zip(args, self._in_axes, strict=True) if axis == 0))

    def __call__(self, *args: Any) -> Any:
        """Return the results of L learners, `[L, ...]`."""
        if self._early is not None:
            early, self._early = self._early, None
            if not early.cancel():
                early.exception()  # waits; what went wrong there goes wrong again below
        count = self._count(args)
        width = self._width(args, count)
        with _watched(f"{count} learners on {width} {self._devices[0].platform} devices"):
            rows, program = self._plan(args, count, width)
            outputs = []
            for start in range(0, count, width * rows):
                out = program(*self._part(args, start, count, width, rows))
                outputs.append(_collect(out, min(width * rows, count - start), width, rows, self._stacked(width, rows)))
            return jax.tree.map(lambda *leaves: concatenate(leaves), *outputs)

    def _width(self, args: tuple[Any, ...], count: int) -> int:
        """The number of devices to use."""
        width = min(len(self._devices), count)
        if width == 1 or self._devices[0].platform != "cpu":
            return width
        if not _calls_python(self._fn.trace(*self._shapes(args, 0, count, 1, 1, alone=True)).jaxpr.jaxpr):
            return width
        _warn_once("a program that calls Python, such as MuJoCo C's physics, runs on one CPU device: on several it would hang")
        self._devices = self._devices[:1]
        return 1

    def _plan(self, args: tuple[Any, ...], count: int, width: int) -> tuple[int, Any]:
        """Learners a device and call, and their program; measured once for each shape of arguments."""
        share = -(-count // width)
        if self._per_call is not None or (free := free_memory(self._devices[0])) is None:
            default = 1 if self._devices[0].platform == "cpu" else share
            rows = _evenly(share, self._per_call or default)
            return rows, self._program(width, rows)
        shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves(args))
        if shapes not in self._plans:
            self._plans[shapes] = self._fitting(args, count, width, free)
        return self._plans[shapes]

    def _program(self, width: int, rows: int) -> Any:
        """The jitted function of `[rows, ...]` learners on one device; on several of `[width, rows, ...]` or `[width, ...]`."""
        if (width, rows) not in self._programs:
            fn = self._fn if rows == 1 else jax.vmap(self._fn, in_axes=self._in_axes)
            if width == 1:
                program = jax.jit(_of_one(fn, self._in_axes) if rows == 1 else fn, donate_argnums=self._donate)
            else:
                program = _ROUTES[self._route](fn, self._in_axes, rows, self._devices[:width], self._donate)
            self._programs[width, rows] = program
        return self._programs[width, rows]

    def _stacked(self, width: int, rows: int) -> bool:
        """Whether a call's learners have an axis of devices before their own."""
        return self._route == "pmap" and width > 1 and rows > 1

    def _part(self, args: tuple[Any, ...], start: int, count: int, width: int, rows: int, alone: bool = False) -> list[Any]:
        """The arguments of one call, padded by repeating the last learner; not copied where it takes all learners.

        With `alone` those of one learner, without an axis of learners.
        """
        if width == 1 and rows == count and not alone:
            return list(args)
        index = np.minimum(np.arange(start, start + width * rows), count - 1)
        pick = index.reshape(width, rows) if self._stacked(width, rows) else index[0] if alone else index
        return [
            arg if axis is None else jax.tree.map(lambda leaf: leaf[pick], arg)
            for arg, axis in zip(args, self._in_axes, strict=True)
        ]

    def _shapes(self, args: tuple[Any, ...], *call: Any, **options: Any) -> list[Any]:
        """Shapes of the arguments of one call, see `_part`."""
        return list(jax.eval_shape(lambda *args: self._part(args, *call, **options), *args))

    def _fitting(self, args: tuple[Any, ...], count: int, width: int, free: int) -> tuple[int, Any]:
        """The most learners a device and call whose compiled program fits into free memory, and that program."""
        share = rows = -(-count // width)
        while True:
            compiled = self._program(width, rows).lower(*self._part(args, 0, count, width, rows)).compile()
            need = _memory_of(compiled)
            if rows == 1 or need is None or need <= free:
                return rows, compiled  # what was measured is what runs: no second compilation
            rows = _evenly(share, min(rows - 1, max(1, int(rows * free / need))))


def _of_one(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`fn` with an axis of one learner, which costs the program nothing and saves reshaping every leaf around it."""

    @functools.wraps(fn)
    def mapped(*args: Any) -> Any:
        pairs = zip(args, in_axes, strict=True)
        alone = (arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg) for arg, axis in pairs)
        return jax.tree.map(lambda leaf: leaf[None], fn(*alone))

    return mapped


def _pmapped(
    fn: Callable[..., Any], in_axes: tuple[int | None, ...], rows: int, devices: Sequence[jax.Device], donate: tuple[int, ...]
) -> Any:
    """`fn` of `[rows, ...]` learners, or of one, on each of several devices, by `jax.pmap`."""
    return jax.pmap(fn, in_axes=in_axes, devices=devices, donate_argnums=donate)


def _shard_mapped(
    fn: Callable[..., Any], in_axes: tuple[int | None, ...], rows: int, devices: Sequence[jax.Device], donate: tuple[int, ...]
) -> Any:
    """The same by `jax.shard_map`, of `[devices rows, ...]`."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("learners",))
    split, whole = jax.P("learners"), jax.P()
    specs = tuple(whole if axis is None else split for axis in in_axes)
    local = _of_one(fn, in_axes) if rows == 1 else fn
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    placed = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(mapped, in_shardings=placed, donate_argnums=donate)


_ROUTES = {"pmap": _pmapped, "shard_map": _shard_mapped}


_CALLBACKS = ("pure_callback", "io_callback", "debug_callback")


def _calls_python(jaxpr: Jaxpr) -> bool:
    """Whether a program has a callback to Python anywhere."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLBACKS:
            return True
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr) and _calls_python(inner):
                return True
    return False


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


@contextlib.contextmanager
def _watched(what: str) -> Iterator[None]:
    """Say on stderr, every `SILENCE` seconds, that the block has not ended: a hang has no other sign."""
    done = threading.Event()

    def watch() -> None:
        minutes = SILENCE / 60
        while not done.wait(SILENCE):
            _log.warning("no result of %s for %.0f minutes; a first call compiles, any other may hang", what, minutes)
            minutes += SILENCE / 60

    watcher = threading.Thread(target=watch, name="watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()


def free_memory(device: jax.Device) -> int | None:
    """Bytes of a device's memory that a program may plan for; None where the device keeps no account (a CPU)."""
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return int(_MEMORY_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))


def _memory_of(compiled: Any) -> int | None:
    """Bytes that one call of a compiled program takes on a device, arguments and results included."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    parts = (analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes)
    return int(sum(parts) - analysis.alias_size_in_bytes)


def _evenly(share: int, limit: int) -> int:
    """Learners a call when `share` are dealt to as few calls as `limit` allows, evenly."""
    calls = -(-share // limit)
    return -(-share // calls)


def _collect(out: Any, keep: int, width: int, rows: int, stacked: bool) -> Any:
    """`[keep, ...]` results of a call without its padding."""
    if width > 1:
        out = jax.tree.map(_to_host, out)
    if stacked:
        out = jax.tree.map(lambda leaf: leaf.reshape(width * rows, *leaf.shape[2:]), out)
    if width == 1 and rows == keep:
        return out
    return jax.tree.map(lambda leaf: leaf[:keep], out)


def _to_host(leaf: jax.Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # numpy has no keys
        data = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return np.asarray(leaf)
