"""Tasks as Gymnasium environments: names, Gymnasium's own checker, and the same numbers as the environment itself."""

import warnings

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random

from tamherd_jax.envs import TASK_SETS, get_task_set, make_environment
from tamherd_jax.envs.gymnasium_tasks import HORIZON, TaskVectorEnvironment, environment_id

WALKER = "tamherd_jax/ML2-walker-backward-v1"


@pytest.fixture(scope="module")
def walker():
    return gymnasium.make(WALKER, physics="planar")


def test_every_task_of_every_task_set_has_a_name():
    for name in TASK_SETS:
        task_set = get_task_set(name)
        for task in task_set.task_names:
            assert gymnasium.spec(environment_id(task_set, task)).kwargs == {"tasks": name, "task": task}
    assert WALKER in gymnasium.registry
    assert gymnasium.make(f"tamherd_jax.envs.gymnasium_tasks:{WALKER}").spec.max_episode_steps == HORIZON


def test_gymnasium_finds_nothing_wrong(walker):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*(infinity|normalized|not set).*")
        check_env(walker.unwrapped, skip_render_check=True)


def test_a_walker_walks_as_in_the_environment_itself(walker):
    task_set = get_task_set("ml2")
    env = make_environment(task_set, "planar")
    task = jax.tree.map(lambda leaf: leaf[task_set.index("walker-backward")], task_set.tasks)
    obs, _ = walker.reset(seed=3)
    again, _ = walker.reset(seed=3)
    np.testing.assert_array_equal(obs, again)
    key = jax.random.key(int(np_random(3)[0].integers(2**32)))
    state, step = jax.jit(env.reset)(key, task), jax.jit(env.step)
    np.testing.assert_array_equal(obs, np.asarray(state.obs))
    actions, total = np.random.default_rng(0), 0
    for _ in range(HORIZON):
        action = actions.uniform(-1, 1, walker.action_space.shape).astype(np.float32)
        state = step(state, action)
        obs, reward, terminated, truncated, _ = walker.step(action)
        np.testing.assert_array_equal(obs, np.asarray(state.obs))
        assert (reward, terminated) == (float(state.reward), bool(state.done))
        total += 1
        if terminated:
            break
    assert terminated
    assert not truncated
    assert total < HORIZON, "a walker that flails falls"


def test_time_limits_truncate():
    env = gymnasium.make("tamherd_jax/ML2-cheetah-forward-v1", physics="planar", max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(6, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_a_batch_resets_where_an_episode_ended():
    envs = gymnasium.make_vec(WALKER, num_envs=5, physics="planar", vectorization_mode="vector_entry_point")
    assert isinstance(envs.unwrapped, TaskVectorEnvironment)
    first, _ = envs.reset(seed=1)
    assert first.shape == envs.observation_space.shape == (5, envs.unwrapped.single_observation_space.shape[0])
    assert len(np.unique(first, axis=0)) == 5
    actions, over, falls = np.random.default_rng(0), np.zeros(5, bool), 0
    for _ in range(60):
        obs, reward, terminated, truncated, _ = envs.step(actions.uniform(-1, 1, (5, 6)).astype(np.float32))
        assert (reward[over] == 0).all(), "a reset has no reward"
        assert np.isfinite(obs).all()
        assert not (terminated & over).any()
        assert not truncated.any()
        over, falls = terminated, falls + int(terminated.sum())
    assert falls >= 5
    np.testing.assert_array_equal(envs.reset(seed=1)[0], first)


def test_a_batch_is_truncated_at_its_horizon():
    envs = gymnasium.make_vec(
        "tamherd_jax/ML2-cheetah-forward-v1", num_envs=2, physics="planar", vectorization_mode="vector_entry_point"
    )
    envs.unwrapped.horizon = 3
    envs.reset(seed=0)
    ends = [envs.step(np.zeros((2, 6), np.float32))[3].tolist() for _ in range(5)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2]
