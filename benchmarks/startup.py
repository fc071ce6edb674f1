"""Start-up times: importing, the help, the first progress line of `tamherd run`, and its first epoch's line.

Each start is a process of its own. A cold one compiles all its programs; a warm one finds them in the compilation cache.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import Call, Case, Child, Mode

COMMAND = (sys.executable, "-m", "tamherd_jax.cli")


def finished(command: Sequence[str]) -> Child:
    """Run a process to its end; return what it took.

    Raises:
      RuntimeError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    complaint = process.communicate()[1]
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {complaint.strip()[-200:]}")
    return Child(seconds)


def ended(process: subprocess.Popen[str]) -> int:
    """Kill a process; return its peak memory in bytes."""
    process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Launch:
    """Starts of `tamherd run`, each killed after its first epoch's line."""

    def __init__(self, cache: str):
        self._cache, self._epoch = cache, Child(0.0)

    def first_line(self) -> Child:
        """A fresh start; the time to its first line, that to the first epoch's line kept for `epoch_line`."""
        directory = Path(tempfile.mkdtemp(prefix="tamherd-benchmark-"))
        command = [*COMMAND, "run", "--epochs", "1", "--out", str(directory / "run"), "--compilation-cache", self._cache]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout
            seen, times = [], []
            for line in process.stdout:
                seen.append(line)
                times.append(time.perf_counter() - start)
                if line.startswith("probe 1/"):
                    break
            memory = ended(process)
        shutil.rmtree(directory)
        if not seen or not seen[-1].startswith("probe 1/"):
            raise RuntimeError(f"tamherd run ended early: {' '.join(seen)[-200:]}")
        self._epoch = Child(times[-1], memory)
        return Child(times[0])

    def epoch_line(self) -> Child:
        """Return the time to the first epoch's line of the latest start."""
        return self._epoch


def launches(repeats: int) -> list[Case]:
    """First line and first epoch's line of the same starts, without a compilation cache and with a filled one."""
    cold, warm = Launch("off"), Launch(tempfile.mkdtemp(prefix="tamherd-benchmark-cache-"))
    lines = {
        "tamherd run, first progress line": cold.first_line,
        "tamherd run, first epoch's line": cold.epoch_line,
        "tamherd run again, first progress line": warm.first_line,
        "tamherd run again, first epoch's line": warm.epoch_line,
    }

    def job(name: str) -> Call:
        if name == "tamherd run again, first progress line":
            warm.first_line()
        return Call(lines[name], own_clock=True)

    return [Case(name, functools.partial(job, name), "start", 1.0, repeats=repeats) for name in lines]


def cases(mode: Mode) -> list[Case]:
    """Imports by size, help, and starts of the quick preset."""
    imports = {
        "import jax": "import jax",
        "import tamherd_jax, all public names": "import tamherd_jax as t; [getattr(t, name) for name in t.__all__]",
    }

    def importing(code: str) -> Call:
        return Call(lambda: finished([sys.executable, "-c", code]), own_clock=True)

    found = [Case(name, lambda code=code: importing(code), "start", 1.0) for name, code in imports.items()]  # type: ignore[misc]
    found.append(Case("tamherd --help", lambda: Call(lambda: finished([*COMMAND, "--help"]), own_clock=True), "start", 1.0))
    return found[:1] if mode.name == "smoke" else [*found, *launches(mode.pick(1, 1, 3))]
