import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tamherd_jax.envs import Locomotion, Task, body_environment, collect_episodes, make_environment, ml2, ml3
from tamherd_jax.physics import get_physics
from tamherd_jax.physics.bodies import BODIES
from tamherd_jax.registry.bodies import get_body


def task(body, direction=1.0):
    return Task(body=jnp.int32(body), direction=jnp.float32(direction))


def gym_env(body):
    """Gymnasium's environment of a body, Euler on both sides."""
    entry = get_body(BODIES[body])
    # The walker's v4 model: both feet's friction as we mean it.
    own = {"xml_file": "walker2d.xml"} if entry.name == "walker" else {}
    env = gymnasium.make(entry.gymnasium, ctrl_cost_weight=entry.control_cost, **own).unwrapped
    env.model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("body", range(len(BODIES)))
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.filterwarnings("ignore:.*settotalmass.*:UserWarning")
def test_next_state_reward_and_termination_equal_gymnasium(body, direction):
    gym, entry = gym_env(body), get_body(BODIES[body])
    env = body_environment(entry.name)("mujoco")
    height = entry.rest_height  # at which gymnasium has the root, ours is at 0
    rng = np.random.default_rng(body)
    step = jax.jit(env.step)
    state = env.reset(jax.random.key(1), task(body, direction))
    ended = 0
    for i in range(60):
        before = state.pipeline_state
        gym.set_state(np.asarray(before.q, np.float64) + np.eye(env.coordinates)[1] * height, np.asarray(before.qd, np.float64))
        np.testing.assert_allclose(state.obs, gym._get_obs(), atol=1e-6)
        action = np.clip(rng.normal(size=env.action_size) * (0.5 + i % 3), -1, 1)
        observation, _, terminated, _, info = gym.step(action)
        cost = entry.control_cost * np.sum(action**2)
        reward = direction * info["x_velocity"] - cost + entry.alive_bonus
        state = step(state, jnp.asarray(action, jnp.float32))
        np.testing.assert_allclose(state.obs, observation, rtol=2e-5, atol=2e-4)
        np.testing.assert_allclose(state.reward, reward, rtol=1e-4, atol=2e-3)
        assert bool(state.done) == terminated
        if terminated:  # go on from a new episode, so that several falls are seen
            ended += 1
            state = env.reset(jax.random.key(i), task(body, direction))
    assert ended == 0 if body == 0 else ended >= 2


@pytest.mark.parametrize("body", range(len(BODIES)))
def test_float64_rewards_have_no_constant_of_float32(float64, body):
    entry = get_body(BODIES[body])
    env = body_environment(entry.name)("planar")
    state = env.reset(jax.random.key(0), task(body))
    action = np.random.default_rng(0).uniform(-0.9, 0.9, env.action_size)
    after = jax.jit(env.step)(state, jnp.asarray(action))
    moved = float(after.pipeline_state.q[0] - state.pipeline_state.q[0])
    speed = moved / (entry.frame_skip * entry.timestep)
    reward = speed + entry.alive_bonus - entry.control_cost * np.sum(action**2)
    np.testing.assert_allclose(after.reward, reward, rtol=1e-13)


