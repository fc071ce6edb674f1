"""Faults of disks, environments and users: nothing is lost, nothing hangs, and one line says what to do."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from toy import toy_config
from toy_cli import put_toy

from tamherd_jax import cli
from tamherd_jax.codec import encode
from tamherd_jax.commands import compilation_cache
from tamherd_jax.commands.compilation_cache import default_cache, use_compilation_cache
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.lifecycle import locked
from tamherd_jax.experiments.plan import make_plan
from tamherd_jax.experiments.results import is_finished, read_run
from tamherd_jax.experiments.writing import excluded, make_results, run_curves, write_results
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.reporting import trackers
from tamherd_jax.reporting.report import make_report
from tamherd_jax.reporting.trackers import Trackers


def run_toy(*arguments):
    try:
        cli.main(["run", "--compilation-cache", "off", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


# Results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["curves.npz", "embeddings.npz", "results.json"])
def test_a_run_interrupted_between_its_result_files_is_not_finished(finished_toy, tmp_path, name):
    write_results(finished_toy.plan, finished_toy.state, tmp_path)
    assert is_finished(tmp_path)
    (tmp_path / name).unlink()
    assert not is_finished(tmp_path)


def test_files_of_two_runs_are_not_read_as_one(finished_toy, tmp_path):
    write_results(finished_toy.plan, finished_toy.state, tmp_path)
    other = dict(np.load(tmp_path / "curves.npz"))
    other["herd/after"] = other["herd/after"] + 1
    np.savez_compressed(tmp_path / "curves.npz", **other)
    with pytest.raises(ValueError, match=r"curves\.npz and results\.json are not of the same run"):
        read_run(tmp_path)


def test_returns_that_are_not_finite_exclude_their_seeds_arm(finished_toy, tmp_path, monkeypatch):
    curves = finished_toy.state.curves["herd"]
    after = [values.copy() for values in curves.after]
    after[2][1, 0] = np.nan
    monkeypatch.setattr(curves, "after", after)
    (entry,) = excluded(finished_toy.plan, finished_toy.state)
    assert (entry.seed, entry.arm, entry.epoch) == (1, "herd", 3)
    assert "not finite" in entry.why
    write_results(finished_toy.plan, finished_toy.state, tmp_path)
    results, _, _ = read_run(tmp_path)
    assert {row.seed for row in results.rows if row.arm == "herd"} == {0}
    document = make_results(finished_toy.plan, finished_toy.state, run_curves(finished_toy.plan, finished_toy.state))
    json.dumps(encode(document), allow_nan=False)


def test_a_report_that_cannot_be_written_names_its_directory(finished_toy, tmp_path, monkeypatch, capsys):
    from tamherd_jax.reporting import report

    write_results(finished_toy.plan, finished_toy.state, tmp_path)

    def full(run, analysis):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    from rich.console import Console

    with pytest.raises(OSError, match=str(tmp_path)):
        make_report(tmp_path, Console(quiet=True))


# Logs ----------------------------------------------------------------------------------------------------------------


def test_a_tracker_that_never_returns_does_not_stop_training(tmp_path, monkeypatch):
    release, lines = threading.Event(), []

    class Stuck:
        def __init__(self, directory, config):
            pass

        def log(self, scalars, step):
            release.wait(60)

        def close(self):
            pass

    monkeypatch.setitem(trackers._TRACKERS, "wandb", Stuck)
    monkeypatch.setattr(trackers, "WAITING", 5)
    logs = Trackers(["wandb"], tmp_path, {}, lines.append, patience=0.1)
    for step in range(20):
        logs.log({"x": 1.0}, step)
    logs.close()
    release.set()
    assert any("too slow" in line for line in lines)
    assert any("not done after" in line for line in lines)
    assert len(lines) == 2


def test_a_full_disk_under_tensorboard_costs_one_line(tmp_path, monkeypatch):
    lines = []
    with Trackers(["tensorboard"], tmp_path, {}, lines.append) as logs:
        (tracker,) = logs._trackers.values()

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tracker._writer, "flush", full)
        for step in range(3):
            logs.log({"x": 1.0}, step)
    assert len(lines) == 1
    assert "No space left on device" in lines[0]


# Directories ---------------------------------------------------------------------------------------------------------


def test_two_processes_cannot_work_in_one_directory(tmp_path):
    code = "import sys; from pathlib import Path; from tamherd_jax.experiments.lifecycle import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('mine', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match="another process is working in"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        with locked(tmp_path):  # whatever became of the other
            pass
    assert not list(tmp_path.iterdir())


def test_the_cache_is_looked_up_when_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "tamherd_jax" / "xla"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert default_cache() == tmp_path / "home" / ".cache" / "tamherd_jax" / "xla"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation_cache.Path, "home", homeless)
    assert default_cache() is None


def test_a_default_cache_that_cannot_be_made_is_no_mistake(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compilation_cache(None)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "going on without it" in error
    with pytest.raises(cli.UserError, match="choose another or off"):
        use_compilation_cache(str(tmp_path / "file" / "x"))


COMPILES = """
import sys
import jax
from tamherd_jax.commands.compilation_cache import use_compilation_cache

