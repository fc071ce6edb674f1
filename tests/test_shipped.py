"""Trained herds that come with the package: they load by name, adapt to every task, and act without JAX."""

import gymnasium
import jax
import numpy as np
import pytest

from tamherd_jax import Herd, cli
from tamherd_jax.herd.files import shipped_herds
from tamherd_jax.herd.numpy_policy import forward
from tamherd_jax.pearl import PEARL


@pytest.fixture(scope="module")
def herd():
    return Herd.load("ml2-maml")


@pytest.fixture(scope="module")
def adapted(herd):
    """The herd after adapting to each task of its set, by name."""
    return {name: herd.adapt(jax.random.key(1), name) for name in herd.task_set.task_names}


def test_they_are_found_by_name_and_small():
    assert {"ml2-maml", "ml2-pearl"} <= {*shipped_herds()}
    for name in shipped_herds():
        herd = Herd.load(name)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves((herd.members, herd.probe, herd.embedded))) < 3e6


def test_every_task_gets_a_member_of_its_body_that_adapts_to_it(adapted):
    members = {name: policy.member for name, policy in adapted.items()}
    assert members["cheetah-forward"] == members["cheetah-backward"] != members["walker-forward"] == members["walker-backward"]
    for name, policy in adapted.items():
        before, after = float(policy.before.returns.mean()), float(policy.after.returns.mean())
        assert after > 200, name
        assert after > before + 40, name
        assert policy.assignment.confidence > 0.5


def test_a_string_of_pearls_gives_every_task_a_member_of_its_body_that_runs_as_told():
    """Minutes of training: walkers that should run backward do no better than standing."""
    pearls = Herd.load("ml2-pearl")
    assert isinstance(pearls.learner, PEARL)
    keys = [jax.random.key(seed) for seed in range(3)]
    member = {name: pearls.assign(keys[0], name).member for name in pearls.task_set.task_names}
    assert member["cheetah-forward"] == member["cheetah-backward"] != member["walker-forward"] == member["walker-backward"]
    for name, least in (("cheetah-forward", 300), ("cheetah-backward", 300), ("walker-forward", 250)):
        adapted = [pearls.adapt(key, name) for key in keys]
        for policy in adapted:
            assert policy.after.returns.mean() > least, name
        before, after = (np.mean([getattr(policy, when).returns for policy in adapted]) for when in ("before", "after"))
        assert after > before + 50, name


def test_the_commands_take_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["evaluate", "ml2-maml", "--task", "walker-backward"])
    assert "assigned  to member" in capsys.readouterr().out
    cli.main(["view", "ml2-maml", "--task", "walker-backward"])
    (page,) = tmp_path.iterdir()
    assert page.name.startswith("view-walker-backward-seed-")
    assert page.suffix == ".html"
    assert "after adaptation" in capsys.readouterr().out


def test_a_directory_of_that_name_comes_first(tmp_path, monkeypatch, locomotion_herd):
    monkeypatch.chdir(tmp_path)
    locomotion_herd.save("ml2-maml")
    assert Herd.load("ml2-maml").learner.config == locomotion_herd.learner.config
    with pytest.raises(ValueError, match="no-such-herd holds no trained herd"):
        Herd.load("no-such-herd")


@pytest.mark.parametrize(("task", "direction"), [("cheetah-forward", 1.0), ("cheetah-backward", -1.0)])
def test_an_exported_policy_runs_gymnasiums_cheetah(adapted, task, direction):
    """NumPy and gymnasium alone; rewards are the speed in the task's direction less the cost of control."""
    weights, rng = adapted[task].export(), np.random.default_rng(0)
    env = gymnasium.make("HalfCheetah-v5")
    returns = []
    for episode in range(20):
        obs, _ = env.reset(seed=episode)
        total = 0.0
        for _ in range(100):
            mean, std = forward(weights, obs)
            action = np.clip((mean + std * rng.standard_normal(mean.shape)) / 10.0, -1.0, 1.0)
            obs, _, _, _, info = env.step(action)
            total += direction * info["x_velocity"] + info["reward_ctrl"]
        returns.append(total)
    env.close()
    assert np.mean(returns) > 0.75 * float(adapted[task].after.returns.mean())
