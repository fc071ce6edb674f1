"""Probes that are learners of their own, and members that start from the probe's replay."""

import json

import jax
import numpy as np
import pytest
from toy import toy_config, toy_experiment
from toy_pearl import pearl_experiment

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.snapshot import apply_snapshot, take_snapshot
from tamherd_jax.experiments.state import member_weights
from tamherd_jax.experiments.writing import make_results, run_curves
from tamherd_jax.registry.choices import PROBES
from tamherd_jax.reporting.run_files import arm_curve

CONFIG = toy_config(probe="discriminative", probe_epochs=2, member_epochs=1, single_epochs=3)


@pytest.fixture(scope="module")
def finished():
    """A run with a probe of its own, and what it was like after the probe's first epoch."""
    experiment, early = toy_experiment(CONFIG), None
    for event in experiment.run():
        early = early or take_snapshot(experiment.plan, experiment.state)
        last = event
    assert last.stage == "single"
    return experiment, early, run_curves(experiment.plan, experiment.state)


def test_a_probe_of_its_own_is_charged_to_the_herd_alone(finished):
    """By hand: an epoch is 2 x 4 draws x 4 episodes x 5 steps; embedding 8 draws x 6 episodes x 5 steps."""
    experiment, _, curves = finished
    assert {name: len(own.after) for name, own in experiment.curves.items()} == {
        "single": 3,
        "discriminative": 2,
        "oracle": 1,
        "herd": 1,
    }
    np.testing.assert_array_equal(curves["discriminative/taken"], [[160, 320]] * 2)
    np.testing.assert_array_equal(curves["single/taken"], [[160, 320, 480]] * 2)
    np.testing.assert_array_equal(curves["herd/taken"], [[320 + 240 + 160]] * 2)
    document = make_results(experiment.plan, experiment.state, curves)
    assert document.ledger.taken["probe"] == [320, 320]
    assert document.ledger.budget["probe"] == 320
    steps, returns = arm_curve(document, curves, "herd")  # during the probe the herd's curve is its
    np.testing.assert_array_equal(steps, [160, 320, 720])
    np.testing.assert_array_equal(returns[:, :2], curves["discriminative/after"].mean(2))


def test_single_learner_is_that_of_a_run_with_the_default_probe(finished):
    _, _, curves = finished
    other = toy_experiment()
    events = other.train_probes()
    next(events), next(events)
    mine = curves["single/after"][:, :2]
    np.testing.assert_array_equal(mine, np.stack(other.curves["single"].after, 1))
    assert not np.array_equal(mine, curves["discriminative/after"])


def test_probe_is_the_learner_trained_for_it(finished):
    experiment, _, _ = finished
    trained, frozen = experiment.state.learners["discriminative"].params, experiment.state.probe.params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), trained, frozen)


def test_resumed_in_the_probe_gives_the_same(finished):
    _, early, curves = finished
    again = toy_experiment(CONFIG)
    apply_snapshot(again.plan, again.state, early)
    assert again.state.done["probe"] == 1
    for _ in again.run():
        pass
    for name, values in run_curves(again.plan, again.state).items():
        np.testing.assert_array_equal(values, curves[name], err_msg=name)


def test_a_probe_without_the_inner_step_ends_elsewhere_with_each_reward():
    found = []
    for probe in PROBES:
        experiment = toy_experiment(toy_config(probe=probe, probe_epochs=1))
        for _ in experiment.train_probes():
            pass
        found.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(experiment.state.probe.params)]))
    for i in range(3):
        assert np.isfinite(found[i]).all()
        assert not np.array_equal(found[i], found[i - 1])


def test_configurations_from_before_the_options_read_back():
    document = toy_config().to_json()
    for name in ("probe", "reuse_probe"):
        del document[name]
    assert ExperimentConfig.from_json(document) == toy_config()
    for config in (toy_config(), CONFIG):
        assert ExperimentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_members_copy_the_probes_replay_of_their_tasks():
    """By hand: the probe holds 15 + 2 draws x 20 steps a task, and a member's first epoch adds 20 for each of 4 draws."""
    experiment = pearl_experiment(reuse_probe=True, controls=("untrained-probe",), member_epochs=1)
    for event in experiment.run():
        if event.stage == "embeddings":
            replay = jax.tree.map(np.asarray, experiment.state.learners["single"].full)
        if event.stage == "herd and oracle":
            break
    np.testing.assert_array_equal(replay.size, np.full((2, 1, 4), 15 + 2 * 20))
    weights = member_weights(experiment.plan, experiment.state)
    full = jax.tree.map(np.asarray, experiment.state.learners["herd"].full)
    for seed, member in np.ndindex(2, 2):
        for task in np.flatnonzero(weights[seed, member]):
            held = full.experience.reward[seed, member, task]
            np.testing.assert_array_equal(held[:55], replay.experience.reward[seed, 0, task, :55])
        assert (full.size[seed, member][weights[seed, member] == 0] == 0).all()
        assert full.size[seed, member].sum() == 55 * np.count_nonzero(weights[seed, member]) + 4 * 20
    steps = {arm: own.steps[0].sum(1) for arm, own in experiment.curves.items()}
    np.testing.assert_array_equal(steps["herd"], [160, 160])  # nothing before its first epoch
    np.testing.assert_array_equal(steps["oracle"], [160 + 60] * 2)
    assert (steps["untrained-probe"] >= 160 + 60).all()
    assert experiment.plan.arms["herd"].budget.after(1, 4) == 220 + 40 + 160
