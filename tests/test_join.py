"""`tamherd join`: runs of single seeds become the run of all of them, byte for byte, and runs that do not fit are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from synthetic_run import BODIES, TASKS, synthetic_episodes, write_synthetic_run

from tamherd_jax import cli
from tamherd_jax.experiments.results import FinalReturns, read_run
from tamherd_jax.experiments.writing import write_result_files, write_results


def only(index, results, curves, embeddings):
    """The files of a run of one of the seeds."""
    seed = int(results.seeds[index])
    own = dataclasses.replace(
        results,
        config=dataclasses.replace(results.config, seeds=1, first_seed=seed),
        rows=tuple(row for row in results.rows if row.seed == seed),
        excluded=tuple(entry for entry in results.excluded if entry.seed == seed),
        clusters=(results.clusters[index],),
        ledger=dataclasses.replace(
            results.ledger, taken={name: [steps[index]] for name, steps in results.ledger.taken.items()}
        ),
        nonfinite_episodes={arm: count if index == 0 else 0 for arm, count in results.nonfinite_episodes.items()},
    )
    rows = {name: array if name.endswith("/budget") else array[index : index + 1] for name, array in curves.items()}
    points = {name: array if name == "task" else array[index : index + 1] for name, array in embeddings.items()}
    return own, rows, points


@pytest.fixture
def apart(finished_toy, tmp_path):
    """A run of two seeds, and directories of one each."""
    whole = tmp_path / "whole"
    whole.mkdir()
    synthetic_episodes(whole / "episodes.npz")
    write_results(finished_toy.plan, finished_toy.state, whole)
    finished_toy.config.write(whole)
    for index in range(2):
        directory = tmp_path / f"seed-{index}"
        herd = directory / "herd" / f"seed-{index}"
        herd.mkdir(parents=True)
        (herd / "herd.json").write_text(f"of seed {index}")
        if index == 0:  # a run records its first seed
            shutil.copyfile(whole / "episodes.npz", directory / "episodes.npz")
        results, *arrays = only(index, *read_run(whole))
        results.config.write(directory)
        write_result_files(directory, results, *arrays)
    return whole, tmp_path / "seed-0", tmp_path / "seed-1"


def test_joined_seeds_are_the_run_of_all_byte_for_byte(apart, tmp_path, capsys):
    whole, *parts = apart
    out = tmp_path / "joined"
    cli.main(["join", *map(str, reversed(parts)), "--out", str(out)])
    for name in ("results.json", "config.json", "episodes.npz"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for name in ("curves.npz", "embeddings.npz"):
        ours, theirs = np.load(out / name), np.load(whole / name)
        assert ours.files == theirs.files
        for key in ours.files:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    assert [(out / "herd" / f"seed-{index}" / "herd.json").read_text() for index in range(2)] == ["of seed 0", "of seed 1"]
    assert (out / "report.html").exists()
    assert "Herd over single learner" in capsys.readouterr().out


def test_runs_of_several_seeds_each_and_what_they_leave_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_synthetic_run(tmp_path / "a", seeds=3, excluded=(1,))
    write_synthetic_run(tmp_path / "b", seeds=2, first_seed=3, excluded=(4,), rng=1)
    cli.main(["join", "a", "b"])
    results, curves, embeddings = read_run(tmp_path / "runs" / "imagined-joined-1")
    assert results.config.seeds == 5
    assert [entry.seed for entry in results.excluded] == [1, 4]
    assert {row.seed for row in results.rows if row.arm == "herd"} == {0, 2, 3}
    assert [summary.seed for summary in results.clusters] == [0, 1, 2, 3, 4]
    parts = [read_run(tmp_path / name) for name in ("a", "b")]
    np.testing.assert_array_equal(curves["herd/after"], np.concatenate([part[1]["herd/after"] for part in parts]))
    np.testing.assert_array_equal(embeddings["gram"], np.concatenate([part[2]["gram"] for part in parts]))
    assert "5 seeds" in capsys.readouterr().out


def test_tests_after_the_last_epoch_are_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        write_synthetic_run(tmp_path / str(seed), seeds=1, first_seed=seed)
        results, *arrays = read_run(tmp_path / str(seed))
        returns = {arm: [[[float(seed)]] * len(TASKS)] for arm in results.arms}
        final = FinalReturns("ml2", TASKS, BODIES, (2,), returns)
        write_result_files(tmp_path / str(seed), dataclasses.replace(results, final_tests=final), *arrays)
    cli.main(["join", "0", "1", "--out", "joined"])
    joined = read_run(tmp_path / "joined")[0].final_tests
    assert joined.shots == (2,)
    assert [seed[0] for seed in joined.returns["herd"]] == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("directories", "words"),
    [
        (["a"], "there is nothing to join: name the directories of two runs or more"),
        (["a", "a"], "a begins with seed 0, not 2 as after a"),
        (["a", "gap"], "gap begins with seed 3, not 2 as after a"),
        (["a", "pearl"], "pearl is not of the same command as a: algorithm is 'pearl', not 'maml'"),
        (["a", "longer"], "longer is not of the same command as a: member_epochs is 14, not 12"),
        (["a", "stopped"], "stopped differs from a in epochs, tasks or members: herd/after of its curves"),
        (["a", "nowhere"], "nowhere holds no finished run: results.json is missing"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(directories, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_synthetic_run(tmp_path / "a", seeds=2)
    other = {"gap": {"first_seed": 3}, "pearl": {"algorithm": "pearl"}, "longer": {"member_epochs": 14}, "stopped": {}}
    for name, options in other.items():
        write_synthetic_run(tmp_path / name, **({"seeds": 1, "first_seed": 2} | options))
    curves = dict(np.load(tmp_path / "stopped" / "curves.npz"))
    for name in ("herd/after", "herd/before", "herd/taken"):
        curves[name] = curves[name][:, :10]
    np.savez_compressed(tmp_path / "stopped" / "curves.npz", **curves)
    with pytest.raises(SystemExit) as stop:
        cli.main(["join", *directories])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_directory_in_use_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        write_synthetic_run(tmp_path / str(seed), seeds=1, first_seed=seed)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.json").write_text(json.dumps("keep"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["join", "0", "1", "--out", "mine"])
    assert stop.value.code == 2
    assert "mine is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.json"]
