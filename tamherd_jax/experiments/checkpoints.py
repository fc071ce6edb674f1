"""Checkpoints of a run: Orbax writes them (asynchronously, each at once, the last three kept), we check what is read.

A checkpoint is two items: `arrays`, the named arrays of a `Snapshot`, and `meta`, JSON that says what they must be: the
configuration, the package's version, and shape, dtype and checksum of every array. Nothing in it is code.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tamherd_jax
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.snapshot import Snapshot, apply_snapshot, check_curves, expected_arrays, take_snapshot
from tamherd_jax.experiments.state import RunState
from tamherd_jax.serialization import array_entry

FORMAT = 3
KEEP = 3


class Checkpoints:
    """The checkpoints of one process of one run.

    A write that fails (a full disk) is told through `warn` and tried again when the next one is due; earlier checkpoints stay.

    Args:
      directory: of the checkpoints, made if missing.
      every: seconds between two checkpoints that `offer` writes; 0 writes at every offer.
      warn: told, in one line, of a write that failed.
    """

    def __init__(self, directory: Path, every: float = 60.0, warn: Callable[[str], None] = lambda line: None):
        self.directory, self.every, self.warn = directory.absolute(), every, warn
        self._last = time.monotonic()
        self._pending: int | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = self._open()

    def latest(self) -> int | None:
        """Number of the newest complete checkpoint: epochs of all stages together."""
        return max(self._manager.all_steps(), default=None)

    def offer(self, plan: Plan, state: RunState) -> None:
        """Write a checkpoint if one is due. It is complete, and older ones deleted, some time after this returns."""
        if time.monotonic() - self._last >= self.every:
            self.save(plan, state)

    def save(self, plan: Plan, state: RunState) -> None:
        """Write a checkpoint of a run state between two epochs, unless the newest is of the same moment."""
        import orbax.checkpoint as ocp

        step = state.steps
        self._last = time.monotonic()
        self._settle()
        if not step or self.latest() == step:
            return
        snapshot = take_snapshot(plan, state)
        meta = ocp.args.JsonSave(_describe(plan, snapshot))
        arrays = ocp.args.StandardSave({name: a for name, a in snapshot.arrays.items() if a.size})
        with self._failures(step):
            self._manager.save(step, args=ocp.args.Composite(arrays=arrays, meta=meta))
            self._pending = step

    def restore(self, plan: Plan, state: RunState) -> int | None:
        """Put the newest checkpoint into a fresh run state and return its number; None if there is none.

        Raises:
          ValueError: in one line, if it is damaged or not of this experiment. An older one is not taken silently: the line
            says how to go back to it.
        """
        import orbax.checkpoint as ocp

        step = self.latest()
        if step is None:
            return None
        where = self.directory / str(step)
        found = self._read(step, meta=ocp.args.JsonRestore())
        if found is None:
            raise ValueError(self._damaged(step, "its metadata cannot be read"))
        meta = found.meta
        _check_description(plan, meta, where)
        _check_manifest(plan, meta, where)
        found = self._read(step, arrays=ocp.args.StandardRestore())
        if found is None:
            raise ValueError(self._damaged(step, "its arrays cannot be read"))
        arrays = dict(found.arrays)
        for name, entry in meta["arrays"].items():
            arrays.setdefault(name, np.zeros(entry["shape"], entry["dtype"])) if 0 in entry["shape"] else None
        self._check_arrays(step, meta, arrays)
        apply_snapshot(plan, state, Snapshot({name: arrays[name] for name in meta["arrays"]}, meta["facts"]))
        return step

    def close(self) -> None:
        """Wait for the last write."""
        self._settle()
        self._manager.close()

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        # Each process keeps its own checkpoints of its own seeds, so none waits for another.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"tamherd-{me}"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, create=False, cleanup_tmp_directories=True, multiprocessing_options=alone
        )
        with _quiet():
            return ocp.CheckpointManager(self.directory, options=options)

    def _read(self, step: int, **items: Any) -> Any:
        """Items of a checkpoint, None if that fails (in one of the many ways of Orbax and TensorStore)."""
        import orbax.checkpoint as ocp

        found = None
        with _unheard():
            with contextlib.suppress(Exception), _quiet():
                found = self._manager.restore(step, args=ocp.args.Composite(**items))
            if found is None:
                gc.collect()
        if found is None:
            _ignore_closed_loops()
        return found

    def _settle(self) -> None:
        """Wait for the write in progress and tell of it if it failed."""
        step, self._pending = self._pending, None
        if step is not None:
            with self._failures(step):
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        reason = None
        with _unheard():
            try:
                with _quiet():
                    yield
            except Exception as error:  # Orbax and TensorStore raise many kinds; training must outlive all of them
                reason = " ".join(str(error).split())[:200] or type(error).__name__
            if reason is not None:
                self._pending = None
                self._reopen()
                gc.collect()
        if reason is not None:
            _ignore_closed_loops()
            self.warn(f"checkpoint {step} could not be written, earlier ones stay: {reason}")

    def _reopen(self) -> None:
        """A manager whose write failed believes in its checkpoint; a new one reads the directory, cleared of the remains."""
        with contextlib.suppress(Exception), _quiet():
            self._manager.close()
        for remains in self.directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(remains, ignore_errors=True)
        self._manager = self._open()

    def _check_arrays(self, step: int, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        if set(arrays) != set(meta["arrays"]):
            raise ValueError(self._damaged(step, f"{min(set(arrays) ^ set(meta['arrays']))} is missing or too many"))
        for name, entry in meta["arrays"].items():
            if array_entry(np.asarray(arrays[name])) != entry:
                raise ValueError(self._damaged(step, f"{name} is not what was written"))

    def _damaged(self, step: int, what: str) -> str:
        older = [s for s in sorted(self._manager.all_steps()) if s < step]
        way_out = f"delete it to go on from {older[-1]}" if older else "there is no older one"
        return f"checkpoint {self.directory / str(step)} is damaged: {what}; {way_out}"


def _describe(plan: Plan, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": tamherd_jax.__version__,
        "config": plan.config.to_json(),
        "physics": plan.env.backend,
        "facts": snapshot.facts,
        "arrays": {name: array_entry(array) for name, array in snapshot.arrays.items()},
    }


def _check_description(plan: Plan, meta: Any, where: Path) -> None:
    """Check that a checkpoint is of this program, configuration, physics and these seeds."""
    wanted = json.loads(json.dumps(_describe(plan, Snapshot({}, {}))))
    if not isinstance(meta, dict) or not wanted.keys() <= meta.keys():
        raise ValueError(f"checkpoint {where} is damaged: its metadata is incomplete")
    for key in ("format", "version", "physics"):
        if meta[key] != wanted[key]:
            raise ValueError(f"checkpoint {where} is of another {key}: {meta[key]!r}, not {wanted[key]!r}")
    for key in sorted(wanted["config"].keys() | meta["config"].keys()):
        theirs, ours = meta["config"].get(key), wanted["config"].get(key)
        if theirs != ours:
            raise ValueError(f"checkpoint {where} is of another configuration: {key} is {theirs!r}, not {ours!r}")
    seeds = [int(seed) for seed in plan.seeds]
    if (theirs := meta["facts"]["seeds"]) != seeds:
        raise ValueError(f"checkpoint {where} is of seeds {theirs}, not {seeds}; start as many processes as then")


def _check_manifest(plan: Plan, meta: dict[str, Any], where: Path) -> None:
    """Check names, shapes and dtypes before anything is read."""
    done, manifest = meta["facts"]["done"], meta["arrays"]
    left = {name for name in manifest if not name.startswith("curves/")}
    for name, shape, dtype in expected_arrays(plan, meta["facts"]):
        if name not in left:
            raise ValueError(f"checkpoint {where} has another tree: {name} is missing")
        left.remove(name)
        theirs = tuple(manifest[name]["shape"]), manifest[name]["dtype"]
        if theirs != (shape, dtype):
            raise ValueError(f"checkpoint {where}: {name} is {theirs[1]} {theirs[0]}, not {dtype} {shape}")
    if left:
        raise ValueError(f"checkpoint {where} has another tree: nothing here is called {min(left)}")
    try:
        curves = {name: tuple(entry["shape"]) for name, entry in manifest.items() if name.startswith("curves/")}
        check_curves(plan, done, curves)
    except ValueError as error:
        raise ValueError(f"checkpoint {where}: {error}") from error


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """A failed read or write leaves tasks of a closed event loop, which complain when collected: let them do it unheard."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _ignore_closed_loops() -> None:
    """Leave complaints of closed event loops unheard: TensorStore's threads call a failed read back at any later time."""
    hook = sys.unraisablehook
    if getattr(hook, "ignores_closed_loops", False):
        return

    def closed_loops_aside(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            hook(unraisable)

    closed_loops_aside.ignores_closed_loops = True  # type: ignore[attr-defined]
    sys.unraisablehook = closed_loops_aside


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells its story through logs; what matters of it comes as exceptions."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
