"""Herds whose number of members each seed chooses for itself, and the extreme numbers."""

import dataclasses
import json

import numpy as np
import pytest
from toy import toy_config, toy_experiment

from tamherd_jax.codec import encode
from tamherd_jax.experiments import clustering
from tamherd_jax.experiments.snapshot import apply_snapshot, take_snapshot
from tamherd_jax.experiments.state import member_counts, member_weights
from tamherd_jax.experiments.writing import make_results, run_curves
from tamherd_jax.herd.clustering import ClusteringConfig, cluster

COUNTS = {1: 2, 2: 3}
"""Members of each seed's herd. What the data would choose hangs on the last bits of a toy's embeddings."""
AUTO = toy_config(seeds=2, first_seed=1, clustering=ClusteringConfig(clusters="auto", max_clusters=4))


def document_of(experiment):
    return make_results(experiment.plan, experiment.state, run_curves(experiment.plan, experiment.state))


@pytest.fixture(scope="module", autouse=True)
def chosen_counts():
    """As many clusters as `COUNTS` says wherever seeds choose for themselves."""

    def choose(gram, config, seed):
        if config.clusters == "auto":
            config = dataclasses.replace(config, clusters=COUNTS[seed])
        return cluster(gram, config, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "cluster", choose)
        yield


@pytest.fixture(scope="module")
def auto_run(chosen_counts):
    """A finished run, and a snapshot of it two epochs into the herd's training."""
    experiment, snapshot = toy_experiment(AUTO), None
    for event in experiment.run():
        if (event.stage, event.epoch) == ("herd and oracle", 2):
            snapshot = take_snapshot(experiment.plan, experiment.state)
    return experiment, snapshot


def test_each_seed_has_its_own_number_of_members(auto_run):
    experiment, _ = auto_run
    counts = member_counts(experiment.plan, experiment.state)
    assert counts.tolist() == [2, 3]
    for index, count in enumerate(counts):
        steps = np.stack(experiment.curves["herd"].steps)[:, index]
        assert (steps[:, :count] > 0).all()
        assert (steps[:, count:] == 0).all()
        assert (np.stack(experiment.curves["herd"].member)[:, index] < count).all()


def test_a_seed_that_chooses_two_trains_as_if_told(auto_run):
    fixed = toy_experiment(toy_config(seeds=1, first_seed=1))
    list(fixed.run())
    own = run_curves(auto_run[0].plan, auto_run[0].state)
    for name, values in run_curves(fixed.plan, fixed.state).items():
        if name.endswith("/budget"):  # of the most members that there may be
            continue
        told, chose = values[0], own[name][0]
        if name == "herd/share":
            chose = chose[..., :2]
        elif told.shape != chose.shape:
            chose = chose[:, :2]
        np.testing.assert_array_equal(told, chose, err_msg=name)


def test_resumed_where_it_stopped(auto_run):
    finished, snapshot = auto_run
    resumed = toy_experiment(AUTO)
    apply_snapshot(resumed.plan, resumed.state, snapshot)
    list(resumed.run())
    again = run_curves(resumed.plan, resumed.state)
    for name, values in run_curves(finished.plan, finished.state).items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


def test_results_of_different_numbers_of_clusters(auto_run):
    experiment, _ = auto_run
    document = document_of(experiment)
    json.dumps(encode(document), allow_nan=False)
    assert [row.clusters for row in document.clusters] == [2, 3]
    for row in document.clusters:
        assert all(len(times) == row.clusters for times in row.assigned_to.values())
    taken, budget = document.ledger.taken["herd"], document.ledger.budget["herd"]
    assert max(taken) <= budget


@pytest.mark.parametrize("clusters", [1, 8])
def test_one_cluster_is_a_single_learner_and_as_many_as_draws_are_learners_of_one_task(clusters):
    config = toy_config(
        seeds=1,
        draws_per_task=2,
        probe_epochs=0,
        member_epochs=1,
        single_epochs=1,
        clustering=ClusteringConfig(clusters=clusters),
    )
    experiment = toy_experiment(config)
    list(experiment.run())
    weights = member_weights(experiment.plan, experiment.state)[0]
    expected = np.full((1, 4), 0.25) if clusters == 1 else np.repeat(np.eye(4), 2, axis=0)
    np.testing.assert_array_equal(weights, expected)
    document = document_of(experiment)
    json.dumps(encode(document), allow_nan=False)
    assert document.ledger.budget["probe"] == 0  # the probe is the untrained learner
    assert np.isfinite(experiment.curves["herd"].after[0]).all()
