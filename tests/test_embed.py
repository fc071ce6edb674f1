"""`tamherd embed`, its analysis and its figures, on the point mass."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_mass import PointMass, point_tasks
from toy import toy_config, toy_experiment

from tamherd_jax import cli
from tamherd_jax.codec import write_json
from tamherd_jax.commands.run import Run, new_config, read_config
from tamherd_jax.commands.run_options import MethodOptions, OutputOptions, TrainingOptions
from tamherd_jax.experiments import presets, runner
from tamherd_jax.experiments.checkpoints import Checkpoints
from tamherd_jax.experiments.embedding import analyse, embed_with_probe, training_and_test_tasks
from tamherd_jax.herd import clustering
from tamherd_jax.herd.clustering import Assignment, ClusteringConfig, Clusters
from tamherd_jax.herd.diagnostics import describe_assignment, describe_clusters
from tamherd_jax.herd.embeddings import NAMES, EmbeddingConfig, named_embedding
from tamherd_jax.reporting.embedding_figures import embedding_figure, principal_plane, tsne_plane
from tamherd_jax.reporting.figures import save_figure


def test_every_name_is_an_embedding_of_its_own():
    assert len({named_embedding(name) for name in NAMES}) == len(NAMES)
    diagonal = EmbeddingConfig(form="diagonal", reward="none", metric="cosine")
    assert named_embedding("fisher-diagonal", "none", "cosine") == diagonal
    assert named_embedding("transition", reward="none") == EmbeddingConfig(kind="transition", reward="none")
    with pytest.raises(ValueError, match="unknown embedding 'fischer'; choose from fisher,"):
        named_embedding("fischer")


def test_diagnostics_of_a_case_by_hand():
    modes, tasks = np.array([0, 0, 1]), np.array([0, 0, 1, 1, 2, 2, 2, 2])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    found = describe_clusters(Clusters(labels, 2, {"silhouette": {2: 0.5}}), tasks, modes)
    assert found["clusters"] == 2
    assert found["scores"] == {"silhouette": {"2": 0.5}}
    assert found["tasks_in_cluster"] == [[2, 0], [1, 1], [0, 4]]
    assert found["purity_bodies"] == 7 / 8
    assert found["purity_tasks"] == 6 / 8
    assert found["adjusted_rand_index_bodies"] == clustering.adjusted_rand(labels, modes[tasks])
    assignment = Assignment(None, np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.6, 0.9]))
    test = describe_assignment(assignment, labels, tasks, modes, np.arange(3))
    assert test["accuracy"] == pytest.approx(2 / 3)
    assert test["assigned_to"] == [[1, 0], [0, 1], [0, 1]]
    assert test["confidence_least"] == 0.6
    assert test["margin_mean"] == 2.0


def test_margin_of_a_single_cluster_is_null_in_json():
    assignment = Assignment(None, np.zeros(2, int), np.full(2, np.inf), np.ones(2))
    labels, modes = np.zeros(4, int), np.array([0, 1])
    test = describe_assignment(assignment, labels, np.array([0, 0, 1, 1]), modes, np.arange(2))
    assert test["margin_least"] is None
    json.dumps(test, allow_nan=False)


@pytest.fixture(scope="module")
def embedded():
    """One probe of known behaviour on the point mass, embedded in two ways."""
    experiment = toy_experiment()
    tasks = point_tasks()
    (training, index), (probes, probe_index) = training_and_test_tasks(tasks, 8, 4)
    configs = {name: named_embedding(name) for name in ("fisher", "transition")}
    program = jax.jit(partial(embed_with_probe, experiment.plan.learner, experiment.config, configs, training, probes))
    probe = experiment.plan.learner.init(jax.random.key(3))
    return program(jax.random.key(1), probe), index, probe_index


def test_embedding_with_a_probe_separates_the_modes(embedded):
    found, index, probe_index = embedded
    assert list(found) == ["fisher", "transition"]
    for parts in found.values():
        assert parts.gram.shape == (8, 8)
        assert parts.cross.shape == (4, 8)
        labels, row = analyse(parts, ClusteringConfig(), point_tasks(), index, probe_index, 0)
        assert row["adjusted_rand_index_bodies"] == clustering.adjusted_rand(labels, point_tasks().modes[index])
        assert 0 <= row["reward_guard_rate"] <= 1
        assert sum(map(sum, row["test"]["assigned_to"])) == 4
    assert analyse(found["transition"], ClusteringConfig(), point_tasks(), index, probe_index, 0)[1]["test"]["accuracy"] == 1


def test_projections_keep_what_they_should():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(12, 2)), rng.normal(size=(12, 2)) + np.array([40, 0])])
    gram = points @ points.T
    plane = principal_plane(gram)
    assert np.corrcoef(plane[:, 0], points[:, 0])[0, 1] ** 2 > 0.999
    np.testing.assert_allclose(np.var(plane, 0).sum(), np.var(points, 0).sum())
    flat = tsne_plane(gram)
    near, far = np.ptp(flat[:12], 0).max(), np.linalg.norm(flat[:12].mean(0) - flat[12:].mean(0))
    assert flat.shape == (24, 2)
    assert far > near / 2
    assert principal_plane(np.zeros((4, 4))).shape == (4, 2)
    assert np.isfinite(tsne_plane(np.zeros((4, 4)))).all()


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_figure_is_written(tmp_path, projection):
    x = np.random.default_rng(0).normal(size=(12, 3))
    path = tmp_path / "figures" / "map.png"
    grams = {"a": x @ x.T, "b": x[:, :1] @ x[:, :1].T}
    save_figure(embedding_figure(grams, np.arange(12) % 4, tuple("abcd"), projection), path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def toy_world(monkeypatch):
    """`tamherd embed` on the point mass."""
    monkeypatch.setitem(presets.PRESETS, "quick", toy_config(seeds=2))
    whole = partial(runner.Experiment, env=PointMass(), task_set=point_tasks())
    monkeypatch.setattr(runner, "Experiment", whole)


def embed(*arguments):
    cli.main(["embed", *map(str, arguments), "--compilation-cache", "off"])


def check_outputs(directory, names, seeds=2):
    document = json.loads((directory / "embeddings.json").read_text())
    assert [(row["embedding"], row["seed"]) for row in document["rows"]] == [(n, s) for n in names for s in range(seeds)]
    with np.load(directory / "embeddings.npz") as arrays:
        for name in names:
            assert arrays[f"{name}/gram"].shape[0] == seeds
            assert arrays[f"{name}/labels"].shape == (seeds, len(arrays["task"]))
    assert (directory / "embedding_pca.png").exists()
    assert (directory / "embedding_tsne.png").exists()
    return document


def test_fresh_probes_then_a_run_directory(toy_world, finished_toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "embed-1").mkdir(parents=True)  # another process has taken it, and writes when it is done
    embed("--embedding", "transition", "gradient", "--test-probes", 2)
    rows = check_outputs(tmp_path / "runs" / "embed-2", ("transition", "gradient"))["rows"]
    assert rows[0]["clusters"] == 2
    assert sum(map(sum, rows[0]["test"]["assigned_to"])) == 8
    assert "Scores by number of clusters" in capsys.readouterr().out

    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoints", 0)
    checkpoints.save(finished_toy.plan, finished_toy.state)
    checkpoints.close()
    write_json(run / "config.json", finished_toy.config.to_json())
    options = ["--embedding", "transition", "--clusters", "auto", "--linkage", "average", "--tasks-per-mode", 3]
    embed(run, *options, "--test-probes", 1)
    document = check_outputs(run / "embed", ("transition",))
    assert document["config"]["clustering"]["clusters"] == "auto"
    assert len(document["rows"][0]["scores"]["silhouette"]) == 7  # K = 2..8 of 12 training tasks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere holds no run: config.json is missing"),
        (["--embedding", "fischer"], "invalid choice 'fischer'"),
        (
            ["--embedding", "latent"],
            "embedding latent is a probe's posterior over a latent; it needs algorithm pearl, not maml",
        ),
        (["--metric", "manhattan"], "invalid choice 'manhattan' for argument '--metric'"),
        (["--linkage", "centroid"], "Expected one of ('ward', 'average'"),
        (["--clusters", "0"], "clusters is a positive number or 'auto'"),
        (["--choose-by", "gap"], "it needs --clusters auto"),
        (["--test-probes", "0"], "test probes must be at least 1"),
        (["--preset", "nonsense"], "invalid choice 'nonsense'"),
        (["--probe", "psychic"], "Expected one of ('meta', 'multitask', 'discriminative')"),
        (["--probe", "multitask", "--algorithm", "pearl"], "a multitask probe is a meta-learner without its inner step"),
    ],
)
def test_mistakes_get_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        embed(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_probes_whose_replay_does_not_fit_get_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        embed("--algorithm", "pearl", "--seeds", 10**6, "--out", tmp_path)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert "train fewer seeds at once" in error


def test_options_for_fresh_probes_contradict_a_directory(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(presets.PRESETS["quick"].to_json()))
    for arguments, words in (
        (["--probe-epochs", "3"], "--probe-epochs is for fresh probes"),
        (["--embedding", "transition"], "holds no checkpoint"),
    ):
        with pytest.raises(SystemExit):
            embed(tmp_path, *arguments)
        assert words in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]  # what is refused leaves nothing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--embedding", "latent"], "it needs algorithm pearl"),
        (["--embedding", "nonsense"], "invalid choice 'nonsense'"),
        (["--clusters", "-1"], "clusters is a positive number or 'auto'"),
        (["--normalisation", "sigmoid"], "Expected one of ('max', 'absolute', 'none', 'raw')"),
        (["--probe-epochs", "-1"], "probe_epochs must not be negative"),
        (
            ["--probe", "discriminative", "--algorithm", "pearl"],
            "a discriminative probe is a meta-learner without",
        ),
        (["--reuse-probe"], "reusing the probe's trajectories needs algorithm pearl"),
        (["--reuse-probe", "--algorithm", "pearl", "--probe-epochs", "0"], "no trajectories of a probe of 0 epochs"),
    ],
)
def test_mistakes_in_options_of_a_run(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *options, "--compilation-cache", "off"])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert words in error
    assert not list(tmp_path.iterdir())


def test_options_reach_the_configuration_of_a_run():
    method = MethodOptions("absolute", linkage="average", clusters="auto", embedding="fisher-diagonal", probe_epochs=12)
    config = new_config(Run(method=method))
    assert config.embedding == EmbeddingConfig(form="diagonal", reward="absolute", metric="cosine")
    assert config.clustering == ClusteringConfig("average", "auto")
    assert (config.probe_epochs, config.single_epochs) == (12, 37)  # the single learner still covers probe and herd
    assert new_config(Run(TrainingOptions(preset="paper-maml"))).embedding == EmbeddingConfig()  # literal
    assert new_config(Run(method=MethodOptions(linkage="hdbscan"))).clustering.clusters == "auto"


def test_going_on_with_another_embedding_is_refused(tmp_path):
    config = presets.PRESETS["quick"]
    write_json(tmp_path / "config.json", config.to_json())
    again = Run(method=MethodOptions(embedding="fisher", clusters=2), output=OutputOptions(out=tmp_path, resume=True))
    assert read_config(again) == config
    with pytest.raises(ValueError, match="embedding and clustering contradict"):
        read_config(dataclasses.replace(again, method=MethodOptions(embedding="transition")))


def test_embeddings_that_are_not_finite_cannot_be_clustered(embedded):
    found, index, probe_index = embedded
    broken = found["fisher"].replace(gram=jnp.full((8, 8), jnp.nan))
    with pytest.raises(ValueError, match="not finite"):
        analyse(broken, ClusteringConfig(), point_tasks(), index, probe_index, 0)
