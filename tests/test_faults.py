"""Learners that go non-finite, and probes whose tasks cannot be clustered."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from toy import toy_experiment

from tamherd_jax.experiments import clustering
from tamherd_jax.experiments.keys import learner_keys
from tamherd_jax.experiments.programs import first_nonfinite
from tamherd_jax.experiments.results import read_run
from tamherd_jax.experiments.snapshot import apply_snapshot, take_snapshot
from tamherd_jax.experiments.writing import run_curves, write_results
from tamherd_jax.reporting import figures, tables


def poisoned(seed_index, arm, learner, epoch):
    """An experiment in which one learner's parameters become NaN in one epoch, by nothing but its own data."""
    experiment = toy_experiment(own_programs=True)
    target = jax.random.fold_in(learner_keys(experiment.plan.seeds, arm, learner + 1)[seed_index, learner], epoch)
    program = experiment.plan.arms[arm].learner
    train = program.train_epoch

    def poison(key, state, tasks, weights):
        new, metrics = train(key, state, tasks, weights)
        hit = jnp.all(jax.random.key_data(key) == jax.random.key_data(target))
        return jax.tree.map(lambda leaf: jnp.where(hit, jnp.nan, leaf), new), metrics

    program.train_epoch = poison
    return experiment


@pytest.fixture(scope="module")
def sound(finished_toy):
    return finished_toy, run_curves(finished_toy.plan, finished_toy.state)


def test_a_learner_that_goes_nonfinite_is_frozen_reported_and_left_out(sound, tmp_path):
    experiment = poisoned(1, "herd", 0, 3)
    notes, states = [], []
    for event in experiment.run():
        notes += event.notes
        if event.stage == "herd and oracle":
            states.append(jax.tree.map(np.asarray, experiment.state.learners["herd"]))
    assert len(notes) == 1
    assert notes[0].startswith("seed 1: learner 0 of herd frozen at its epoch 3: params/params/")
    # It keeps the state it had after its second epoch, to the bit; the others go on.
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1, 0], b[1, 0]), states[1], states[4])
    reference, curves = sound
    for s, a in ((0, 0), (0, 1), (1, 1)):
        ours, theirs = experiment.state.learners["herd"], reference.state.learners["herd"]
        jax.tree.map(lambda x, y, s=s, a=a: np.testing.assert_array_equal(x[s, a], y[s, a]), ours, theirs)
    own = run_curves(experiment.plan, experiment.state)
    np.testing.assert_array_equal(own["herd/after"][0], curves["herd/after"][0])
    np.testing.assert_array_equal(own["oracle/after"], curves["oracle/after"])

    write_results(experiment.plan, experiment.state, tmp_path)
    results, read, _ = read_run(tmp_path)
    (entry,) = results.excluded
    assert (entry.seed, entry.arm, entry.learner, entry.epoch) == (1, "herd", 0, 3)
    assert "is not finite" in entry.why
    assert {row.seed for row in results.rows if row.arm == "herd"} == {0}
    assert {row.seed for row in results.rows if row.arm == "oracle"} == {0, 1}
    assert "Herd of MAMLs: 1 of 2" in str(tables.returns_table(results).caption)
    figures.save_figure(figures.learning_curves(results, read), tmp_path / "curves.png")
    # A resumed run knows of it.
    again = toy_experiment()
    apply_snapshot(again.plan, again.state, take_snapshot(experiment.plan, experiment.state))
    write_results(again.plan, again.state, tmp_path / "..")
    assert (tmp_path / ".." / "results.json").read_bytes() == (tmp_path / "results.json").read_bytes()


def test_a_herd_whose_probe_was_frozen_is_left_out_too(tmp_path):
    experiment = poisoned(0, "single", 0, 2)
    list(experiment.run())
    write_results(experiment.plan, experiment.state, tmp_path)
    excluded = json.loads((tmp_path / "results.json").read_text())["excluded"]
    assert [(e["seed"], e["arm"]) for e in excluded] == [(0, "single"), (0, "herd")]


def test_a_seed_that_cannot_be_clustered_does_not_stop_the_others(sound, tmp_path, monkeypatch):
    def cluster(gram, config, seed):
        if seed == 0:
            raise ValueError("embeddings are not finite for tasks [3]")
        return found(gram, config, seed)

    found = clustering.cluster
    monkeypatch.setattr(clustering, "cluster", cluster)
    experiment = toy_experiment()
    notes = [line for event in experiment.run() for line in event.notes]
    assert notes == ["seed 0: embeddings are not finite for tasks [3]"]
    np.testing.assert_array_equal(run_curves(experiment.plan, experiment.state)["herd/after"][1], sound[1]["herd/after"][1])
    write_results(experiment.plan, experiment.state, tmp_path)
    results, curves, embeddings = read_run(tmp_path)
    assert {row.seed for row in results.rows if row.arm == "herd"} == {1}
    assert results.clusters[0].failure == "embeddings are not finite for tasks [3]"
    figures.save_figure(figures.learning_curves(results, curves), tmp_path / "curves.png")
    figures.save_figure(figures.embedding_map(results, embeddings), tmp_path / "map.png")
    console = Console(width=150, record=True)
    console.print(tables.clusters_table(results))


def test_the_first_leaf_at_fault_is_named():
    state = {"a": jnp.ones(3), "b": jnp.arange(3), "c": jnp.array([1.0, jnp.inf]), "d": jnp.array(jnp.nan)}
    assert int(first_nonfinite(state)) == 1  # integers are not counted
    assert int(first_nonfinite({"a": jnp.ones(3)})) == -1
