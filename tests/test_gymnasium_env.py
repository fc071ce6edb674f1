"""Gymnasium environments behind a callback: the numbers of the environments themselves, whatever order JAX steps them in."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamherd_jax.envs import TaskedEnv, collect_episodes, make_task_set
from tamherd_jax.envs.gymnasium_env import GymnasiumEnv
from tamherd_jax.maml import MAML, MAMLConfig
from tamherd_jax.parallel import map_learners


class Line(gymnasium.Env):
    """A point on a line, started at random plus an offset; an episode is over beyond 2."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-4.0, 2.0, (1,), np.float32)
    made = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1) + float((options or {}).get("offset", 0.0))
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action.astype(np.float32))
        moved = 0.1 * float(action[0]) + 0.01 * self.np_random.normal()
        self.x += moved
        return self._obs(), -abs(self.x), abs(self.x) > 2, False, {"moved": moved}

    def _obs(self):
        return np.array([self.x, 1.0])


def line(**options):
    return GymnasiumEnv(Line, info=("moved",), **options)


def seed_of(key):
    return int(jax.random.bits(key, (), jnp.uint32))


def by_hand(key, actions, offset=0.0):
    """Observations, rewards and what moved of an episode in the environment itself."""
    env = Line()
    rows = [(env.reset(seed=seed_of(key), options={"offset": offset})[0], 0.0, 0.0)]
    for action in actions:
        obs, reward, _, _, info = env.step(-1.0 + 3.0 * np.asarray(action))
        rows.append((obs, reward, info["moved"]))
    return [np.array(column, np.float32) for column in zip(*rows, strict=True)]


def roll_out(env, key, actions):
    """The same as `by_hand` in a scan."""

    def step(state, action):
        after = env.step(state, action)
        return after, (after.obs, after.reward, after.info["moved"])

    start = env.reset(key)
    _, rows = jax.lax.scan(step, start, actions)
    return [np.concatenate([np.asarray(a)[None], b]) for a, b in zip((start.obs, 0.0, 0.0), rows, strict=True)]


