"""The life of a run: signals that ask it to stop, processes that share its seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from tamherd_jax.codec import decode, encode
from tamherd_jax.experiments.clustering import cluster_for_controls
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.experiments.snapshot import Facts, Snapshot, apply_snapshot, join_snapshots, take_snapshot

_PATIENCE = 30 * 24 * 3600  # seconds
_BARRIERS = itertools.count()  # names of barriers: every process passes the same ones in the same order


@dataclasses.dataclass
class StopRequest:
    """Whether a signal asked for the end of the run, and which.

    Attributes:
      signal: its number, None while nobody asked.
    """

    signal: int | None = None

    @property
    def status(self) -> int:
        """Exit status by the shell's convention: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.signal or 0)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop over epochs looks at; a second signal interrupts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes; the system releases the lock even if this process is killed.

    Raises:
      ValueError: Another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is working in {directory}; wait until it is done, or stop it") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def own_seeds(seeds: np.ndarray) -> np.ndarray:
    """The share of the seeds that this process trains: consecutive ones, shares as even as can be.

    Raises:
      ValueError: there are fewer seeds than processes.
    """
    count = jax.process_count()
    if len(seeds) < count:
        raise ValueError(f"{count} processes need at least {count} seeds, not {len(seeds)}")
    return np.array_split(seeds, count)[jax.process_index()]


@contextlib.contextmanager
def barrier() -> Iterator[None]:
    """Run the body in every process and go on only if it succeeded in all, so that none waits for one that gave up.

    Raises:
      ValueError: the body failed in another process, with its line. This process's own error is raised as it is.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        lines = [line.decode() for line in _allgather_bytes(str(failure or "").encode())]
        process, line = next(((i, line) for i, line in enumerate(lines) if line), (0, ""))
        if failure is None and line:
            raise ValueError(f"process {process}: {line}")
    if failure is not None:
        raise failure


def gather(experiment: Experiment, whole: Experiment) -> None:
    """Join what the processes recorded into `whole`, an experiment of all seeds; every process must call it at its end."""
    mine = take_snapshot(experiment.plan, experiment.state, learners=False)
    apply_snapshot(whole.plan, whole.state, join_snapshots([_unpack(data) for data in _allgather_bytes(_pack(mine))]))
    cluster_for_controls(whole.plan, whole.programs, whole.state)


def _allgather_bytes(data: bytes) -> list[bytes]:
    """Every process's bytes, in the order of processes, however long the others take to get here."""
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    # A collective gives up after half a minute; shares of seeds may end hours apart. The barrier of JAX's coordinator waits,
    # and fails when a process dies.
    name = f"tamherd-{next(_BARRIERS)}"
    multihost.sync_global_processes(name, timeout=_PATIENCE, processes=set(range(jax.process_count())))
    lengths = np.asarray(multihost_utils.process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(everything, lengths, strict=True)]


def _pack(snapshot: Snapshot) -> bytes:
    stream = io.BytesIO()
    facts = np.frombuffer(json.dumps(encode(snapshot.facts)).encode(), np.uint8)
    arrays: dict[str, Any] = {"facts": facts} | {f"arrays/{name}": array for name, array in snapshot.arrays.items()}
    np.savez(stream, **arrays)
    return stream.getvalue()


def _unpack(data: bytes) -> Snapshot:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name.removeprefix("arrays/"): file[name] for name in file.files if name != "facts"}
        return Snapshot(arrays, decode(Facts, json.loads(file["facts"].tobytes())))
