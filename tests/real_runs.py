"""Runs of the real command on real physics, each as short as it can be and still do all that a run does."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

QUICK = ("--probe-epochs", "3", "--epochs", "1")
PEARL = ("--algorithm", "pearl", "--probe-epochs", "1", "--epochs", "1")


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run directory, and the process that left it."""

    directory: Path
    process: subprocess.CompletedProcess


def command(directory, options):
    """`tamherd run`; programs that call MuJoCo C cannot be kept, so that no cache would spare it anything."""
    options = [*options, "--compilation-cache", "off", "--out", str(directory)]
    return [sys.executable, "-m", "tamherd_jax.cli", "run", *options]


def run(directory, *options):
    """A whole run, as a user starts it: from outside the sources."""
    # XLA remarks on stderr that a compilation is slow on a loaded machine: only what the command itself says is of interest.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = {"capture_output": True, "text": True, "check": False, "cwd": directory.parent, "env": environment}
    return Finished(directory, subprocess.run(command(directory, options), **arguments))


def quick(directory):
    """The quick preset, undisturbed."""
    return run(directory, *QUICK)


def quick_killed_and_resumed(directory):
    """The same, killed once the probe's first epoch is on disk; the process is the one that went on from there."""
    often = (*QUICK, "--checkpoint-every", "0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command(directory, often), **pipes, cwd=directory.parent) as process:
        next((line for line in process.stdout if (directory / "checkpoints" / "1").exists()), None)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    return run(directory, *often, "--resume")


def pearl(directory):
    """The quick preset of PEARL."""
    return run(directory, *PEARL)


RUNS = {"quick_run": quick, "resumed_run": quick_killed_and_resumed, "pearl_run": pearl}
"""By the fixture that gives a test what the run left."""
