"""Recorded episodes: positions rebuilt from observations, and poses as MuJoCo has them."""

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from synthetic_run import synthetic_episodes

from tamherd_jax.envs import Episodes, Locomotion, Task, ml2
from tamherd_jax.experiments.recording import median_episode, positions, record
from tamherd_jax.physics.bodies import load_model
from tamherd_jax.reporting.animation import capsules, clip, link_poses, player_data
from tamherd_jax.reporting.animation_svg import animated_svg
from tamherd_jax.reporting.html import view_page

STEPS, SCALE = 30, 2.0
ENV = Locomotion("mujoco", SCALE, walker_frame_skip=8)


@pytest.fixture(scope="module")
def rolled_out():
    """Episodes of both bodies in wild motion, with the positions that the physics had: the walker falls."""

    @jax.jit
    def run(task, key):
        def step(state, k):
            action = 3.0 * jax.random.normal(k, (6,))
            after = ENV.step(state, action)
            valid = 1.0 - state.done
            record = Episodes(state.obs, action, after.reward, after.obs, after.done, valid, 0.0 * valid)
            return after, (record, after.pipeline_state.q)

        state = ENV.reset(key, task)
        _, (episode, q) = jax.lax.scan(step, state, jax.random.split(key, STEPS))
        return episode, jnp.concatenate([state.pipeline_state.q[None], q])

    keys = jax.random.split(jax.random.key(0), 2)
    tasks = Task(body=jnp.array([0, 1]), direction=jnp.array([1.0, -1.0]))
    return tasks, *jax.tree.map(np.asarray, jax.vmap(run)(tasks, keys))


@pytest.mark.parametrize("body", [0, 1])
@pytest.mark.parametrize("target", [None, 0.3])
def test_positions_are_those_of_the_physics(rolled_out, body, target):
    task, episode, q = jax.tree.map(lambda leaf: np.asarray(leaf)[body], rolled_out)
    assert (episode.valid.sum() < STEPS) == (body == 1)
    if target is not None:  # paid for keeping a velocity: the same motion, other rewards
        speed = np.diff(q[:, 0]) / (0.05, 0.016)[body]
        cost = np.array([0.05, 1e-3])[body] * np.sum(np.clip(episode.actions / SCALE, -1, 1) ** 2, -1)
        rewards = -np.abs(task.direction * speed - target) + body - cost
        task, episode = task.replace(target=target), episode.replace(rewards=rewards * episode.valid)
    expected = q - np.eye(9)[0] * q[0, 0]  # from x = 0
    np.testing.assert_allclose(positions(episode, task, ENV), expected, atol=3e-4 if target is None else 0.05)


def test_the_episode_of_median_return_is_kept():
    rewards = np.array([[3.0, 0], [1, 1], [9, 0], [0, 0]])
    zeros = np.zeros((4, 2))
    episodes = Episodes(zeros, zeros, rewards, zeros, zeros, zeros + 1, np.zeros(4))
    assert median_episode(episodes).rewards.sum() == 2.0


def test_a_record_holds_the_steps_of_the_environment_it_was_taken_in(rolled_out):
    """A walker's step may be twice gymnasium's: an animation of it runs at its own pace."""
    tasks, episodes, _ = rolled_out

    def adapt(key, name):
        body = int(name.startswith("walker"))
        both = jax.tree.map(lambda leaf: leaf[[body, body]], episodes)
        return SimpleNamespace(before=both, after=both, learner=None, member=body)

    herd = SimpleNamespace(learner=SimpleNamespace(env=ENV), task_set=ml2(), seed=7, adapt=adapt)
    arrays = record(herd, ["walker-backward", "cheetah-forward"])
    np.testing.assert_allclose(arrays["dt"], [0.016, 0.05], rtol=1e-6)
    assert arrays["body"].tolist() == arrays["member"].tolist() == [1, 0]
    expected = positions(jax.tree.map(lambda leaf: leaf[1], episodes), jax.tree.map(lambda leaf: leaf[1], tasks), ENV)
    np.testing.assert_array_equal(arrays["q"][0], [expected, expected])
    with pytest.raises(ValueError, match="no bodies"):
        record(SimpleNamespace(learner=SimpleNamespace(env=None)), [])


