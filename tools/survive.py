"""Kill a run at random moments, give it disks that are too small: it must end with the bytes of an undisturbed run.

    python tools/survive.py --kills 20 --seed 0

The run is the command line on a small task (`tests/toy_cli.py`). Kills are SIGKILL: at random times, while a checkpoint is
written, and while another file is, of which half is on the disk then. Disks are file systems in memory of some sizes, and one
that is filled while a stage trains; they need root. Prints a line for each; exit status 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
KILL_AT = "KILL_AT_WRITE"
"""Environment variable: number of the write during which a run kills itself."""

PATIENCE = 300  # seconds of one run
HUNG = 124  # exit status, as of timeout(1)
SIZES = (0.3, 0.6, 1.0, 2.0, 4.0)  # MB
STAGES = ("probe", "herd and oracle", "single")
FREE = 100_000  # bytes left of a disk that is filled
LARGE = 64  # MB


# One run -------------------------------------------------------------------------------------------------------------


def child() -> None:
    """Run the command line, and die during a write if the environment says so."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    sync, last, writes = os.fsync, int(os.environ.get(KILL_AT, 0)), 0

    def sync_or_die(file: int) -> None:
        nonlocal writes
        writes += 1
        if writes == last:
            os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)

    os.fsync = sync_or_die
    import toy_cli

    toy_cli.main()


def start(out: Path, cache: Path, write: int = 0) -> subprocess.Popen[str]:
    """Start a run in a directory, or go on with the one that is there."""
    resume = ["--resume"] if (out / "config.json").exists() else []
    command = [sys.executable, __file__, "child", "run", "--out", str(out), "--checkpoint-every", "0", *resume]
    command += ["--compilation-cache", str(cache), "--log-to", "none", "--seeds", "2"]
    environment = os.environ | {KILL_AT: str(write)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a run; return its exit status and standard error, for one that hangs `HUNG` and a line that says so."""
    try:
        _, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return HUNG, f"no end after {PATIENCE} s"
    return process.returncode, error


def contents(run: Path) -> dict[str, bytes]:
    """Return the files of a finished run that do not depend on the clock, by name."""
    found = [path for path in run.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    by_name = {str(path.relative_to(run)): path.read_bytes() for path in sorted(found)}
    return {name: data for name, data in by_name.items() if name not in ("log.jsonl", "report.html", "lock")}


def difference(run: Path, reference: dict[str, bytes]) -> str:
    """Return how a run's files differ from those of the undisturbed one; empty if they do not."""
    ours = contents(run)
    missing, more = sorted(reference.keys() - ours.keys()), sorted(ours.keys() - reference.keys())
    other = [name for name in reference.keys() & ours.keys() if ours[name] != reference[name]]
    told = (("missing", missing), ("left over", more), ("different", sorted(other)))
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told if names)


# Kills ---------------------------------------------------------------------------------------------------------------


def survive_kills(count: int, draw: random.Random, cache: Path, reference: dict[str, bytes], seconds: float) -> list[str]:
    """Kill runs `count` times in all, six of them during a write, and let each run end some time; return the faults."""
    kinds = ["checkpoint"] * 3 + ["write"] * 3 + ["time"] * max(count - 6, 0)
    draw.shuffle(kinds)
    faults: list[str] = []
    while kinds:
        with tempfile.TemporaryDirectory() as name:
            run, deaths = Path(name) / "run", []
            while kinds and killed(kinds[-1], draw, run, cache, seconds):
                deaths.append(kinds.pop())
                if draw.random() < 0.3:
                    break
            status, error = finish(start(run, cache))
            fault = f"exit status {status}: {error}" if status else difference(run, reference)
            print(f"killed: {', '.join(deaths) or 'too late, it had ended'}: {fault or 'the same bytes'}", flush=True)
            faults += [fault] if fault else []
    return faults


def killed(kind: str, draw: random.Random, run: Path, cache: Path, seconds: float) -> bool:
    """Start a run and kill it; return whether there was something left to kill.

    Args:
      kind: `time`, at any moment of a run of so many seconds; while a `checkpoint` is written; or during a `write`.
      draw: Says when.
      run: Directory of the run.
      cache: Directory of compiled programs.
      seconds: How long a run takes.
    """
    if kind == "write":
        return finish(start(run, cache, draw.randint(1, WRITES)))[0] == -signal.SIGKILL
    process = start(run, cache)
    if kind == "time":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1.0) * seconds)
    while kind == "checkpoint" and process.poll() is None and not list(run.glob("checkpoints/*.orbax-checkpoint-tmp")):
        time.sleep(1e-3)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


WRITES = 8
"""Files that a run writes, its configuration, herds and results, besides checkpoints."""


# Disks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(megabytes: float) -> Iterator[Path]:
    """Mount a file system of a size."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1000)}k", "tmpfs", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def enlarge(where: Path) -> None:
    """Give a disk room again, and take away what filled it."""
    subprocess.run(["mount", "-o", f"remount,size={LARGE}m", str(where)], check=True)
    (where / "filling").unlink(missing_ok=True)


def fill(where: Path) -> None:
    """Fill a disk but for `FREE` bytes."""
    with open(where / "filling", "wb") as file, contextlib.suppress(OSError):
        file.write(b"\0" * max(shutil.disk_usage(where).free - FREE, 0))


def fault_of(status: int, error: str) -> str:
    """Return what is wrong with how a run on a full disk ended: never, with a traceback, or without a word; else nothing."""
    if status == HUNG:
        return error
    if "Traceback" in error:
        return f"a traceback: {error}"
    return f"exit status {status} without a word" if status and not error.strip() else ""


def survive_disks(cache: Path, reference: dict[str, bytes]) -> list[str]:
    """Run on disks that are too small or become full; return the faults."""
    faults = []
    for case in (*SIZES, *STAGES):
        with disk(LARGE if isinstance(case, str) else case) as where:
            run, begin = where / "run", time.perf_counter()
            process = start(run, cache)
            if isinstance(case, str):
                log = run / "log.jsonl"
                while process.poll() is None and not (log.exists() and f'"{case}"' in log.read_text()):
                    time.sleep(0.01)
                fill(where)
            status, error = finish(process)
            fault, took, lines = fault_of(status, error), time.perf_counter() - begin, len(error.splitlines())
            enlarge(where)
            status_after, error = finish(start(run, cache)) if status else (0, "")
            if status_after:
                fault = fault or f"with room again, exit status {status_after}: {error}"
            fault = fault or difference(run, reference)
            what = f"disk full while {case} trains" if isinstance(case, str) else f"disk of {case} MB"
            said = f"exit status {status} after {took:.0f} s, {lines} lines on stderr"
            print(f"{what}: {said}; {fault or 'with room again the same bytes'}", flush=True)
            faults += [fault] if fault else []
    return faults


def main() -> int:
    """Kill, fill and report; return the exit status."""
    if sys.argv[1:2] == ["child"]:
        del sys.argv[1]
        child()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cache, whole = Path(name) / "cache", Path(name) / "whole"
        finish(start(Path(name) / "first", cache))  # compiles
        begin = time.perf_counter()
        status, error = finish(start(whole, cache))
        if status:
            print(error)
            return 1
        reference = contents(whole)
        faults = survive_kills(options.kills, random.Random(options.seed), cache, reference, time.perf_counter() - begin)
        faults += survive_disks(cache, reference) if os.geteuid() == 0 else []
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
