"""Sweeps: which settings there are, that rows of one plan are single runs to the bit, the command and its report."""

import contextlib
import csv
import json
import shlex

import jax
import numpy as np
import pytest
from point_mass import PointMass, point_tasks
from toy import toy_config
from toy_cli import put_toy

from tamherd_jax import cli
from tamherd_jax.commands.run_options import SweepOutputOptions
from tamherd_jax.commands.sweep import Sweep as SweepOptions
from tamherd_jax.commands.sweep import sweep_directory
from tamherd_jax.experiments import presets
from tamherd_jax.experiments.plan import make_plan
from tamherd_jax.experiments.programs import make_programs
from tamherd_jax.experiments.results import read_run
from tamherd_jax.experiments.run import run
from tamherd_jax.experiments.state import RunState
from tamherd_jax.experiments.sweep import (
    Sweep,
    group_plan,
    make_groups,
    make_sweep,
    parse_axes,
    rows_of,
    setting_directory,
    state_bytes,
    write_settings,
)

COMPILATION = "/jax/core/compile/backend_compile_duration"
SHORT_STAGES = {"probe_epochs": 1, "member_epochs": 1, "single_epochs": 2}


def sweep_of(*texts, samples=None, **changes):
    config = toy_config(**changes)
    return make_sweep(config, parse_axes(texts, config, samples is not None), samples)


def finished(plan):
    state = RunState()
    for _ in run(plan, make_programs(plan), state):
        pass
    return state


@contextlib.contextmanager
def compiled_programs():
    """A list of the names of an experiment's programs that are compiled in the block."""
    found, names = [], ("init_learner", "train_epochs", "embed_seed", "assign_seed", "meta_test_seed")

    def listen(event, seconds, fun_name="", **_):
        if event == COMPILATION and any(name in fun_name for name in names):
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_grid_has_every_combination():
    sweep = sweep_of("maml.inner_step_size=0.1,0.2", "maml.trpo.max_kl=0.01:1:log3", "maml.hidden_sizes=8;4,4", "seeds=3")
    assert len(sweep.settings) == 12
    assert sweep.base.seeds == 3, "a single value is no axis"
    assert [one["maml.trpo.max_kl"] for one in sweep.settings[:5:2]] == [0.01, 0.1, 1.0]
    assert {sweep.config(index).maml.hidden_sizes for index in range(12)} == {(8,), (4, 4)}
    assert sweep_of("maml.discount=0.9:1:lin3").settings[1] == {"maml.discount": 0.95}


