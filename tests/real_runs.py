"""Runs of the real command on real physics, each as short as it can be and still do all that a run does."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

QUICK = ("--probe-epochs", "3", "--epochs", "1")
PEARL = ("--algorithm", "pearl", "--probe-epochs", "1", "--epochs", "1", "--set", "pearl.gradient_steps=80")


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run directory, the process that left it, and the compiled programs it kept."""

    directory: Path
    process: subprocess.CompletedProcess
    cache: Path

    def copy_cache(self, target):
        """A copy of the kept programs: processes that may be killed share no directory, since JAX writes in place."""
        return Path(shutil.copytree(self.cache, target))


def environment(**further):
    """A user's environment: programs are optimised, whatever the file whose test asks first; see conftest.py."""
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", **further}


def command(directory, cache, options):
    """`tamherd run` with its own directory of compiled programs."""
    options = [*options, "--compilation-cache", str(cache), "--out", str(directory)]
    return [sys.executable, "-m", "tamherd_jax.cli", "run", *options]


def run(directory, cache, *options):
    """A whole run, as a user starts it: from outside the sources."""
    # XLA remarks on stderr that a compilation is slow on a loaded machine: only what the command itself says is of interest.
    arguments = {"capture_output": True, "text": True, "check": False, "cwd": directory.parent}
    arguments["env"] = environment(TF_CPP_MIN_LOG_LEVEL="3")
    return Finished(directory, subprocess.run(command(directory, cache, options), **arguments), cache)


def quick(directory):
    """The quick preset, undisturbed."""
    return run(directory, directory.with_name(f"{directory.name}-programs"), *QUICK)


def quick_killed_and_resumed(directory, undisturbed):
    """The same with its programs, killed once the probe's first epoch is on disk; the process is the one that went on."""
    caches = [undisturbed.copy_cache(directory.with_name(f"{directory.name}-programs-{count}")) for count in range(2)]
    often = (*QUICK, "--checkpoint-every", "0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command(directory, caches[0], often), **pipes, cwd=directory.parent, env=environment()) as process:
        next((line for line in process.stdout if (directory / "checkpoints" / "1").exists()), None)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    return run(directory, caches[1], *often, "--resume")


def pearl(directory):
    """The quick preset of PEARL with a tenth of its gradient steps."""
    return run(directory, directory.with_name(f"{directory.name}-programs"), *PEARL)


RUNS = {"quick_run": quick, "resumed_run": quick_killed_and_resumed, "pearl_run": pearl}
"""By the fixture that gives a test what the run left."""
