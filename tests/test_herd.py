import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_mass import PointMass, point_tasks

from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.ledger import Budget, taken_steps
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.experiments.state import RunState, member_weights
from tamherd_jax.experiments.writing import make_results, run_curves
from tamherd_jax.herd.algorithm import assign_tasks, embed_training_tasks, meta_test, stratified_tasks
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig
from tamherd_jax.maml import MAML, MAMLConfig, TRPOConfig

SMALL = ExperimentConfig(
    preset="point",
    seeds=3,
    probe_epochs=1,
    member_epochs=30,
    single_epochs=35,
    embedding_tasks=8,
    embedding_episodes=60,
    probe_test_episodes=40,
    explore_episodes=48,
    test_episodes=4,
    # The inner step is too small to turn a policy round: what the modes disagree on, only specialists can know.
    maml=MAMLConfig(episodes_per_task=12, horizon=10, hidden_sizes=(8,), inner_step_size=1e-3, trpo=TRPOConfig(max_kl=0.05)),
)


@pytest.fixture(scope="module")
def herd_run():
    experiment = Experiment(SMALL, PointMass(), point_tasks())
    events = list(experiment.run())
    return experiment, events, run_curves(experiment.plan, experiment.state)


@pytest.mark.learning
def test_a_herd_of_two_beats_one_learner_and_reaches_the_oracle(herd_run):
    """Each member's task has one answer; the single learner must find it out with one inner step of a few episodes."""
    _, _, curves = herd_run
    last = {arm: curves[f"{arm}/after"][:, -3:].mean(1) for arm in ("single", "herd", "oracle")}  # [S, N]
    best = 10 * (np.array([0.5, 1.0, 0.5, 1.0]) + np.array([0, 0, 8, 8]))
    shortfall = {arm: (best - values).mean() for arm, values in last.items()}
    assert shortfall["herd"] < 0.5 * shortfall["single"]
    assert abs(shortfall["herd"] - shortfall["oracle"]) < 1.0
    assert (last["herd"].mean(1) > last["single"].mean(1) + 1.0).all()  # in every seed


@pytest.mark.learning
def test_clusters_are_the_modes_and_test_tasks_are_assigned_right(herd_run):
    experiment, _, curves = herd_run
    document = make_results(experiment.plan, experiment.state, curves)
    for row in document.clusters:
        assert row.adjusted_rand_index_bodies == 1.0
        assert row.assignment_accuracy > 0.95
        assert row.tasks_in_cluster == {"a-slow": [2, 0], "a-fast": [2, 0], "b-slow": [0, 2], "b-fast": [0, 2]}
    np.testing.assert_allclose(member_weights(experiment.plan, experiment.state)[0], [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_an_impure_cluster_trains_its_member_on_what_is_in_it(herd_run):
    experiment, _, _ = herd_run
    found = experiment.state.clustered["trained"]
    labels = found.clusters[0].labels.copy()
    labels[0] = 1  # one draw of a-slow strays into the other cluster
    impure = [dataclasses.replace(found.clusters[0], labels=labels), *found.clusters[1:]]
    state = RunState(clustered={"trained": dataclasses.replace(found, clusters=impure)})
    weights = member_weights(experiment.plan, state)[0]
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3, 0, 0], [0.2, 0, 0.4, 0.4]], rtol=1e-6)


def test_the_herds_curve_starts_where_probe_and_embedding_end(herd_run):
    """The ledger against a hand count: 20 draws x 2 sides x 12 episodes x 10 steps and so on."""
    experiment, _, curves = herd_run
    single_epoch = 5 * 4 * 2 * 12 * 10
    member_epoch = 10 * 2 * 12 * 10
    embedding = 8 * 60 * 10
    assert experiment.plan.budget == Budget(single_epoch, 2 * member_epoch, 2 * member_epoch, single_epoch, embedding)
    assert curves["herd/budget"][0] == single_epoch + embedding + 2 * member_epoch
    assert curves["herd/budget"][-1] == single_epoch + embedding + 30 * 2 * member_epoch
    assert curves["single/budget"][-1] == 35 * single_epoch >= curves["herd/budget"][-1]
    assert curves["oracle/budget"][0] == 2 * member_epoch
    for arm in ("single", "herd", "oracle"):  # nothing ends early here: every step of the budget is taken
        np.testing.assert_array_equal(
            curves[f"{arm}/taken"], np.broadcast_to(curves[f"{arm}/budget"], curves[f"{arm}/taken"].shape)
        )


