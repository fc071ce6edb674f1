"""PEARL through a whole experiment: budgets, memory, resume, embeddings, controls, the command line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goal_mass import GoalMass, goal_tasks
from recorded_calls import recorded_calls, signature
from toy_pearl import TINY, pearl_config, pearl_experiment

from tamherd_jax import cli
from tamherd_jax.experiments import presets, runner
from tamherd_jax.experiments.assignment import assign_test_tasks
from tamherd_jax.experiments.checkpoints import Checkpoints
from tamherd_jax.experiments.clustering import cluster_by_trained_probe
from tamherd_jax.experiments.early import upcoming
from tamherd_jax.experiments.keys import learner_keys
from tamherd_jax.experiments.presets import get_preset, parse_controls, preset_name
from tamherd_jax.experiments.programs import float_arrays, init_learner
from tamherd_jax.experiments.results import read_run
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.experiments.snapshot import take_snapshot
from tamherd_jax.experiments.state import RunState, learner_faults, member_weights
from tamherd_jax.experiments.training import new_faults, train_arms, untrained_probe
from tamherd_jax.experiments.writing import run_curves, write_results
from tamherd_jax.herd.clustering import Clusters
from tamherd_jax.herd.embeddings import EmbeddingConfig
from tamherd_jax.registry.choices import CONTROLS

HERDS = ("herd", "random-assignment", "oracle-assignment", "random-clusters", "untrained-probe")
EPOCHS = {"single": 4, "double-gradient": 4, "oracle": 3} | dict.fromkeys(HERDS, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of all arms and controls that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    experiment = pearl_experiment()
    with recorded_calls() as calls:
        events = list(experiment.run())
    for program, shapes in upcoming(experiment.plan, experiment.programs, RunState()):
        assert calls[program] == {signature(shapes())}  # what was compiled early is what was called
    write_results(experiment.plan, experiment.state, out)
    return experiment, events, run_curves(experiment.plan, experiment.state), out


def test_every_arm_is_tested_every_epoch(whole):
    experiment, events, curves, out = whole
    assert set(experiment.plan.arms) == set(EPOCHS)
    for arm, epochs in EPOCHS.items():
        assert curves[f"{arm}/after"].shape == (2, epochs, 4)
        assert np.isfinite(curves[f"{arm}/after"]).all()
    results, _, _ = read_run(out)
    assert {row.arm for row in results.rows} == set(EPOCHS)
    assert len(results.rows) == len(EPOCHS) * 2 * 2 * 4
    assert sum(event.work for event in events) == experiment.plan.work()


def test_steps_are_those_of_preparation_and_epochs(whole):
    """By hand: 4 tasks x 15 steps, then 8 draws x 20; a goal mass never ends early."""
    experiment, _, curves, out = whole
    single = 4 * 15 + 8 * 20 * np.arange(1, 5)
    embedding = 8 * 1 * 5
    for arm in ("single", "double-gradient"):
        np.testing.assert_array_equal(curves[f"{arm}/budget"], single)
        np.testing.assert_array_equal(curves[f"{arm}/taken"], [single, single])
    members = 4 * 15 + 2 * 4 * 20 * np.arange(1, 4)
    np.testing.assert_array_equal(curves["oracle/taken"], [members, members])
    # A task that two members train on is prefilled for both of them.
    for arm, before in (("herd", single[0] + embedding), ("untrained-probe", embedding)):
        partition = experiment.plan.arms[arm].clustered
        prefilled = 15 * np.sum(member_weights(experiment.plan, experiment.state, partition) > 0, axis=(1, 2))
        np.testing.assert_array_equal(curves[f"{arm}/taken"], before + prefilled[:, None] + members - 60)
        np.testing.assert_array_equal(curves[f"{arm}/budget"], before + prefilled.max() + members - 60)
    ledger = read_run(out)[0].ledger
    assert ledger.budget["probe"] == single[0]
    assert ledger.meta_updates == {
        "single": 12,
        "oracle": 18,
        "herd": 18,
        "random-clusters": 18,
        "untrained-probe": 18,
        "double-gradient": 24,
    }
    # Meta-test: 2 exploration episodes of 5 steps in 4 tasks, 4 times; a herd's member has one, after one probe episode.
    assert (curves["single/test_steps"] == 2 * 5 * 16).all()
    assert (curves["herd/test_steps"] == 1 * 5 * 16).all()
    assert (curves["herd/assign_steps"] == 1 * 5 * 16).all()


def test_probe_and_test_states_hold_no_replay(whole):
    experiment, *_ = whole
    state = experiment.state.learners["single"]
    assert experiment.state.probe.full is None
    assert experiment.plan.learner.without_replay(state).encoder is None
    assert state.full.experience.reward.shape == (2, 1, 4, 300)
    assert not any("full" in name or "encoder/size" in name for name in float_arrays(experiment.plan))
    count = jax.tree.map(lambda leaf: leaf, state.train.optimizers.actor[0].count)
    assert count.tolist() == [[4 * 3]] * 2
    assert experiment.state.learners["double-gradient"].train.optimizers.actor[0].count.tolist() == [[4 * 6]] * 2


def test_replay_is_no_larger_than_the_run_can_fill():
    """At most 8 draws x 20 steps a task and epoch, and 15 before."""
    pearl = dataclasses.replace(TINY, replay_capacity=1_000_000)
    assert pearl_experiment(pearl=pearl).plan.learner.config.replay_capacity == 15 + 4 * 8 * 20
    assert pearl_experiment(pearl=pearl, member_epochs=9).plan.learner.config.replay_capacity == 15 + 9 * 8 * 20


# Controls ------------------------------------------------------------------------------------------------------------


def test_assignment_is_of_each_repeat_and_adds_up(whole):
    _, _, curves, _ = whole
    for arm in HERDS:
        share = curves[f"{arm}/share"]
        assert share.shape == (2, 3, 4, 2)
        np.testing.assert_array_equal(share.sum(-1), 1)
        np.testing.assert_array_equal(share * 4, np.round(share * 4))
        np.testing.assert_array_equal(curves[f"{arm}/member"], share.argmax(-1))


def test_a_control_differs_from_the_herd_in_nothing_but_what_it_controls(whole):
    """The same member of the same herd, tested with the same random numbers, gives the same bits."""
    _, _, curves, _ = whole
    for arm in ("random-assignment", "oracle-assignment"):
        assert f"{arm}/steps" not in curves  # it trains nothing
        same = (curves[f"{arm}/share"] == curves["herd/share"]).all(-1) & (curves["herd/share"].max(-1) == 1)
        np.testing.assert_array_equal(curves[f"{arm}/after"][same], curves["herd/after"][same])
        other = curves[f"{arm}/share"][..., 0] == 1 - curves["herd/share"][..., 0]
        assert (curves[f"{arm}/after"] != curves["herd/after"])[other & (curves["herd/share"].max(-1) == 1)].all()


def test_random_assignment_is_random_in_every_repeat_and_epoch(whole):
    share = whole[2]["random-assignment/share"][..., 0]
    assert len(np.unique(share.reshape(6, 4), axis=0)) == 6
    assert 0.2 < share.mean() < 0.8


def test_oracle_assignment_gives_a_task_to_the_member_trained_on_its_mode(whole):
    experiment, *_ = whole
    plan, found = experiment.plan, experiment.state.clustered["trained"]
    # The second member trained on the upper goals but for one draw of a lower one, the first on the rest.
    clusters = [Clusters(np.array([1, 1, 1, 1, 1, 0, 0, 0]), 2, {"silhouette": {}})] * 2
    state = RunState(clustered={"trained": dataclasses.replace(found, clusters=clusters)})
    assigned = assign_test_tasks(plan, experiment.programs, state, plan.arms["oracle-assignment"], 1)
    np.testing.assert_array_equal(assigned.learner, [[1] * 8 + [0] * 8] * 2)


def test_random_clusters_are_equal_shares_unlike_in_every_seed(whole):
    experiment, *_ = whole
    found = experiment.state.clustered
    labels = [c.labels for c in found["random"].clusters]
    assert [row.sum() for row in labels] == [4, 4]
    assert (labels[0] != labels[1]).any()
    assert found["random"].embedded is found["trained"].embedded


def test_the_untrained_probe_is_the_single_learner_before_its_first_epoch(whole):
    experiment, *_ = whole
    plan, found = experiment.plan, experiment.state.clustered
    probe = found["untrained"].probe
    key = learner_keys(plan.seeds, "single", 1)[1, 0]
    expected = jax.jit(lambda k: plan.learner.without_replay(init_learner(plan, k)))(key)
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours[1], theirs), probe, expected)
    assert not np.array_equal(found["untrained"].embedded.gram, found["trained"].embedded.gram)


def test_controls_change_nothing_of_the_main_arms(whole):
    """A run without them records the same bits."""
    _, _, curves, _ = whole
    plain = pearl_experiment(controls=(), member_epochs=1, single_epochs=2)
    list(plain.run())
    own = run_curves(plain.plan, plain.state)
    assert {name.split("/")[0] for name in own} == {"single", "oracle", "herd"}
    for name, values in own.items():
        if not name.endswith("budget"):
            np.testing.assert_array_equal(values, curves[name][:, : values.shape[1]], err_msg=name)


# Resume, faults, memory ----------------------------------------------------------------------------------------------


def test_interrupted_and_resumed_gives_the_same_bytes(whole, tmp_path):
    """Stopped after the embeddings, and in the middle of the herd; the probe is not trained again."""
    _, events, _, reference = whole
    stops = (2, 4, len(events))
    for before, stop in zip((0, *stops), stops, strict=False):
        experiment, checkpoints = pearl_experiment(), Checkpoints(tmp_path / "checkpoints", every=0)
        assert checkpoints.restore(experiment.plan, experiment.state) == (before or None)
        for _, _ in zip(range(stop - before), experiment.run(), strict=False):
            pass
        checkpoints.save(experiment.plan, experiment.state)
        checkpoints.close()
        if stop == 2:  # after the probe's epoch: rings hold what was collected, not what they have room for
            rings, state = take_snapshot(experiment.plan, experiment.state).arrays, experiment.state.learners["single"]
            held = int(state.full.size.max())
            assert rings["states/single/full/experience/obs"].shape[3] == held < state.full.experience.reward.shape[3]
    write_results(experiment.plan, experiment.state, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == (reference / "results.json").read_bytes()
    ours, theirs = np.load(tmp_path / "curves.npz"), np.load(reference / "curves.npz")
    assert set(ours.files) == set(theirs.files)
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_learner_that_goes_nonfinite_is_frozen_without_its_replay_and_harms_nobody(whole):
    """The herd of seed 1 loses its first member after its first epoch; the others' second is that of the whole run."""
    experiment, *_ = whole
    plan, programs, curves = experiment.plan, experiment.programs, experiment.curves
    arms, state = [plan.arms["oracle"], plan.arms["herd"]], RunState(clustered=experiment.state.clustered)
    train_arms(plan, programs, state, arms, np.array([1]))
    finite = state.learners["herd"]
    encoder = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), finite.train.params.encoder)
    params = dataclasses.replace(finite.train.params, encoder=encoder)
    state.learners["herd"] = before = finite.replace(train=dataclasses.replace(finite.train, params=params))
    train_arms(plan, programs, state, arms, np.array([2]))
    assert (learner_faults(plan, state, plan.arms["herd"]) >= 0).tolist() == [[False, False], [True, False]]
    (note,) = new_faults(plan, state, plan.arms["herd"], 1)
    assert "seed 1: learner 0 of herd frozen at its epoch 2: train/params/encoder" in note
    after = state.learners["herd"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1, 0], b[1, 0]), after.train, before.train)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(after.full.experience))
    for arm in ("herd", "oracle"):
        same = state.curves[arm].diagnostics["critic_loss"][1] == curves[arm].diagnostics["critic_loss"][1]
        assert same.tolist() == [[True, True], [arm == "oracle", True]]


