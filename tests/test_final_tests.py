"""Tests of trained learners with other numbers of exploration episodes, and on tasks of another set."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from rich.console import Console
from toy import toy_config, toy_experiment
from toy_cli import put_toy

from tamherd_jax import cli
from tamherd_jax.envs import ml2, ml2_vel, ml2_vel_between, ml3
from tamherd_jax.experiments.final_tests import final_plan, run_final_tests, same_kind
from tamherd_jax.experiments.plan import make_plan
from tamherd_jax.experiments.presets import get_preset
from tamherd_jax.experiments.results import read_run
from tamherd_jax.experiments.writing import write_results
from tamherd_jax.herd.algorithm import meta_test
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.reporting.tables import shots_table


@pytest.fixture(scope="module")
def tested():
    config = toy_config(probe_epochs=1, member_epochs=1, single_epochs=2, shots=(0, 1, 4))
    experiment = toy_experiment(config)
    list(experiment.run())
    return experiment, run_final_tests(experiment.plan, experiment.state)


def test_every_arm_is_tested_with_every_number(tested):
    _, final = tested
    assert (final.task_set, final.shots) == ("Point", (0, 1, 4))
    assert set(final.returns) == {"oracle", "single", "herd"}
    for returns in final.returns.values():
        assert returns.shape == (2, 4, 3)
        assert np.isfinite(returns).all()
        assert len(np.unique(returns.round(5), axis=2).reshape(-1, 3)) == 8, "the numbers give different policies"


def test_without_exploration_a_learner_stays_as_it_is(tested):
    experiment, _ = tested
    learner, tasks = experiment.plan.learner, experiment.plan.task_set.tasks
    states = jax.tree.map(lambda leaf: leaf[:1, 0], experiment.state.learners["single"])
    first = jax.tree.map(lambda leaf: leaf[:1], tasks)
    keys = jax.random.split(jax.random.key(0), 1)
    untouched = meta_test(learner, keys[0], states, np.zeros(1, int), first, 0, 500)
    lazy = learner.with_config(dataclasses.replace(learner.config, inner_step_size=0.0))
    unmoved = meta_test(lazy, keys[0], states, np.zeros(1, int), first, 2, 500)
    assert abs(float(untouched.after[0] - unmoved.after[0])) < 0.5
    assert int(untouched.steps) <= learner.horizon


def test_results_and_tables_have_them(tested, tmp_path):
    experiment, final = tested
    write_results(experiment.plan, experiment.state, tmp_path, final)
    results, _, _ = read_run(tmp_path)
    np.testing.assert_allclose(results.final_tests.returns["herd"], final.returns["herd"], rtol=1e-6)
    console = Console(file=io.StringIO(), width=120)
    console.print(shots_table(results))
    text = console.file.getvalue()
    assert "Return after exploration episodes, tasks of Point" in text
    assert f"{final.returns['herd'][:, :2, 2].mean() / 2 + final.returns['herd'][:, 2:, 2].mean() / 2:.1f}" in text
    assert shots_table(dataclasses.replace(results, final_tests=None)) is None


def test_fewer_bodies_will_do_for_a_herd_but_not_for_a_run():
    assert same_kind(ml3(), "ml2").task_names == ml2().task_names
    with pytest.raises(ValueError, match="the tasks of ml3 are of another kind than those trained on, ML2"):
        same_kind(ml2(), "ml3")
    config = dataclasses.replace(get_preset("quick"), tasks="ml3", clustering=ClusteringConfig(clusters=3))
    with pytest.raises(ValueError, match="the tasks of ml2 leave out a body of those trained on, ML3"):
        final_plan(make_plan(dataclasses.replace(config, shots=(1,), test_tasks="ml2")))


def test_tasks_in_between_are_of_the_same_kind():
    assert same_kind(ml2_vel(), "ml2-vel-between").task_names == ml2_vel_between().task_names
    np.testing.assert_allclose(np.unique(ml2_vel_between().tasks.target), [0.5, 1.0, 1.5])
    with pytest.raises(ValueError, match="the tasks of ml2-vel are of another kind than those trained on, ML2"):
        same_kind(ml2(), "ml2-vel")
    config = dataclasses.replace(get_preset("quick"), tasks="ml2-vel", shots=(1,), test_tasks="ml2-vel-between")
    plan = final_plan(make_plan(config))
    assert len(plan.test_task) == 6
    assert plan.task_set.name == "ML2-Vel-Between"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--shots", "1,x"), "shots are numbers of episodes"),
        (("--shots", "1,1"), "shots must be different numbers"),
        (("--test-tasks", "ml2"), "test_tasks need shots"),
        (("--shots", "1", "--test-tasks", "ml5"), "invalid choice 'ml5'"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(monkeypatch, capsys, tmp_path, arguments, complaint):
    put_toy(monkeypatch.setattr, monkeypatch.setitem)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *arguments, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    assert complaint in said
    assert not (tmp_path / "out").exists()
