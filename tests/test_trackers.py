"""Scalars to TensorBoard, W&B and Trackio; a tracker that is missing or fails costs one line."""

import importlib
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format read below)
from toy import toy_config

from tamherd_jax import cli
from tamherd_jax.experiments.run import Progress
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.reporting import trackers
from tamherd_jax.reporting.trackers import Trackers, log_event, parse_names


@pytest.fixture
def experiment():
    from point_mass import PointMass, point_tasks

    return Experiment(toy_config(), PointMass(), point_tasks())


def event(experiment, arm, epoch, values):
    """An epoch of an arm whose returns are `values` `[S, N]`, as the runner leaves it."""
    experiment.state.curves_of(arm).record(after=values)
    return Progress("herd and oracle", epoch, 5, {arm: values}, 100, 100)


def scalars_in(directory):
    """(name, step) -> value of every scalar in the event files of a directory; the TFRecord framing taken off by hand."""
    found = {}
    for path in directory.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            entry = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            found |= {(value.tag, entry.step): value.simple_value for value in entry.summary.value}
    return found


def test_tensorboard_gets_every_arms_returns_at_its_environment_steps(experiment, tmp_path):
    values = np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, np.nan]])
    with Trackers(["tensorboard"], tmp_path, {}, pytest.fail) as logs:
        log_event(logs, event(experiment, "herd", 1, values), experiment.plan, experiment.state)
        log_event(logs, event(experiment, "herd", 2, 2 * np.nan_to_num(values)), experiment.plan, experiment.state)
        log_event(logs, event(experiment, "single", 1, np.ones((2, 4))), experiment.plan, experiment.state)
    scalars = scalars_in(tmp_path / "tensorboard")
    budget = experiment.plan.budget
    first, second = budget.herd.after(2, 4)
    assert scalars["herd/a", first] == pytest.approx(2.5)
    assert scalars["herd/b-slow", first] == pytest.approx(4.0)
    assert ("herd/b-fast", first) not in scalars  # what is not finite is not drawn
    assert scalars["herd/a-fast", second] == pytest.approx(6.0)
    assert scalars["single/all", budget.single.after(1, 4)[0]] == 1.0


class FakeRun:
    def __init__(self):
        self.logged, self.metrics, self.finished = [], [], 0

    def log(self, scalars):
        self.logged.append(scalars)

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    """wandb and trackio as modules that only note what they are told."""
    runs = {}

    def init(name):
        def start(**settings):
            runs[name] = FakeRun()
            runs[name].settings = settings
            return runs[name]

        return start

    modules = {
        "wandb": types.SimpleNamespace(init=init("wandb")),
        "trackio": types.SimpleNamespace(
            init=init("trackio"), log=lambda s: runs["trackio"].log(s), finish=lambda: runs["trackio"].finish()
        ),
    }
    real = importlib.import_module
    monkeypatch.setattr(trackers.importlib, "import_module", lambda name: modules.get(name) or real(name))
    return runs


def test_wandb_and_trackio_get_the_same_numbers(experiment, tmp_path, fake):
    with Trackers(["wandb", "trackio"], tmp_path / "run-7", {"seeds": 2}, pytest.fail) as logs:
        log_event(logs, event(experiment, "single", 1, np.ones((2, 4))), experiment.plan, experiment.state)
    for run in fake.values():
        assert run.settings["config"] == {"seeds": 2}
        assert run.settings["name"].startswith("run-7")
        assert run.finished == 1
        (scalars,) = run.logged
        assert scalars["environment_steps"] == experiment.plan.budget.single.after(1, 4)[0]
        assert scalars["single/a"] == 1.0
    assert ("*", "environment_steps") in fake["wandb"].metrics


@pytest.mark.parametrize(("name", "identity"), [("wandb", "id"), ("trackio", "name")])
def test_a_resumed_run_goes_on_in_the_same_run_of_a_tracker(name, identity, tmp_path, fake):
    def settings_of_run(directory):
        with Trackers([name], tmp_path / directory, {}, pytest.fail):
            return fake[name].settings

    first, resumed, other = (settings_of_run(directory) for directory in ("a/quick-1", "a/quick-1", "b/quick-1"))
    assert first[identity] == resumed[identity] != other[identity]
    assert resumed["resume"] == "allow"


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, fake):
    lines = []
    with Trackers(["wandb", "trackio"], tmp_path, {}, lines.append) as logs:
        fake["wandb"].log = lambda scalars: 1 / 0
        for step in (1, 2):
            logs.log({"x": 1.0}, step)
    assert lines == ["wandb failed and is left out from here on: division by zero"]
    assert [entry["environment_steps"] for entry in fake["trackio"].logged] == [1, 2]


def test_a_tracker_that_cannot_start_is_a_mistake_of_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot start tensorboard: .*; choose another with --log-to"):
        Trackers(["tensorboard"], tmp_path, {}, pytest.fail)


def test_names(monkeypatch):
    assert parse_names("none") == parse_names("") == ()
    assert parse_names("tensorboard, tensorboard") == ("tensorboard",)
    with pytest.raises(ValueError, match="unknown tracker 'mlflow'; choose from tensorboard, wandb, trackio"):
        parse_names("mlflow")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--log-to wandb needs the package wandb: pip install 'tamherd-jax\[wandb\]'"):
        parse_names("wandb")


def test_the_command_line_refuses_before_it_makes_a_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--log-to", "paper", "--compilation-cache", "off"])
    assert stop.value.code == 2
    assert "unknown tracker 'paper'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
