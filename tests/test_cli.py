import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tamherd_jax import cli
from tamherd_jax.commands import UserError
from tamherd_jax.commands.run import new_run_directory
from tamherd_jax.envs import TASK_SETS
from tamherd_jax.experiments.presets import PRESETS, get_preset
from tamherd_jax.herd.clustering import METHODS
from tamherd_jax.herd.embeddings import NAMES
from tamherd_jax.physics import BACKENDS
from tamherd_jax.registry import algorithms, choices
from tamherd_jax.registry.algorithms import ALGORITHMS


def tamherd(*arguments, cwd=None):
    command = [sys.executable, "-m", "tamherd_jax.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=800)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["run", "--preset", "nonsense"],
            "invalid choice 'nonsense' for argument '--preset'. Expected one of ('quick',",
        ),
        (["run", "--seeds", "-3"], "seeds must be at least 1, not -3"),
        (["run", "--seeds", "many"], "--seeds"),
        (["run", "--epochs", "0"], "member_epochs must be at least 1, not 0"),
        (["run", "--tasks", "ml4"], "Expected one of ('ml2', 'ml2-vel', 'ml2-vel-between', 'ml2-params', 'ml3')"),
        (["run", "--tasks", "ml2-params", "--physics", "mjx"], "'mjx' takes no other bodies than cheetah, walker"),
        (["run", "--walker-frame-skip", "0"], "walker_frame_skip must be at least 1, not 0"),
        (["run", "--walker-frame-skip", "8", "--physics", "mjx"], "nor other time steps"),
        (["run", "--physics", "bullet"], "Expected one of ('auto', 'planar', 'mujoco', 'mjx')"),
        (["run", "--algorithm", "ppo"], "Expected one of ('maml', 'pearl')"),
        (["run", "--first-seed", "-1"], "first_seed must not be negative"),
        (["run", "--no-such-option"], "Unrecognized options: --no-such-option"),
        (["report", "nowhere"], "nowhere holds no finished run: results.json is missing"),
        (["report"], "DIR"),
        (["view", "nowhere", "--task", "walker-forward"], "nowhere holds no trained herd"),
        (["view", "nowhere"], "--task"),
        (["dance"], "dance"),
        ([], "run"),
    ],
)
def test_mistakes_get_one_line_and_status_two(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, *(["--compilation-cache", "off"] if arguments[:1] == ["run"] else [])])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("tamherd: ")
    assert error.count("\n") == 1
    assert words in error
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_every_name_that_can_be_chosen_is_implemented():
    assert [*choices.TASK_SETS] == [*TASK_SETS]
    assert {*choices.PHYSICS} == {"auto", *BACKENDS}
    assert [*choices.EMBEDDINGS] == [*NAMES]
    assert [*algorithms.PRESETS] == [*PRESETS]


