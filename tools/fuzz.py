"""Throw random command lines and damaged files at `tamherd`: no traceback, no hang, exit 2 with one line, nothing written.

    python tools/fuzz.py --lines 1000 --files 500 --seed 0

Command lines run in this process, with training itself left out; a line that would train counts as accepted. Files are those of
a run and of a herd that an earlier release wrote (`tests/data`). Prints each fault; exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = ROOT / "tests" / "data" / "written_by_0.1"
PATIENCE = 60  # seconds of one case

OPTIONS = {
    "run": (
        *("--preset", "--seeds", "--first-seed", "--algorithm", "--epochs", "--epochs-per-call", "--controls", "--embedding"),
        *("--probe", "--probe-epochs", "--reuse-probe", "--tasks", "--physics", "--walker-frame-skip", "--checkpoint-every"),
        *("--devices", "--learners-per-call", "--log-to", "--coordinator", "--processes", "--process-id", "--normalisation"),
        *("--metric", "--linkage", "--clusters", "--choose-by", "--set", "--config", "--out", "--resume"),
        *("--stop-at", "--shots", "--test-tasks"),
    ),
    "sweep": ("--preset", "--seeds", "--epochs", "--set", "--random", "--out", "--resume", "--log-to", "--tasks", "--controls"),
    "embed": ("--embedding", "--tasks-per-mode", "--test-probes", "--preset", "--clusters", "--linkage", "--metric", "--seeds"),
    "config": ("--preset", "--algorithm", "--set", "--config"),
    "report": (),
    "join": ("--out",),
    "evaluate": ("--task", "--seed", "--episodes", "--shots", "--test-tasks"),
    "view": ("--task", "--seed", "--out"),
}
VALUES = (
    *("0", "-1", "1", "2", "4294967296", "2147483648", "1e9", "nan", "inf", "-inf", "1.5", "many", "", " ", "true", "none"),
    *(
        "quick",
        "paper-maml",
        "maml",
        "pearl",
        "ml2",
        "ml2-params",
        "auto",
        "planar",
        "mjx",
        "fisher",
        "latent",
        "ward",
        "hdbscan",
    ),
    *(
        "localhost:abc",
        "nonsense",
        "localhost:99999",
        "[::1]:0",
        "0,1,2",
        "5,-1",
        "ml2-vel-between",
        "maml.trpo.max_kl=0.01:0.2:log3",
        "maml.horizon=5,6",
        "all",
        "random-clusters",
        "tensorboard",
        "multitask",
        "gap",
    ),
    *(
        "walker-forward",
        "seeds=2",
        "maml.trpo.max_kl=x",
        "x=1",
        "maml.horizon=0",
        "a\udcffb",
        "ünïcode",
        "../..",
        "/dev/null/x",
    ),
)


class TooSlow(Exception):
    """A case took longer than `PATIENCE`."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raise `TooSlow` in a case that hangs."""

    def ring(number: int, frame: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def leave_training_out() -> None:
    """Make `tamherd run` and `embed` stop where they would begin to train."""
    from tamherd_jax.commands import embed, run, sweep

    def stop(*args: object, **kwargs: object) -> int:
        raise SystemExit(0)

    run.train = sweep.train_group = embed.train_probes = stop  # type: ignore[assignment]


def outcome(arguments: list[str]) -> str | None:
    """Run one command line; return what is wrong with how it ended, if anything."""
    from tamherd_jax import cli

    error = io.StringIO()
    status: object = 0
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error), time_limit():
            cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    except TooSlow:
        return f"no end within {PATIENCE} s"
    except BaseException:
        return traceback.format_exc()
    text = error.getvalue()
    if status not in (0, None, 2):
        return f"exit status {status}"
    if status == 2 and (text.count("\n") != 1 or not text.startswith("tamherd: ")):
        return f"exit status 2 with {text!r}"
    return None


def command_line(draw: random.Random, directory: Path) -> list[str]:
    """Return a random command line."""
    from tamherd_jax.herd.files import shipped_herds

    command = draw.choice([*OPTIONS, "run", "run", "dance"])
    arguments = [command]
    directories = 2 if command == "join" else 1
    if command in ("report", "join", "evaluate", "view", "embed") and draw.random() < 0.8:
        choices = [directory / "run", directory / "none", directory, *shipped_herds()]
        arguments += [str(draw.choice(choices)) for _ in range(directories)]
    for _ in range(draw.randrange(4)):
        arguments.append(draw.choice([*OPTIONS.get(command, ()), "--no-such-option"]))
        if draw.random() < 0.9:
            arguments.append(draw.choice(VALUES))
    return arguments


def fuzz_lines(count: int, draw: random.Random) -> list[str]:
    """Try random command lines in an empty directory; return the faults."""
    leave_training_out()
    faults = []
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        directory = Path(name)
        shutil.copytree(DATA / "real", directory / "run")
        for _ in range(count):
            arguments = command_line(draw, directory)
            before = set(directory.rglob("*"))
            fault = outcome(
                [*arguments, *(["--compilation-cache", "off"] if arguments[0] in ("run", "sweep", "embed") else [])]
            )
            left = set(directory.rglob("*")) - before
            if fault is None and left and arguments[0] == "config":
                fault = f"left {min(left)}"
            if fault:
                faults.append(f"tamherd {arguments}: {fault}")
            for path in sorted(left, reverse=True):
                path.unlink() if not path.is_dir() else path.rmdir()
    return faults


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file's content with some bytes flipped, cut off, repeated or replaced."""
    data, at = bytearray(content), draw.randrange(len(content))
    kind = draw.randrange(4)
    if kind == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + 50]
    else:
        data[at : at + 8] = draw.randbytes(8)
    return bytes(data)


def tables_of(run: Path) -> None:
    """Read a run's files and print its tables, all that a report needs of them but the figures."""
    from rich.console import Console

    from tamherd_jax.reporting.report import print_tables
    from tamherd_jax.reporting.run_files import read_run_files
    from tamherd_jax.reporting.statistics import analyse

    files = read_run_files(run)
    print_tables(files, analyse(files.results, files.curves), Console(file=io.StringIO()))


def fuzz_files(count: int, draw: random.Random) -> list[str]:
    """Read damaged files of a run and of a herd; return the faults."""
    from tamherd_jax.experiments.config import ExperimentConfig
    from tamherd_jax.herd.artefact import Herd

    readers: dict[str, Callable[[Path], object]] = {
        **dict.fromkeys(("results.json", "curves.npz", "embeddings.npz"), tables_of),
        **dict.fromkeys(("herd/seed-0/herd.json", "herd/seed-0/arrays.npz"), lambda run: Herd.load(run / "herd" / "seed-0")),
        "config.json": ExperimentConfig.of_run,
    }
    faults = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(shutil.copytree(DATA / "real", Path(name) / "run"))
        for number in range(count):
            file = draw.choice(list(readers))
            whole = (directory / file).read_bytes()
            (directory / file).write_bytes(damaged(whole, draw))
            try:
                with time_limit():
                    readers[file](directory)
            except ValueError as error:
                if "\n" in str(error):
                    faults.append(f"file {number}, {file}: {str(error)!r}")
            except BaseException:
                faults.append(f"file {number}, {file}: {traceback.format_exc()}")
            (directory / file).write_bytes(whole)
    return faults


def main() -> int:
    """Fuzz and report; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = fuzz_lines(options.lines, random.Random(options.seed)) + fuzz_files(options.files, random.Random(options.seed))
    for fault in faults:
        print(fault)
    print(f"{options.lines} command lines, {options.files} damaged files, seed {options.seed}: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