def test_early_ends_cost_what_they_lasted():
    assert taken_steps(np.array([[3, 4, 5]])).tolist() == [[3, 7, 12]]
    assert taken_steps(np.array([[7, 8]]), np.array([3 + 4]), np.array([10])).tolist() == [[3 + 4 + 10 + 7, 3 + 4 + 10 + 7 + 8]]


def test_progress_accounts_for_all_the_work(herd_run):
    experiment, events, _ = herd_run
    assert sum(event.work for event in events) == experiment.plan.work()
    assert [e.stage for e in events if e.epoch == 1] == ["probe", "embeddings", "herd and oracle", "single"]


def test_a_seed_alone_equals_the_same_seed_among_others(herd_run):
    """To the bit on the CPU, where every learner runs in the same compiled program by itself."""
    experiment, _, curves = herd_run
    config = dataclasses.replace(SMALL, seeds=1, first_seed=1, member_epochs=2, single_epochs=4)
    alone = Experiment(config, PointMass(), point_tasks())
    list(alone.run())
    own = run_curves(alone.plan, alone.state)
    for name, epochs in (("single/after", 4), ("herd/after", 2), ("oracle/after", 2), ("single/train_before", 4)):
        np.testing.assert_array_equal(own[name][0], curves[name][1, :epochs], err_msg=name)
    ours, theirs = (e.state.clustered["trained"].clusters for e in (alone, experiment))
    np.testing.assert_array_equal(ours[0].labels, theirs[1].labels)
    np.testing.assert_array_equal(own["herd/member"][0], curves["herd/member"][1, :2])


def test_the_same_experiment_twice_gives_the_same_bits(herd_run):
    _, _, curves = herd_run
    again = Experiment(SMALL, PointMass(), point_tasks())
    for _, _ in zip(again.run(), range(4), strict=False):
        pass
    stacked = again.curves["single"].stacked()
    for name in ("after", "kl"):
        values = stacked[name]
        np.testing.assert_array_equal(values, curves[f"single/{name}"][:, : values.shape[1]])


def test_algorithm_two_uses_its_budget():
    """Two probe episodes and eight to explore cost exactly their steps; the assigned member is the one that adapts."""
    env, task_set = PointMass(), point_tasks()
    learner = MAML(env, 4, SMALL.maml)
    embedding = Embedding(EmbeddingConfig())
    tasks, index = stratified_tasks(task_set.tasks, 8)
    assert index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    probe = learner.init(jax.random.key(0))
    embed = jax.jit(lambda key: embed_training_tasks(learner, embedding, key, probe, tasks, 3))
    membership = jnp.eye(2)[jnp.array([0, 0, 0, 0, 1, 1, 1, 1])]
    assign = jax.jit(lambda *args: assign_tasks(learner, embedding, *args, membership, task_set.tasks, 2))
    assignment, steps = assign(jax.random.key(2), probe, embed(jax.random.key(1)))
    assert float(steps) == 4 * 2 * 10
    # A member that always goes right and one that always goes left: who was chosen shows in the return.
    states = jax.vmap(learner.init)(jnp.stack([jax.random.key(3)] * 2))
    mean = states.params["params"]["mean"]["layer_1"]
    mean["kernel"], mean["bias"] = jnp.zeros_like(mean["kernel"]), jnp.array([[8.0], [-8.0]])
    test = jax.jit(lambda *args: meta_test(learner, *args, task_set.tasks, 8, 4))
    result = test(jax.random.key(4), states, assignment.nearest)
    assert float(result.steps) == 4 * 8 * 10
    sign = np.where(np.asarray(assignment.nearest) == 0, 1, -1) * np.array([1, 1, -1, -1])
    expected = 10 * (np.array([0.5, 1, 0.5, 1]) * sign + np.array([0, 0, 8, 8]))
    np.testing.assert_allclose(result.before, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": -1}, "seeds must be at least 1, not -1"),
        ({"member_epochs": 0}, "member_epochs must be at least 1, not 0"),
        ({"single_epochs": 1, "probe_epochs": 3}, r"single_epochs \(1\) must cover the probe's \(3\)"),
        ({"probe_test_episodes": 48}, "must leave the herd at least one exploration episode"),
        ({"algorithm": "ppo"}, "unknown algorithm 'ppo'"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