@pytest.mark.parametrize("body", ["cheetah", "walker"])
def test_capsules_on_links_lie_where_mujoco_has_them(body):
    model = load_model(body)
    data = mujoco.MjData(model)
    q = np.random.default_rng(0).uniform(-1, 1, 9)
    data.qpos[:] = q
    mujoco.mj_kinematics(model, data)
    ours, poses = capsules(body), link_poses(body, q[None])[0]
    bodies = [g for g in range(model.ngeom) if model.geom_type[g] == mujoco.mjtGeom.mjGEOM_CAPSULE]
    for geom, link, (x1, z1, x2, z2, radius) in zip(bodies, ours["link"], ours["shape"], strict=True):
        x, z, angle = poses[link]
        c, s = np.cos(angle), np.sin(angle)
        ends = sorted([(x + x1 * c - z1 * s, z + x1 * s + z1 * c), (x + x2 * c - z2 * s, z + x2 * s + z2 * c)])
        axis = data.geom_xmat[geom].reshape(3, 3)[:, 2] * model.geom_size[geom, 1]
        theirs = sorted((p[0], p[2]) for p in (data.geom_xpos[geom] - axis, data.geom_xpos[geom] + axis))
        np.testing.assert_allclose(ends, theirs, atol=2e-4)  # shapes are written with four decimals
        assert radius == model.geom_size[geom, 0]


def test_the_player_gets_what_was_recorded(tmp_path):
    synthetic_episodes(tmp_path / "episodes.npz")
    data = player_data(dict(np.load(tmp_path / "episodes.npz")))
    assert [task["name"] for task in data["tasks"]] == ["cheetah-forward", "walker-backward"]
    before, after = data["tasks"][1]["clips"]
    assert (before["fell"], len(before["frames"]), before["return"]) == (False, 51, 25.0)
    assert (after["fell"], len(after["frames"]), after["return"]) == (True, 21, 10.0)
    assert before["frames"][-1][0] == 3000  # millimetres
    assert [data["bodies"][body]["dt"] for body in ("cheetah", "walker")] == [0.05, 0.016]
    page = view_page(data, "<title> & more", "one & two")
    assert "&lt;title&gt; &amp; more" in page
    assert json.loads(re.search(r'id="player-data">(.*?)</script>', page, re.DOTALL)[1]) == data
    assert not re.search(r"https?:|(?:src|href)=\"(?!data:)", page)


def test_an_episode_that_ends_at_once_can_be_drawn():
    one = clip(0, np.zeros((6, 9)), np.zeros(5), np.zeros(5))
    assert (len(one["frames"]), one["rewards"], one["return"]) == (1, [], 0.0)


def test_an_animated_svg_moves_capsules_to_where_the_player_draws_them(tmp_path):
    """A fallen walker stays as it fell; both panels have the same clock, and the torso stays in the middle."""
    synthetic_episodes(tmp_path / "episodes.npz")
    data = player_data(dict(np.load(tmp_path / "episodes.npz")))
    with pytest.raises(ValueError, match="one task, not 2"):
        animated_svg(data, "both")
    root = ET.fromstring(animated_svg(data | {"tasks": data["tasks"][1:]}, "<walker> & after"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "<walker> & after"
    assert not re.search(r"script|href", ET.tostring(root, encoding="unicode"))
    before, after = root.findall(f"{space}svg")
    assert before.find(f"{space}text").text == "before adaptation: return 25.0, 5 times slower than real"
    assert {float(a.get("dur").rstrip("s")) for a in root.iter() if a.tag.split("}")[1].startswith("animate")} == {4.0}
    for panel, moving_frames in ((before, 51), (after, 21)):
        shift = panel.find(f"{space}g[@class='moving']/{space}animateTransform").get("values").split(";")
        assert len(shift) == 51
        assert len(set(shift)) == moving_frames
    body = data["bodies"]["walker"]
    poses = np.reshape(data["tasks"][1]["clips"][1]["frames"][20], (-1, 3)) / 1000
    for index, path in enumerate(p for p in after.findall(f"{space}path") if p.get("class").startswith("moving")):
        values = path.find(f"{space}animate").get("values").split(";")
        assert values[20] == values[50]
        drawn = np.array(re.findall(r"-?[0-9.]+", values[20]), float).reshape(2, 2)
        x, z, angle = poses[body["link"][index]]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        ends = np.reshape(body["shape"][index][:4], (2, 2)) @ turn.T + [x - poses[0, 0], z]
        np.testing.assert_allclose(drawn, [430, 160] + 92 * ends * [1, -1], atol=0.11)