def test_random_settings_stay_in_their_ranges_and_are_the_same_every_time():
    texts = "maml.trpo.max_kl=0.01:1:log", "maml.discount=0.9:0.99:lin", "maml.gae_lambda=0.5,1.0"
    sweep = sweep_of(*texts, samples=200)
    assert sweep == sweep_of(*texts, samples=200)
    kl, discount, lam = (np.array([one[name] for one in sweep.settings]) for name in sweep.settings[0])
    assert kl.min() >= 0.01
    assert kl.max() <= 1
    assert 0.05 < np.median(kl) < 0.2, "uniform in the logarithm"
    assert discount.min() >= 0.9
    assert discount.max() <= 0.99
    assert set(lam) == {0.5, 1.0}


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ([], "needs --set NAME=VALUES with several values"),
        (["maml.trpo.max_kl=0.1"], "needs --set NAME=VALUES with several values"),
        (["maml.max_kl=0.1,0.2"], "did you mean maml.trpo.max_kl"),
        (["maml.discount=0.9,0.9"], "gives a value twice"),
        (["maml.discount=0.9,1.5"], "discount must be from 0 to 1"),
        (["maml.discount=0.9,x"], "discount must be"),
        (["maml.discount=0.9:0.5:lin3"], "from a smaller number to a larger"),
        (["maml.trpo.max_kl=0:1:log3"], "above 0 with log"),
        (["maml.trpo.max_kl=0.1:1:log"], "how many values"),
        (["pearl.gradient_steps=1,2"], "changes nothing: the algorithm is maml"),
        (["maml.discount=0.9,1", "maml.discount=0.9,1"], "names maml.discount twice"),
        (["first_seed=1,2"], "give --first-seed"),
        (["maml.discount"], "needs NAME=VALUES"),
        (["maml.trpo.max_kl=0.01:1:log200", "maml.discount=0.1:1:lin200"], "at most 10000 settings"),
    ],
)
def test_impossible_sweeps_get_one_line(texts, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        sweep_of(*texts)
    assert "\n" not in str(caught.value)


def test_settings_are_grouped_by_what_a_program_cannot_take_as_data():
    sweep = sweep_of("maml.inner_step_size=0,0.1,0.2", "maml.hidden_sizes=8;4")
    groups = make_groups(sweep)
    assert [group.indices for group in groups] == [(0,), (1,), (2, 4), (3, 5)]
    assert [sorted(group.numbers) for group in groups] == [[], [], ["inner_step_size"], ["inner_step_size"]]
    np.testing.assert_array_equal(groups[2].rows["inner_step_size"], np.float32([0.1, 0.1, 0.2, 0.2]))
    np.testing.assert_array_equal(groups[2].seeds, [0, 1, 0, 1])
    assert [group.indices for group in make_groups(sweep, [2, 5])] == [(2,), (5,)], "a process's share"


@pytest.fixture(scope="module")
def swept():
    """A sweep of twelve settings and two seeds, of an epoch a stage, once it is done, and the programs it compiled."""
    sweep = sweep_of("maml.inner_step_size=0.05,0.1,0.2", "maml.trpo.max_kl=0.01:0.2:log4", **SHORT_STAGES)
    (group,) = make_groups(sweep)
    plan = group_plan(group, PointMass(), point_tasks())
    with compiled_programs() as programs:
        state = finished(plan)
    return sweep, group, plan, state, sorted(programs)


def test_rows_are_single_runs_to_the_bit_of_as_many_programs(swept):
    sweep, _, plan, state, programs_of_sweep = swept
    index = 7
    with compiled_programs() as programs:
        alone = finished(make_plan(sweep.config(index), PointMass(), point_tasks()))
    assert len(programs_of_sweep) >= 6
    assert programs_of_sweep == sorted(programs)
    mine = rows_of(plan, state, slice(2 * index, 2 * index + 2))
    assert set(alone.curves) == set(mine.curves)
    for arm, curves in alone.curves.items():
        jax.tree.map(np.testing.assert_array_equal, curves.stacked(), mine.curves[arm].stacked())
    jax.tree.map(np.testing.assert_array_equal, alone.learners, mine.learners)
    for one, other in zip(alone.clustered["trained"].clusters, mine.clustered["trained"].clusters, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


def test_settings_differ_where_they_should(swept):
    _, _, plan, state, _ = swept
    after = state.curves["single"].stacked()["after"]
    assert len(np.unique(after[::2].round(5), axis=0)) > 6, "the settings of seed 0"
    assert state_bytes(plan) == 12 * state_bytes(make_plan(toy_config(), PointMass(), point_tasks()))


def test_every_setting_becomes_a_run(swept, tmp_path):
    sweep, group, plan, state, _ = swept
    write_settings(sweep, group, plan, state, tmp_path)
    results, curves, _ = read_run(setting_directory(tmp_path, 7))
    assert results.config.maml.trpo.max_kl == sweep.settings[7]["maml.trpo.max_kl"]
    assert {row.seed for row in results.rows} == {0, 1}
    np.testing.assert_array_equal(curves["herd/after"], state.curves["herd"].stacked()["after"][14:16])
    assert (setting_directory(tmp_path, 7) / "herd" / "seed-1" / "herd.json").exists()


# The command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_sweep(monkeypatch):
    """The command line with the point mass in ML2's place."""
    put_toy(monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setitem(presets.PRESETS, "toy", toy_config())

    def tamherd(*arguments):
        try:
            cli.main([*map(str, arguments)])
        except SystemExit as stop:
            return stop.code
        return 0

    return tamherd


SHORT = ("--compilation-cache", "off", "--epochs", 1, "--probe-epochs", 1)
STEPS = ("--set", "maml.inner_step_size=0.1,0.2")


def test_the_command_ranks_and_goes_on(toy_sweep, capsys, tmp_path):
    out = tmp_path / "sweep"
    assert toy_sweep("sweep", *SHORT, *STEPS, "--seeds", 2, "--out", out) == 0
    said = capsys.readouterr()
    assert "2 settings of maml.inner_step_size, 2 seed(s) each, one set of compiled programs" in said.out
    assert Sweep.of_directory(out).settings == ({"maml.inner_step_size": 0.1}, {"maml.inner_step_size": 0.2})
    with open(out / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    herds = [row for row in rows if (row["arm"], row["statistic"]) == ("herd", "last5")]
    means = [np.mean([float(row["value"]) for row in herds if row["setting"] == str(index)]) for index in range(2)]
    (best,) = [line for line in said.out.splitlines() if line.startswith("Best for Herd")]
    command = shlex.split(best.partition(": ")[2])
    assert command[:4] == ["tamherd", "run", "--preset", "toy"]
    assert ("maml.inner_step_size=0.2" in command) == (means[1] > means[0]), "0.1 is the preset's"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "maml.inner_step_size" in page

    (setting_directory(out, 1) / "results.json").unlink()  # killed before it was written
    (out / "report.html").unlink()
    assert toy_sweep("report", out) == 2
    assert "is not finished" in capsys.readouterr().err
    assert toy_sweep("sweep", "--compilation-cache", "off", "--resume", "--out", out) == 0
    with open(out / "sweep.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    capsys.readouterr()
    assert toy_sweep("report", out) == 0
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_another_process_leaves_the_new_directory_to_process_0(monkeypatch, tmp_path):
    """Or process 0 would find it occupied."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert (
        sweep_directory(SweepOptions(output=SweepOutputOptions(out=tmp_path / "sweep")), sweep_of(STEPS[1]))
        == tmp_path / "sweep"
    )
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--set", "maml.inner_step=0.1,0.2"), "there is no setting 'maml.inner_step'"),
        (("--set", "maml.inner_step_size=0.1,-1"), "inner_step_size must not be negative"),
        ((*STEPS, "--random", 0), "random must be at least 1"),
        ((*STEPS, "--set", "maml.hidden_sizes=4096,4096", "--seeds", 10**6), "GB, of which"),
        ((*STEPS, "--resume"), "is for new sweeps"),
        (("--resume",), "holds no sweep"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(toy_sweep, capsys, tmp_path, arguments, complaint):
    out = tmp_path / "out"
    assert toy_sweep("sweep", *arguments, "--out", out) == 2
    said = capsys.readouterr().err
    assert said.startswith("tamherd: ")
    assert said.count("\n") == 1
    assert complaint in said
    assert not out.exists()


def test_a_damaged_sweep_is_refused(toy_sweep, capsys, tmp_path):
    sweep_of("maml.inner_step_size=0.1,0.2").write(tmp_path)
    document = json.loads((tmp_path / "sweep.json").read_text())
    document["settings"][0]["maml.inner_step_size"] = 0.3
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    assert toy_sweep("report", tmp_path) == 2
    assert "sweep.json is damaged" in capsys.readouterr().err