def test_a_batch_has_the_numbers_of_the_environment():
    env, keys = line(), jax.random.split(jax.random.key(0), 6)
    actions = jax.random.uniform(jax.random.key(1), (6, 5, 1), minval=-1, maxval=1)
    batch = jax.jit(jax.vmap(lambda key, a: env.step(env.step(env.reset(key), a[0]), a[1])))(keys, actions)
    for key, a, obs, moved in zip(keys, actions, batch.obs, batch.info["moved"], strict=True):
        expected = by_hand(key, a[:2])
        np.testing.assert_allclose(obs, expected[0][2], rtol=1e-6)
        np.testing.assert_allclose(moved, expected[2][2], rtol=1e-6)
    for got, expected in zip(roll_out(env, keys[0], actions[0]), by_hand(keys[0], actions[0]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_state_may_be_stepped_again_and_otherwise():
    env, key = line(), jax.random.key(3)
    step = jax.jit(env.step)
    states = [jax.jit(env.reset)(key)]
    up, down = jnp.array([0.9]), jnp.array([-0.9])
    for action in (up, down, up):
        states.append(step(states[-1], action))
    again = step(states[2], up)
    other = step(states[1], up)
    further = step(other, up)
    original = step(states[3], down)
    both = jax.vmap(step, in_axes=(None, 0))(states[0], jnp.stack([up, down]))
    np.testing.assert_array_equal(again.obs, states[3].obs)
    for state, actions in (
        (other, (up, up)),
        (further, (up, up, up)),
        (original, (up, down, up, down)),
    ):
        np.testing.assert_allclose(state.obs, by_hand(key, actions)[0][-1], rtol=1e-6)
    for obs, action in zip(both.obs, (up, down), strict=True):
        np.testing.assert_allclose(obs, by_hand(key, [action])[0][-1], rtol=1e-6)


def test_few_instances_serve_many_episodes():
    Line.made = 0
    env, keys = line(instances=2), jax.random.split(jax.random.key(0), 5)
    states = [env.reset(key) for key in keys]
    for action in (jnp.array([0.5]), jnp.array([-0.2])):
        states = [env.step(state, action) for state in states]
    assert Line.made == 2
    for key, state in zip(keys, states, strict=True):
        np.testing.assert_allclose(state.obs, by_hand(key, [[0.5], [-0.2]])[0][-1], rtol=1e-6)


def test_an_episode_that_is_over_stays_so():
    env = line(sys={"offset": jnp.float32(1.5)})
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    for _ in range(12):
        state = step(state, jnp.array([1.0]))
    assert float(state.done) == 1
    after = step(state, jnp.array([-1.0]))
    np.testing.assert_array_equal(after.obs, state.obs)
    assert (float(after.done), float(after.reward), float(after.info["truncation"])) == (1, 0, 0)


def test_time_limits_truncate():
    env = TaskedEnv(GymnasiumEnv(lambda: gymnasium.make("Pendulum-v1", max_episode_steps=5)))
    episodes = collect_episodes(env, lambda obs, key: jnp.zeros(1), 0.0, jax.random.key(0), 3, 8)
    np.testing.assert_array_equal(episodes.steps, [5, 5, 5])
    assert float(jnp.sum(episodes.terminated)) == 0
    assert float(episodes.rewards[:, :5].max()) < 0
    np.testing.assert_array_equal(episodes.rewards[:, 5:], 0)


def test_a_task_is_a_reward_or_an_option_of_the_reset():
    env = TaskedEnv(
        line(),
        reward=lambda task, before, action, after: task["direction"] * after.info["moved"],
        system=lambda task, _: {"offset": task["offset"]},
    )
    key, task = jax.random.key(5), {"direction": jnp.float32(-1), "offset": jnp.float32(0.7)}
    state = jax.jit(env.reset)(key, task)
    obs, _, moved = by_hand(key, [[0.4]], offset=0.7)
    np.testing.assert_allclose(state.obs, obs[0], rtol=1e-6)
    after = jax.jit(env.step)(state, jnp.array([0.4]))
    np.testing.assert_allclose((after.obs[0], after.reward), (obs[1][0], -moved[1]), rtol=1e-5)


def test_a_learner_trains_on_it_each_time_the_same():
    tasks = make_task_set("Line", {name: {"direction": jnp.float32(sign)} for name, sign in (("up", 1.0), ("down", -1.0))})
    env = TaskedEnv(line(), reward=lambda task, before, action, after: task["direction"] * after.info["moved"])
    learner = MAML(
        env, meta_batch_size=4, config=MAMLConfig(episodes_per_task=10, horizon=6, hidden_sizes=(8,), inner_step_size=2.0)
    )
    keys, weights = jax.random.split(jax.random.key(0), 2), jnp.ones(2)

    def epoch(key, state):
        return learner.train_epoch(key, state, tasks.tasks, weights)

    states, train = jax.vmap(learner.init)(keys), map_learners(epoch, (0, 0))
    (first, metrics), (second, _) = train(keys, states), train(keys, states)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert (metrics.steps <= 2 * 4 * 10 * 6).all()
    assert (metrics.steps > 4 * 10 * 6).all()
    assert (metrics.after > metrics.before).mean() > 0.5


@pytest.mark.parametrize("space", ["observation_space", "action_space"])
def test_what_is_no_box_is_refused(space):
    made = type("Other", (Line,), {space: gymnasium.spaces.Discrete(3)})
    with pytest.raises(ValueError, match="of a Gymnasium environment must be a Box of numbers, not Discrete"):
        GymnasiumEnv(made)


def test_names_that_states_have_are_refused():
    with pytest.raises(ValueError, match="info names 'truncation', which every state has"):
        GymnasiumEnv(Line, info=("truncation",))