def test_memory_is_checked_before_anything_is_allocated(monkeypatch):
    experiment = pearl_experiment()

    def refuse(learners):
        raise ValueError(f"{learners} are too many")

    monkeypatch.setattr(experiment.plan.learner, "check_memory", refuse)
    # 2 seeds x (single, its double, and 2 learners of oracle, herd and two controls, these 8 twice)
    with pytest.raises(ValueError, match=f"{2 * (2 + 8 + 8)} are too many"):
        experiment.run()
    assert not experiment.state.learners


# Embeddings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "embedding",
    [
        EmbeddingConfig(kind="latent", reward="none", latent="wasserstein"),
        EmbeddingConfig(kind="transition"),
        EmbeddingConfig(kind="gradient"),
    ],
    ids=lambda e: e.kind,
)
def test_every_embedding_goes_through_clusters_and_assignment(embedding):
    experiment = pearl_experiment(embedding=embedding, controls=(), test_repeats=2)
    plan, programs, state = experiment.plan, experiment.programs, experiment.state
    state.probe = untrained_probe(plan, programs, state)
    found = state.clustered["trained"] = cluster_by_trained_probe(plan, programs, state)
    assert not found.failures
    gram = np.asarray(found.embedded.gram)
    assert gram.shape == (2, 8, 8)
    assert np.isfinite(gram).all()
    assert assign_test_tasks(plan, programs, state, plan.arms["herd"], 1).learner.shape == (2, 8)
    if embedding.kind == "transition":  # of what the environment showed, without the latent
        assert found.embedded.features.values.shape == (2, 8, (2 * 2) ** 2)


