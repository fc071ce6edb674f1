"""An experiment in Python from its first epoch to a directory, and a policy that leaves as NumPy arrays."""

import io
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from test_artefact import equal_trees
from toy import toy_experiment
from toy_pearl import TINY

from tamherd_jax import Herd, track_progress
from tamherd_jax.envs import Locomotion
from tamherd_jax.experiments.results import is_finished
from tamherd_jax.herd import numpy_policy
from tamherd_jax.herd.artefact import AdaptedPolicy
from tamherd_jax.herd.numpy_policy import forward
from tamherd_jax.maml import MAML, MAMLConfig
from tamherd_jax.pearl import PEARL
from tamherd_jax.pearl.collection import PEARLPolicy


def test_progress_is_shown_a_line_an_epoch_where_there_is_no_terminal(fresh_toy):
    shown = io.StringIO()
    events = list(track_progress(fresh_toy, Console(file=shown, width=200)))
    lines = shown.getvalue().splitlines()
    assert len(lines) >= len(events) == 1 + 3 + 5 + 5  # embeddings, probe, herd, the rest of the single learner
    assert lines[0].startswith("probe 1/3")
    assert lines[-1].startswith("single 5/5")


def test_a_notebook_without_widgets_shows_a_line_an_epoch(fresh_toy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # with them there is a bar: `examples/tour.ipynb` has one
    list(track_progress(fresh_toy, Console(force_jupyter=True, width=200)))
    assert capsys.readouterr().out.count("JupyterRenderable") == 14


def test_a_finished_experiment_gives_its_herds_and_saves_what_a_run_leaves(finished_toy, tmp_path):
    second = finished_toy.herd(1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.part").write_bytes(b"{")  # of a process that died while it wrote its first file
    finished_toy.save(tmp_path / "run")
    assert is_finished(tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()
    assert not list((tmp_path / "run").glob("*.part"))
    loaded = Herd.load(tmp_path / "run" / "herd" / "seed-1", env=finished_toy.plan.env, task_set=finished_toy.plan.task_set)
    equal_trees(loaded.members, second.members)
    assert repr(loaded) == repr(second)
    assert repr(second).startswith(f"Herd(MAML on {second.task_set.name}, seed 1: ")
    assert finished_toy.herd().seed == 0
    with pytest.raises(ValueError, match="there is no seed 2, only 0, 1"):
        finished_toy.herd(2)
    with pytest.raises(ValueError, match="is not empty"):
        finished_toy.save(tmp_path / "run")


def test_an_experiment_that_is_not_trained_has_no_herd(tmp_path):
    experiment = toy_experiment()  # compiles nothing
    for call in (experiment.herd, lambda: experiment.save(tmp_path)):
        with pytest.raises(ValueError, match=r"is not trained: loop over its run\(\) first"):
            call()
    assert not list(tmp_path.iterdir())


# Policies as arrays ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["maml", "maml with one standard deviation", "pearl"])
def adapted(request):
    env = Locomotion("planar")
    if request.param == "pearl":
        learner = PEARL(env, 4, 4, TINY)
        actor = jax.jit(learner.init)(jax.random.key(0)).train.params.actor
        policy = PEARLPolicy(actor, jax.random.normal(jax.random.key(3), (TINY.latent_size,)))
    else:
        learner = MAML(env, 4, MAMLConfig(2, 6, hidden_sizes=(8, 4), shared_log_std="one" in request.param, init_log_std=-0.3))
        policy = jax.jit(learner.init)(jax.random.key(0)).params
    return AdaptedPolicy(None, None, None, policy, learner)  # only its policy acts


def test_an_exported_policy_acts_as_the_learner_does(adapted, tmp_path):
    np.savez(tmp_path / "policy.npz", **adapted.export())
    weights = dict(np.load(tmp_path / "policy.npz", allow_pickle=False))
    obs = np.asarray(jax.random.normal(jax.random.key(1), (5, adapted.learner.env.observation_size)))
    mean, std = forward(weights, obs)
    keys = jax.random.split(jax.random.key(2), 4000)
    actions = jax.vmap(lambda key: adapted.act((), jnp.asarray(obs[0]), key)[0])(keys)
    noise = np.asarray(std[0]) / np.sqrt(len(keys))
    np.testing.assert_allclose(np.mean(actions, axis=0), mean[0], atol=1e-5 + 5 * noise.max())
    np.testing.assert_allclose(np.std(actions, axis=0), std[0], rtol=0.06, atol=1e-6)
    wanted, log_std = adapted.learner.distribution(adapted.policy, jnp.asarray(obs))
    if isinstance(adapted.learner, PEARL):
        wanted, log_std = jnp.tanh(wanted), np.full(wanted.shape, -np.inf)
    np.testing.assert_allclose(mean, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, np.exp(log_std), rtol=1e-6)
    np.testing.assert_allclose(forward(weights, obs[0])[0], mean[0], rtol=1e-5, atol=1e-6)  # one observation


def test_the_forward_pass_needs_numpy_alone(adapted, tmp_path):
    np.savez(tmp_path / "policy.npz", **adapted.export())
    (tmp_path / "policy.py").write_bytes(Path(numpy_policy.__file__).read_bytes())
    program = """
import sys, numpy
before = set(sys.modules)
import policy
assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("jax", "flax", "tamherd_jax")}
mean, std = policy.forward(numpy.load("policy.npz"), numpy.ones(17))
assert mean.shape == std.shape == (6,) and numpy.isfinite(mean).all()
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)


def test_a_policy_with_memory_cannot_be_exported():
    class Recurrent:
        pass

    adapted = AdaptedPolicy(None, None, None, (), Recurrent())
    with pytest.raises(ValueError, match=r"Recurrent has no export\(\)"):
        adapted.export()


# Small herds ----------------------------------------------------------------------------------------------------------


def test_a_compact_herd_is_smaller_and_assigns_alike(finished_toy):
    herd = finished_toy.herd()
    compact = herd.compact(jax.random.key(0), len(herd.task_set), 3)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(one.embedded)) for one in (herd, compact)]
    assert sizes[1] < sizes[0] / 2
    np.testing.assert_array_equal(compact.member_tasks, herd.member_tasks)
    for index, name in enumerate(herd.task_set.task_names):
        assert compact.assign(jax.random.key(index), name).member == herd.assign(jax.random.key(index), name).member


def test_a_compact_herd_needs_every_task_in_one_cluster(finished_toy):
    herd = finished_toy.herd()
    with pytest.raises(ValueError, match="at least the task set's"):
        herd.compact(jax.random.key(0), 1, 1)
    mixed = herd.labels.copy()
    mixed[0] = 1 - mixed[0]
    object.__setattr__(herd, "labels", mixed)
    with pytest.raises(ValueError, match="is in 2 clusters"):
        herd.compact(jax.random.key(0), len(herd.task_set), 1)
