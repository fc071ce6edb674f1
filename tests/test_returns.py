"""Whole episodes: mean 100-step returns of fixed policies on every backend against gymnasium's own loop."""

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tamherd_jax.envs import Locomotion, Task, collect_episode

EPISODES, STEPS = 64, 100
POLICIES = {
    name: np.random.default_rng(seed).normal(size=(6, 17)).astype(np.float32) * scale
    for seed, (name, scale) in enumerate({"still": 0.0, "gentle": 0.1, "wild": 1.0}.items())
}


@pytest.fixture(scope="module")
def gymnasium_returns():
    """Body and policy -> returns of `EPISODES` episodes in gymnasium, forward task, Euler."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs = (
            gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05).unwrapped,
            gymnasium.make("Walker2d-v5", xml_file="walker2d.xml").unwrapped,
        )
    envs[1].model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    return {
        (b, name): [_gym_return(env, b, w, i) for i in range(EPISODES)]
        for b, env in enumerate(envs)
        for name, w in POLICIES.items()
    }


def _gym_return(env, body, weights, seed):
    obs, _ = env.reset(seed=seed)
    total = 0.0
    for _ in range(STEPS):
        action = np.tanh(weights @ obs)
        obs, _, terminated, _, info = env.step(action)
        total += info["x_velocity"] + body - (0.05, 1e-3)[body] * np.sum(action**2)
        if terminated:
            break
    return total


@pytest.fixture(scope="module", params=["mujoco", "planar"])
def returns(request):
    env = Locomotion(request.param)

    @jax.jit
    def run(body, weights, key):
        def episode(k):
            return collect_episode(env, lambda obs, _: jnp.tanh(weights @ obs), Task(body, jnp.float32(1.0)), k, STEPS)

        return jax.vmap(episode)(jax.random.split(key, EPISODES)).returns

    return run


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("body", [0, 1])
def test_mean_returns_are_gymnasiums_within_sampling_error(body, policy, returns, gymnasium_returns):
    ours = np.asarray(returns(jnp.int32(body), POLICIES[policy], jax.random.key(7)))
    theirs = np.array(gymnasium_returns[body, policy])
    error = np.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 4 * error + 1e-3
    assert 0.5 < (ours.std() + 0.05) / (theirs.std() + 0.05) < 2