# Configuration and command line --------------------------------------------------------------------------------------


def test_paper_pearl_is_table_4():
    config = get_preset("paper-pearl")
    pearl = config.pearl
    assert config.algorithm == "pearl"
    table = {
        "latent_size": 5,
        "encoder_sizes": (200,) * 3,
        "hidden_sizes": (300,) * 3,
        "meta_batch_size": 4,
        "gradient_steps": 2000,
        "initial_steps": 2000,
        "prior_steps": 1000,
        "posterior_steps": 1000,
        "batch_size": 256,
        "context_size": 256,
        "horizon": 200,
        "reward_scale": 5.0,
    }
    assert {name: getattr(pearl, name) for name in table} == table
    assert (config.draws_per_task, config.explore_episodes, config.probe_test_episodes) == (5, 2, 1)
    assert (config.probe_epochs, config.member_epochs, config.single_epochs, config.seeds) == (1, 100, 102, 10)
    assert (config.embedding_episodes, config.embedding_tasks, config.test_repeats) == (1, 40, 4)
    assert config.expected_action_scale == 1.0
    single = Experiment(dataclasses.replace(config, seeds=1)).plan.budget
    assert (single.single_epoch, single.herd_epoch, single.oracle_epoch) == (40_000, 40_000, 40_000)
    assert (single.probe, single.embedding) == (48_000, 8_000)
    assert (
        single.single.after(102, 4)[-1] >= single.herd.after(100, 4)[-1] - 16_000
    )  # within the embedding's and the members' preparation


