"""Checkpoints of a run: Orbax writes them (asynchronously, each at once, the last three kept), we check what is read.

A checkpoint is two items: `arrays`, the named arrays of a `Snapshot`, and `meta`, JSON that says what they must be: the
configuration, the package's version, and shape, dtype and checksum of every array. Nothing in it is code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

import tamherd_jax
from tamherd_jax.codec import ArrayEntry, array_entry, decode, encode, one_line, sealed, unsealed
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.plan import Plan
from tamherd_jax.experiments.snapshot import (
    Facts,
    Snapshot,
    apply_snapshot,
    check_curves,
    check_facts,
    expected_arrays,
    take_snapshot,
)
from tamherd_jax.experiments.state import RunState

FORMAT = 4
FORMATS = {3: False, FORMAT: True}
"""Formats that can be read, and whether the facts of each have a checksum; those of the first release have none."""
KEEP = 3


class Checkpoints:
    """The checkpoints of one process of one run.

    A write that fails (a full disk) is told through `warn`, once until one succeeds again, and tried again when the next one is
    due; earlier checkpoints stay.

    Args:
      directory: of the checkpoints, made if missing.
      every: seconds between two checkpoints that `offer` writes; 0 writes at every offer.
      warn: told, in one line, of a write that failed.

    Attributes:
      saved: number of the newest checkpoint that is known to be complete.
      written_by: version of the package that wrote the checkpoint restored; another one may round otherwise.
    """

    def __init__(self, directory: Path, every: float = 60.0, warn: Callable[[str], None] = lambda line: None):
        self.directory, self.every, self.warn = directory.absolute(), every, warn
        self._last = time.monotonic()
        self._pending: int | None = None
        self._failing = False
        self.saved: int | None = None
        self.written_by = tamherd_jax.__version__
        self._silence = contextlib.ExitStack()
        self._silence.enter_context(_quiet())  # as long as Orbax writes in the background
        self.directory.mkdir(parents=True, exist_ok=True)
        _ignore_closed_loops()
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
        document = _checked_document(plan, found.meta, where)
        found = self._read(step, arrays=ocp.args.StandardRestore())
        if found is None:
            raise ValueError(self._damaged(step, "its arrays cannot be read"))
        arrays = {name: np.asarray(array) for name, array in found.arrays.items()}
        for name, entry in document.arrays.items():
            if 0 in entry.shape:  # Orbax stores no empty array
                arrays[name] = np.zeros(entry.shape, entry.dtype)
        self._check_arrays(step, document, arrays)
        apply_snapshot(plan, state, Snapshot({name: arrays[name] for name in document.arrays}, document.facts))
        self.saved, self.written_by = step, document.version
        return step

    def close(self) -> None:
        """Wait for the last write."""
        self._settle()
        self._manager.close()
        self._silence.close()

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
        with _without_complaints():
            with contextlib.suppress(Exception), _quiet():
                found = self._manager.restore(step, args=ocp.args.Composite(**items))
            if found is None:
                gc.collect()
        return found

    def _settle(self) -> None:
        """Wait for the write in progress and tell of it if it failed."""
        step, self._pending = self._pending, None
        if step is not None:
            with self._failures(step):
                self._manager.wait_until_finished()
                self.saved, self._failing = step, False

    @contextlib.contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        reason = None
        with _without_complaints():
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
            if not self._failing:
                self.warn(f"checkpoint {step} could not be written, earlier ones stay and training goes on: {reason}")
            self._failing = True

    def _reopen(self) -> None:
        """Replace a manager whose write failed, and which counts that checkpoint as written; remove what the write left."""
        with contextlib.suppress(Exception), _quiet():
            self._manager.close()
        for remains in self.directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(remains, ignore_errors=True)
        self._manager = self._open()

    def _check_arrays(self, step: int, document: CheckpointDocument, arrays: dict[str, np.ndarray]) -> None:
        if set(arrays) != set(document.arrays):
            raise ValueError(self._damaged(step, f"{min(set(arrays) ^ set(document.arrays))} is missing or too many"))
        for name, entry in document.arrays.items():
            if array_entry(arrays[name]) != encode(entry):
                raise ValueError(self._damaged(step, f"{name} is not what was written"))

    def _damaged(self, step: int, what: str) -> str:
        older = [s for s in sorted(self._manager.all_steps()) if s < step]
        way_out = f"delete it to go on from {older[-1]}" if older else "there is no older one"
        return f"checkpoint {self.directory / str(step)} is damaged: {what}; {way_out}"


@dataclasses.dataclass(frozen=True)
class CheckpointDocument:
    """What a checkpoint says of itself, besides its format and checksum.

    Attributes:
      version: Of the package that wrote it.
      config: Settings of the experiment.
      physics: Name of the backend.
      facts: What of the snapshot is not an array.
      arrays: Shape, dtype and checksum of every array, by name.
    """

    version: str
    config: ExperimentConfig
    physics: str
    facts: Facts
    arrays: dict[str, ArrayEntry]


def _describe(plan: Plan, snapshot: Snapshot) -> dict[str, Any]:
    arrays = {name: decode(ArrayEntry, array_entry(array)) for name, array in snapshot.arrays.items()}
    document = CheckpointDocument(tamherd_jax.__version__, plan.config, plan.env.backend, snapshot.facts, arrays)
    return sealed({"format": FORMAT, **encode(document)})


def _checked_document(plan: Plan, meta: Any, where: Path) -> CheckpointDocument:
    """Return what a checkpoint says of itself, once it is of this program, configuration, physics and these seeds.

    Raises:
      ValueError: In one line.
    """
    if not isinstance(meta, dict) or not {"version", "config", "facts", "arrays"} <= set(meta):
        raise ValueError(f"checkpoint {where} is damaged: its metadata is incomplete")
    body = unsealed(meta, where, FORMATS)
    if body.get("physics") != plan.env.backend:
        raise ValueError(f"checkpoint {where} is of another physics: {body.get('physics')!r}, not {plan.env.backend!r}")
    try:
        document = decode(CheckpointDocument, body)
    except ValueError as error:
        raise ValueError(f"checkpoint {where} is damaged: {one_line(error)}") from error
    for name, own in encode(plan.config).items():
        if (theirs := encode(getattr(document.config, name))) != own:
            raise ValueError(f"checkpoint {where} is of another configuration: {name} is {theirs!r}, not {own!r}")
    seeds = [int(seed) for seed in plan.seeds]
    if list(document.facts.seeds) != seeds:
        raise ValueError(
            f"checkpoint {where} is of seeds {list(document.facts.seeds)}, not {seeds}; start as many processes as then"
        )
    _check_manifest(plan, document, where)
    return document


def _check_manifest(plan: Plan, document: CheckpointDocument, where: Path) -> None:
    """Check names, shapes and dtypes before any array is read."""
    manifest = document.arrays
    try:
        check_facts(plan, document.facts)
        curves = {name: entry.shape for name, entry in manifest.items() if name.startswith("curves/")}
        check_curves(plan, document.facts.done, curves)
    except ValueError as error:
        raise ValueError(f"checkpoint {where}: {error}") from error
    left = {name for name in manifest if not name.startswith("curves/")}
    for name, shape, dtype in expected_arrays(plan, document.facts):
        if name not in left:
            raise ValueError(f"checkpoint {where} has another tree: {name} is missing")
        left.remove(name)
        theirs = manifest[name].shape, manifest[name].dtype
        if theirs != (shape, dtype):
            raise ValueError(f"checkpoint {where}: {name} is {theirs[1]} {theirs[0]}, not {dtype} {shape}")
    if left:
        raise ValueError(f"checkpoint {where} has another tree: nothing here is called {min(left)}")


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """Suppress the messages of tasks of a closed event loop, which a failed read or write leaves and the collector finds."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _ignore_closed_loops() -> None:
    """Suppress the messages of closed event loops for good: TensorStore's threads call a failed read or write back at any time.

    By its version they come as exceptions that nobody can handle, or as ones that nobody handled.
    """
    unraisable_hook, hook = sys.unraisablehook, sys.excepthook
    if getattr(unraisable_hook, "ignores_closed_loops", False):
        return

    def closed_loops_aside(unraisable: Any) -> None:
        if not _of_a_closed_loop(unraisable.exc_value):
            unraisable_hook(unraisable)

    def unhandled_closed_loops_aside(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not _of_a_closed_loop(error):
            hook(kind, error, traceback)

    closed_loops_aside.ignores_closed_loops = True  # type: ignore[attr-defined]
    sys.unraisablehook, sys.excepthook = closed_loops_aside, unhandled_closed_loops_aside


def _of_a_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and "Event loop is closed" in str(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the logs of Orbax; what matters of them comes as exceptions."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
