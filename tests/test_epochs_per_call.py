"""Several training epochs in one call of the compiled program."""

import dataclasses

import jax
import numpy as np
import pytest
from toy import toy_config, toy_experiment

from tamherd_jax.experiments.results import read_run
from tamherd_jax.experiments.run import has_reached
from tamherd_jax.experiments.runner import STAGES
from tamherd_jax.experiments.snapshot import apply_snapshot, take_snapshot
from tamherd_jax.experiments.state import RunState
from tamherd_jax.experiments.writing import write_results
from tamherd_jax.maml import TRPOConfig


def config(**changes):
    """With few conjugate gradient steps: the toy's Fisher matrix is singular, and further steps amplify rounding."""
    return toy_config(maml=dataclasses.replace(toy_config().maml, trpo=TRPOConfig(cg_iterations=3, max_kl=0.05)), **changes)


def stacked(experiment):
    return {f"{arm}/{name}": array for arm, own in experiment.curves.items() for name, array in own.stacked().items()}


@pytest.fixture(scope="module")
def in_pairs():
    """Two epochs a call, of stages of 3, 5 and 5 epochs, in float64; its events and, of it, a snapshot in the herd's stage."""
    with jax.enable_x64(True):
        experiment, events, snapshot = toy_experiment(config(epochs_per_call=2)), [], None
        for event in experiment.run():
            events.append(event)
            if (event.stage, event.epoch) == ("herd and oracle", 4):
                snapshot = take_snapshot(experiment.plan, experiment.state)
    return experiment, events, snapshot


def test_the_host_sees_the_ends_of_calls(in_pairs):
    _, events, _ = in_pairs
    ends = {stage: [event.epoch for event in events if event.stage == stage] for stage in STAGES}
    assert ends == {"probe": [2, 3], "embeddings": [1], "herd and oracle": [2, 4, 5], "single": [2, 4, 5]}
    assert sum(event.work for event in events) == in_pairs[0].plan.work()


def test_epochs_of_one_call_are_those_of_single_calls(in_pairs, float64):
    one = toy_experiment(config())
    events = list(one.run())
    ours, theirs = stacked(in_pairs[0]), stacked(one)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert sum(event.steps for event in events) == sum(event.steps for event in in_pairs[1])


def test_resumed_between_calls(in_pairs, float64):
    experiment = toy_experiment(config(epochs_per_call=2))
    apply_snapshot(experiment.plan, experiment.state, in_pairs[2])
    list(experiment.run())
    ours, theirs = stacked(experiment), stacked(in_pairs[0])
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_fault_inside_a_call_is_told_with_its_epoch(monkeypatch):
    experiment = toy_experiment(config(epochs_per_call=3), own_programs=True)
    train = experiment.plan.learner.train_epoch

    def train_epoch(key, state, tasks, weights):
        """Fails where its first parameters have moved: in the second epoch."""
        new, metrics = train(key, state, tasks, weights)
        moved = jax.tree.leaves(state.params)[0].sum() != 0  # biases come first, and begin at zero
        return new.replace(params=jax.tree.map(lambda leaf: jax.numpy.where(moved, jax.numpy.nan, leaf), new.params)), metrics

    monkeypatch.setattr(experiment.plan.learner, "train_epoch", train_epoch)
    event = next(experiment.run())
    assert event.epoch == 3
    assert len(event.notes) == 2  # one learner for each of two seeds
    assert all("frozen at its epoch 2" in note for note in event.notes)
    assert np.isfinite(event.returns["single"]).all()  # tested as it was before


def test_training_stops_once_a_return_is_reached_three_times_in_a_row(in_pairs, tmp_path):
    """The probe trains to its end. A resumed run stops where the other did, and its results are read like any other's."""
    reached = [float(values.mean()) for values in in_pairs[0].curves["herd"].after]
    floor = min(reached) - 1.0
    with jax.enable_x64(True):
        experiment, snapshot = toy_experiment(config(epochs_per_call=2, stop_at=floor)), None
        for event in experiment.run():
            if (event.stage, event.epoch) == ("herd and oracle", 2):
                snapshot = take_snapshot(experiment.plan, experiment.state)
        assert experiment.state.done == {"probe": 3, "embeddings": 1, "herd and oracle": 4, "single": 0}
        resumed = toy_experiment(experiment.config)
        apply_snapshot(resumed.plan, resumed.state, snapshot)
        list(resumed.run())
    jax.tree.map(np.testing.assert_array_equal, stacked(experiment), stacked(resumed))
    np.testing.assert_array_equal(stacked(experiment)["herd/after"], stacked(in_pairs[0])["herd/after"][:, :4])
    write_results(experiment.plan, experiment.state, tmp_path)
    results, curves, _ = read_run(tmp_path)
    assert results.config.stop_at == floor
    assert len(curves["herd/budget"]) == 4


def test_a_return_that_is_never_reached_stops_nothing():
    state = RunState(done={"probe": 3, "embeddings": 1, "herd and oracle": 3, "single": 0})
    plan = toy_experiment(config(stop_at=10.0)).plan
    for values in (20.0, 9.0, 20.0, 20.0):
        state.curves_of("herd").record(after=np.full((2, 4), values))
    assert not has_reached(plan, state, "herd and oracle")
    state.curves_of("herd").record(after=np.full((2, 4), 10.0))
    assert has_reached(plan, state, "herd and oracle")
    assert not has_reached(plan, state, "single")