def test_pearl_has_a_quick_preset_of_its_own():
    assert preset_name(None, "pearl") == preset_name("quick", "pearl") == "quick-pearl"
    assert preset_name(None, None) == preset_name(None, "maml") == "quick"
    assert preset_name("paper-pearl", "pearl") == "paper-pearl"
    with pytest.raises(ValueError, match="preset paper-maml trains maml, not pearl; leave one of the two out"):
        get_preset("paper-maml", algorithm="pearl")


@pytest.mark.parametrize("name", ["quick-pearl", "tuned-pearl"])
def test_single_pearl_takes_at_least_the_herds_steps(name):
    config = dataclasses.replace(get_preset(name), seeds=1, controls=())
    budget = Experiment(config).plan.budget
    assert budget.single.after(config.single_epochs, 4)[-1] >= budget.herd.after(config.member_epochs, 4)[-1]


def test_tuned_pearl_has_a_probe_as_long_as_the_quick_ones_and_the_control_at_equal_steps():
    config, quick = get_preset("tuned-pearl"), get_preset("quick-pearl")
    assert (config.seeds, config.controls) == (10, ("double-gradient",))
    assert config.probe_epochs * config.pearl.gradient_steps >= quick.probe_epochs * quick.pearl.gradient_steps


def test_controls_are_parsed_and_checked():
    assert parse_controls("all", "pearl") == tuple(CONTROLS)
    assert parse_controls("all", "maml") == tuple(CONTROLS)[:4]
    assert parse_controls("random-clusters, untrained-probe", "maml") == ("random-clusters", "untrained-probe")
    assert parse_controls(None, "maml") is None
    assert parse_controls("none", "maml") == ()
    literal = [get_preset(name).controls for name in ("paper-maml", "long-maml", "paper-pearl")]
    assert literal == [tuple(CONTROLS)[:4]] * 2 + [tuple(CONTROLS)]
    with pytest.raises(ValueError, match="control double-gradient needs algorithm pearl"):
        get_preset("quick", controls=("double-gradient",))
    with pytest.raises(ValueError, match="named twice"):
        get_preset("quick", controls=("random-clusters", "random-clusters"))
    with pytest.raises(ValueError, match="embedding kind 'latent'"):
        get_preset("quick", embedding=EmbeddingConfig(kind="latent", reward="none"))