use_compilation_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: x + 1)(1.0)
print(events.count("/jax/compilation_cache/cache_hits"))
"""


def test_a_cache_that_was_moved_is_still_of_use(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", raising=False)

    def hits(name):
        command = [sys.executable, "-c", COMPILES, str(tmp_path / name)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert hits("one") == 0
    (tmp_path / "one").rename(tmp_path / "two")
    assert hits("two") > 0


def test_a_directory_whose_name_is_not_utf8(tmp_path):
    where = os.fsencode(tmp_path) + b"/a\xffb"
    done = subprocess.run(
        [sys.executable, "-m", "tamherd_jax.cli", "report", where],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"holds no finished run" in done.stderr


def test_output_that_nobody_reads_is_no_failure():
    """As with `| head`: the reader is gone before anything is printed."""
    command = [sys.executable, "-m", "tamherd_jax.cli", "config"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, cwd=Path(__file__).parents[1]) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--coordinator", "localhost:abc", "--processes", "2", "--process-id", "0"], "coordinator must be auto or HOST:PORT"),
        (["--coordinator", "nonsense", "--processes", "2", "--process-id", "0"], "coordinator must be auto or HOST:PORT"),
        (["--coordinator", "localhost:99999", "--processes", "2", "--process-id", "0"], "port from 1 to 65535"),
        (["--devices", "2147483648"], "devices must be at most 1024"),
        (["--seeds", "4294967296"], "seeds must be at most 1000000"),
        (["--first-seed", "4294967296"], "first_seed must leave 1 seeds up to 4294967295"),
        (["--epochs", "1000000000000"], "member_epochs must be at most 1000000"),
        (["--clusters", "21"], "21 clusters need as many sampled tasks an epoch"),
        (["--set", "maml.max_kl=1"], "did you mean maml.trpo.max_kl"),
    ],
)
def test_impossible_numbers_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *arguments, "--compilation-cache", "off"])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert words in error
    assert not list(tmp_path.iterdir())


def test_a_herd_never_takes_more_steps_than_the_single_learner():
    """With as many members as an epoch samples tasks; one more is refused, and `auto` does not try it."""
    plan = make_plan(ExperimentConfig(preset="x", clustering=ClusteringConfig(clusters=20)))
    assert plan.budget.herd_epoch <= plan.budget.single_epoch
    with pytest.raises(ValueError, match="21 clusters need as many sampled tasks"):
        make_plan(ExperimentConfig(preset="x", clustering=ClusteringConfig(clusters=21)))
    auto = ExperimentConfig(preset="x", draws_per_task=1, clustering=ClusteringConfig(clusters="auto"))
    assert make_plan(auto).clustering.max_clusters == 4


def test_a_finished_run_without_its_curves_can_be_resumed(monkeypatch, tmp_path, capsys):
    out = tmp_path / "run"
    put_toy(monkeypatch.setattr, monkeypatch.setitem)
    assert run_toy("--out", out, "--log-to", "none") == 0
    whole = {name: (out / name).read_bytes() for name in ("results.json", "curves.npz", "embeddings.npz")}
    (out / "curves.npz").unlink()
    assert run_toy("--out", out, "--resume", "--log-to", "none") == 0
    assert "This run was finished" not in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in whole} == whole
    assert toy_config() == ExperimentConfig.of_run(out)