@pytest.mark.parametrize("command", ["run", "sweep", "embed"])
def test_help_is_grouped_and_names_every_choice(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    words = set(re.findall(r"[a-z0-9-]+", text))
    assert stop.value.code == 0
    assert {*ALGORITHMS, *METHODS, *choices.SELECTIONS, *choices.PROBES, *BACKENDS} <= words
    groups = re.findall(r"(?m)^\W+(\w+) options\W+$", text)
    if command == "embed":
        assert {*NAMES} <= words
        assert groups == ["method", "probes"]
    else:
        assert {*PRESETS, *TASK_SETS, *choices.CONTROLS} <= words
        assert groups == ["training", "method", "testing", "output", "scale"]


def test_a_mistake_in_a_real_process(tmp_path):
    done = tamherd("run", "--preset", "nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_directories_that_cannot_be_used(tmp_path, capsys):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("precious")
    blocked = tmp_path / "file"
    blocked.write_text("")
    for out, words in ((occupied, "is not empty"), (blocked / "run", "cannot write to"), (blocked, "cannot write to")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", "--out", str(out), "--compilation-cache", "off"])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert (occupied / "thesis.tex").read_text() == "precious"
    assert list(occupied.iterdir()) == [occupied / "thesis.tex"]


@pytest.mark.parametrize("name", ["config.json", "sweep.json"])
def test_a_process_that_died_at_its_first_write_leaves_the_directory_free(tmp_path, name):
    (tmp_path / f"{name}.part").write_bytes(b"{")
    with new_run_directory(tmp_path, "quick") as directory:
        assert directory == tmp_path
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is not empty"), new_run_directory(tmp_path, "quick"):
        pass


def test_two_runs_never_take_the_same_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_run_directory(None, "quick") as first, new_run_directory(None, "quick") as second:
        assert [str(first), str(second)] == [os.path.join("runs", "quick-1"), os.path.join("runs", "quick-2")]
    with (
        new_run_directory(tmp_path / "named", "quick") as named,
        pytest.raises(ValueError, match="another process is working in"),
        new_run_directory(named, "quick"),
    ):
        pass


@pytest.mark.parametrize("dangling", [False, True])
def test_what_is_no_directory_in_the_place_of_all_runs(tmp_path, monkeypatch, dangling):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.symlink_to("nowhere") if dangling else runs.write_text("")
    with pytest.raises(UserError, match="cannot write to runs"), new_run_directory(None, "quick"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_directory_without_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--out", str(tmp_path / "run"), "--compilation-cache", "off"])
    assert stop.value.code == 2
    assert "Permission denied" in capsys.readouterr().err


def test_help_is_no_mistake(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--help"])
    assert stop.value.code == 0
    assert "--preset" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncate", "flip", "schema", "missing"])
def test_damaged_results_are_refused(quick_run, tmp_path, capsys, damage):
    directory = quick_run.directory
    for name in ("results.json", "curves.npz", "embeddings.npz"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    if damage == "truncate":
        (tmp_path / "curves.npz").write_bytes((directory / "curves.npz").read_bytes()[:500])
    elif damage == "flip":
        data = bytearray((directory / "curves.npz").read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
        (tmp_path / "curves.npz").write_bytes(data)
    elif damage == "schema":
        (tmp_path / "results.json").write_text('{"schema": 99}')
    else:
        (tmp_path / "embeddings.npz").unlink()
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert str(tmp_path) in error


# One real run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_main_job_prints_tables_and_leaves_its_files(quick_run):
    directory, done = quick_run.directory, quick_run.process
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "probe 3/3",
        "embeddings 1/1",
        "herd and oracle 1/1",
        "single 2/2",
        "221.6",
        "298.5",
        "Herd of MAMLs",
        "Rand",
    ):
        assert words in done.stdout
    assert {p.name for p in directory.iterdir()} == {
        "results.json",
        "curves.npz",
        "embeddings.npz",
        "figures",
        "log.jsonl",
        "config.json",
        "checkpoints",
        "herd",
        "episodes.npz",
        "tensorboard",
        "report.html",
        "rows.csv",
        "curves.csv",
    }
    assert {p.name for p in (directory / "herd" / "seed-0").iterdir()} == {"herd.json", "arrays.npz"}
    for figure in ("learning_curves.png", "embeddings.png"):
        assert (directory / "figures" / figure).read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 3 + 1 + 1 + 2
    assert all(line["seconds"] > 0 for line in lines)


@pytest.mark.slow
def test_rows_equal_the_curves_and_the_ledger_what_was_recorded(quick_run):
    directory = quick_run.directory
    results = json.loads((directory / "results.json").read_text())
    curves = np.load(directory / "curves.npz")
    assert results["config"] == json.loads(json.dumps(get_preset("quick", member_epochs=1, probe_epochs=3).to_json()))
    assert len(results["rows"]) == 3 * 2 * 4
    for row in results["rows"]:
        tasks = [i for i, body in enumerate(results["task_set"]["body_of_task"]) if body == row["body"]]
        after = [sum(epoch[i] for i in tasks) / len(tasks) for epoch in curves[f"{row['arm']}/after"][0]]
        before = [sum(epoch[i] for i in tasks) / len(tasks) for epoch in curves[f"{row['arm']}/before"][0]]
        last = after[-5:]
        expected = {"best": max(after), "final": after[-1], "last5": sum(last) / len(last), "before": np.mean(before[-5:])}
        np.testing.assert_allclose(row["value"], expected[row["statistic"]], rtol=1e-5)
    ledger = results["ledger"]
    assert ledger["budget"] == {"probe": 120_000, "embedding": 10_000, "oracle": 40_000, "single": 200_000, "herd": 170_000}
    assert 0 < ledger["taken"]["herd"][0] < ledger["budget"]["herd"]  # walkers fall
    assert results["physics"] == "planar"
    assert "time" not in json.dumps(results)


@pytest.mark.slow
def test_report_needs_the_result_files_alone(quick_run, tmp_path, capsys):
    directory, done = quick_run.directory, quick_run.process
    for name in ("results.json", "curves.npz", "embeddings.npz"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    cli.main(["report", str(tmp_path)])
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith(("│ Cheetah", "│ Walker"))]
    assert table
    assert all(line in done.stdout for line in table)
    assert (tmp_path / "figures" / "learning_curves.png").exists()


@pytest.mark.slow
def test_view_shows_the_episodes_that_the_run_recorded(quick_run, tmp_path, capsys):
    directory = quick_run.directory
    episodes = np.load(directory / "episodes.npz")
    assert episodes["q"].shape == (4, 2, 101, 9)
    page = tmp_path / "walker.html"
    cli.main(["view", str(directory), "--task", "walker-backward", "--out", str(page)])
    before, after = episodes["rewards"][3].sum(-1)
    assert f"return {before:.1f} before and {after:.1f} after adaptation" in capsys.readouterr().out
    data = json.loads(page.read_text().split('id="player-data">')[1].split("</script>")[0])
    assert [clip["return"] for clip in data["tasks"][0]["clips"]] == pytest.approx([before, after], abs=0.06)
    for arguments, words in (
        (["--task", "walker-sideways"], "no task 'walker-sideways'"),
        (["--task", "walker-backward", "--seed", "7"], "no trained herd of seed 7"),
        (["--task", "walker-backward", "--out", str(tmp_path / "no" / "x.html")], "is no directory"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["view", str(directory), *arguments])
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1)
        assert words in error