@pytest.fixture
def toy_cli(monkeypatch):
    """The command line with the goal mass instead of ML2."""

    class Toy(Experiment):
        def __init__(self, config, **options):
            super().__init__(config, GoalMass(), goal_tasks(), **options)

    monkeypatch.setattr(runner, "Experiment", Toy)
    monkeypatch.setitem(presets.PRESETS, "quick-pearl", pearl_config(controls=(), seeds=1))

    def run(*arguments):
        try:
            cli.main(["run", "--compilation-cache", "off", *map(str, arguments)])
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def test_the_command_runs_pearl_with_controls(toy_cli, capsys, tmp_path):
    controls = "random-assignment,oracle-assignment"
    assert toy_cli("--algorithm", "pearl", "--epochs", 1, "--controls", controls, "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    for words in ("toy-pearl: 1 seed(s)", "probe 1/1", "herd and oracle 1/1", "single 1/1"):
        assert words in printed
    results, _, _ = read_run(tmp_path / "run")
    assert results.config.algorithm == "pearl"
    assert {row.arm for row in results.rows} == {"oracle", "single", "herd", *controls.split(",")}
    assert toy_cli("--resume", "--algorithm", "pearl", "--controls", "all", "--out", tmp_path / "run") == 2
    assert "--controls" in capsys.readouterr().err
    assert toy_cli("--resume", "--algorithm", "pearl", "--controls", controls, "--out", tmp_path / "run") == 0


def test_replay_that_does_not_fit_gets_one_line(toy_cli, capsys, tmp_path):
    out = tmp_path / "run"
    assert toy_cli("--algorithm", "pearl", "--seeds", 10**6, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "lower replay_capacity from 300 to" in error
    assert "or train fewer seeds at once (--seeds, --first-seed)" in error
    assert not out.exists()


@pytest.mark.slow
def test_the_quick_preset_on_real_physics(pearl_run):
    """`tamherd run --algorithm pearl` as a user runs it, for one epoch of the probe and one of the herd, of fewer updates."""
    done = pearl_run.process
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("quick-pearl: 1 seed(s)", "probe 1/1", "herd and oracle 1/1", "String of PEARLs", "1004.5", "507.6", "414.9"):
        assert words in done.stdout
    results, curves, _ = read_run(pearl_run.directory)
    assert results.config.preset == "quick-pearl"
    assert len(results.rows) == 3 * 2 * 4
    pearl = get_preset("quick-pearl").pearl
    epoch = 20 * (pearl.prior_steps + pearl.posterior_steps)
    for arm in ("single", "oracle"):  # a fall costs PEARL no transitions
        np.testing.assert_array_equal(curves[f"{arm}/taken"], [curves[f"{arm}/budget"]])
    assert curves["oracle/taken"][0, 0] == 4 * pearl.initial_steps + epoch
    assert results.nonfinite_episodes == {"oracle": 0, "single": 0, "herd": 0}