@pytest.mark.parametrize("body", range(len(BODIES)))
def test_resets_have_gymnasiums_distribution(body):
    env, env_noise = body_environment(BODIES[body])("mujoco"), 0.1 if body == 0 else 5e-3
    state = jax.vmap(lambda k: env.reset(k, task(body)).pipeline_state)(jax.random.split(jax.random.key(0), 4000))
    q, qd = np.asarray(state.q), np.asarray(state.qd)
    assert np.abs(q).max() <= env_noise
    np.testing.assert_allclose(q.std(0), env_noise / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(qd.std(0), 0.1 if body == 0 else env_noise / np.sqrt(3), rtol=0.05)
    # position and velocity noise must not be the same draw
    assert np.abs(np.corrcoef(q[:, 3], qd[:, 3])[0, 1]) < 0.08


def test_consecutive_episodes_differ_and_keep_their_task(mujoco_env):
    states = [mujoco_env.reset(jax.random.key(i), task(1, -1.0)) for i in range(2)]
    assert np.abs(np.asarray(states[0].obs - states[1].obs)).max() > 0
    state = mujoco_env.step(states[0], jnp.zeros(6))
    assert float(state.info["task"].direction) == -1.0


def test_action_scale_divides_and_clips():
    literal = Locomotion("mujoco")
    scaled = Locomotion("mujoco", expected_action_scale=10.0)
    start = literal.reset(jax.random.key(0), task(0))
    action = jnp.linspace(-20.0, 20.0, 6)
    one, ten = literal.step(start, jnp.clip(action / 10, -1, 1)), scaled.step(start, action)
    np.testing.assert_array_equal(one.obs, ten.obs)
    np.testing.assert_array_equal(one.reward, ten.reward)


def test_a_step_of_promps_walker_is_two_of_gymnasiums():
    slow, fast = Locomotion("mujoco", walker_frame_skip=8), Locomotion("mujoco")
    action = jnp.array([0.3, -0.2, 0.1, -0.3, 0.2, 0.1])
    for body in (0, 1):
        start = slow.reset(jax.random.key(1), task(body))
        first = fast.step(start, action)
        second = fast.step(first, action) if body else first
        after = slow.step(start, action)
        np.testing.assert_allclose(after.pipeline_state.q, second.pipeline_state.q, atol=1e-5)
        np.testing.assert_allclose(after.reward, (first.reward + second.reward) / 2, atol=1e-3)
    with pytest.raises(ValueError, match="needs physics by its name"):
        Locomotion(get_physics("mujoco"), walker_frame_skip=8)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Locomotion(walker_frame_skip=0)
    assert get_physics("planar", frames=(5, 8)).table.frames.tolist() == [5, 8]


def test_a_finished_episode_stays_finished(mujoco_env):
    step = jax.jit(mujoco_env.step)
    state = mujoco_env.reset(jax.random.key(0), task(1))
    while not state.done:
        state = step(state, jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    after = step(state, jnp.ones(6))
    assert float(after.done) == 1.0
    assert float(after.reward) == 0.0
    np.testing.assert_array_equal(after.pipeline_state.q, state.pipeline_state.q)


def test_a_state_that_diverges_ends_its_episode_alone(mujoco_env):
    """A policy that emits NaN in one environment: that episode ends, earns nothing more, the other is untouched."""

    def act(bad, obs, key):
        return jnp.where(bad & (jnp.abs(obs[8]) > 0.25), jnp.nan, 1.0) * jnp.ones(6)

    def collect(bad):
        return collect_episodes(mujoco_env, lambda o, k: act(bad, o, k), task(0), jax.random.key(2), 2, 12)

    run = jax.jit(jax.vmap(collect))  # one program: another batch size may round otherwise
    broken, finite = (jax.tree.map(lambda x, i=i: np.asarray(x[i]), run(jnp.array([True, False]))) for i in range(2))
    undisturbed = jax.tree.map(lambda x: np.asarray(x[1]), run(jnp.array([False, False])))
    assert broken.nonfinite.sum() >= 1
    for leaf in jax.tree.leaves(broken):
        assert np.isfinite(leaf).all()
    environment = int(np.argmax(broken.nonfinite))
    end = int(broken.valid[environment].sum())
    assert 0 < end < 12
    assert (broken.valid[environment, end:] == 0).all()
    assert (broken.rewards[environment, end:] == 0).all()
    np.testing.assert_array_equal(finite.rewards, undisturbed.rewards)
    assert finite.nonfinite.sum() == 0


def test_returns_and_steps_equal_a_loop_over_steps(mujoco_env):
    """Episodes of a falling walker against a plain Python loop over the environment."""
    policy = jnp.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    keys = jax.random.split(jax.random.key(5), 3)
    episodes = jax.jit(lambda k: collect_episodes(mujoco_env, lambda o, _: policy * o[0], task(1), k, 3, 80))(jax.random.key(5))
    step = jax.jit(mujoco_env.step)
    for i in range(3):
        reset_key, _ = jax.random.split(keys[i])
        state, total, steps = mujoco_env.reset(reset_key, task(1)), 0.0, 0
        while not state.done and steps < 80:
            state = step(state, policy * state.obs[0])
            total, steps = total + float(state.reward), steps + 1
        assert steps < 80
        assert float(episodes.steps[i]) == steps
        np.testing.assert_allclose(episodes.returns[i], total, rtol=1e-4)
        assert float(episodes.terminated[i].sum()) == 1.0
        assert float(episodes.terminated[i, steps - 1]) == 1.0


def test_task_set_and_brax_registry():
    task_set = ml2()
    assert task_set.task_names == ("cheetah-forward", "cheetah-backward", "walker-forward", "walker-backward")
    assert (task_set.name, task_set.version, len(task_set)) == ("ML2", 1, 4)
    np.testing.assert_allclose(task_set.mode_weights(), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    with pytest.raises(ValueError, match="ML2 has no task 'ant'"):
        task_set.index("ant")
    from brax import envs

    for index, body in enumerate(BODIES):
        env = envs.get_environment(f"tamherd_{body}", physics="mujoco")
        gym = gymnasium.make(get_body(body).gymnasium).unwrapped
        assert (env.observation_size, env.action_size) == (gym.observation_space.shape[0], gym.action_space.shape[0])
        assert env.backend == "mujoco"
        state = env.reset(jax.random.key(0))  # as Brax calls it, without a task
        assert int(state.info["task"].body) == index
        assert env.step(state, jnp.zeros(env.action_size)).obs.shape == (env.observation_size,)


def test_ml3_pads_its_smaller_body():
    """What a body lacks is observed as 0, is not moved by its action and does not enter the reward; the rest is its own."""
    mixed, alone = make_environment(ml3(), "mujoco"), body_environment("hopper")("mujoco")
    assert (mixed.observation_size, mixed.action_size) == (17, 6)
    assert (alone.observation_size, alone.action_size) == (11, 3)
    there = np.array([0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13])  # z, pitch, three joints; their velocities with that of x
    state, own = mixed.reset(jax.random.key(0), task(2)), alone.reset(jax.random.key(1), task(2))
    own = own.replace(pipeline_state=jax.tree.map(lambda x: x[:6], state.pipeline_state), obs=state.obs[there])
    step, own_step, action = jax.jit(mixed.step), jax.jit(alone.step), jnp.array([0.4, -0.3, 0.2, 9.0, -9.0, 9.0])
    for _ in range(5):
        state, own = step(state, action), own_step(own, action[:3])
        np.testing.assert_allclose(state.obs[there], own.obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(np.delete(state.obs, there), 0.0)
        np.testing.assert_allclose(state.reward, own.reward, rtol=1e-5)


def test_a_task_of_a_body_that_an_environment_lacks_is_refused(mujoco_env):
    with pytest.raises(ValueError, match="the task's body is hopper; this environment has cheetah, walker"):
        mujoco_env.reset(jax.random.key(0), task(2))


def test_importing_says_nothing():
    code = "import tamherd_jax, tamherd_jax.envs, tamherd_jax.maml, tamherd_jax.experiments.runner, tamherd_jax.cli"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
