"""Rewards for telling tasks apart, against numpy and on differences that must be found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamherd_jax.envs.episodes import Episodes
from tamherd_jax.herd.information import RIDGE, information_reward, linear_discriminant

pytestmark = pytest.mark.usefixtures("strict_ranks")
M, R, T, OBS = 6, 4, 5, 3
TASK = np.array([0, 0, 1, 1, 3, 3])  # of four, of which one is not drawn


def make_episodes(seed, shift=0.0):
    """Episodes whose first observation, or reward where `shift` is None, tells task 3 from the others."""
    rng = np.random.default_rng(seed)
    obs, following = rng.normal(size=(2, M, R, T, OBS)).astype(np.float32)
    rewards = rng.normal(size=(M, R, T)).astype(np.float32)
    obs[4:, ..., 0] += shift or 0.0
    rewards[4:] += 20.0 if shift is None else 0.0
    valid = (np.arange(T) < rng.integers(1, T + 1, (M, R, 1))).astype(np.float32)
    fields = (obs, np.zeros((M, R, T, 1), np.float32), rewards * valid, following, 0 * valid, valid, np.zeros((M, R)))
    return Episodes(*map(jnp.asarray, fields))


def posterior_by_hand(x, label, weights, classes):
    """One sample at a time in float64: densities of Gaussians with the pooled covariance, by Bayes' rule."""
    x, weights = np.asarray(x, np.float64), np.asarray(weights, np.float64)
    mean = np.average(x, axis=0, weights=weights)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    z = (x - mean) / np.where(std > 0, std, 1)
    drawn = [n for n in range(classes) if weights[label == n].sum() > 0]
    means = {n: np.average(z[label == n], axis=0, weights=weights[label == n]) for n in drawn}
    pooled = sum(w * np.outer(v - means[n], v - means[n]) for v, n, w in zip(z, label, weights, strict=True) if w > 0)
    inverse = np.linalg.inv(pooled / weights.sum() + RIDGE * np.eye(x.shape[1]))
    density = np.zeros((len(x), classes))
    for n in drawn:
        density[:, n] = [np.exp(-(v - means[n]) @ inverse @ (v - means[n]) / 2) for v in z]
    return density / density.sum(1, keepdims=True)


def test_posterior_is_that_of_bayes_rule():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)) + np.array([0.3, -0.2, 1.0, 0.0])
    x[:, 3] = 2.0  # never changes
    label, weights = rng.integers(0, 3, 60), rng.integers(0, 2, 60).astype(float)
    x[label == 2, 0] += 1.5
    found = jax.jit(linear_discriminant, static_argnums=3)(jnp.asarray(x, jnp.float32), label, jnp.asarray(weights), 4)
    np.testing.assert_allclose(np.exp(found), posterior_by_hand(x, label, weights, 4), atol=2e-5)
    assert (found[:, 3] == -np.inf).all()


def test_reward_is_by_hand():
    episodes, weight = make_episodes(1, shift=1.0), 0.7
    found = jax.jit(lambda e: information_reward(e, jnp.asarray(TASK), 4, weight))(episodes)
    x = np.concatenate([episodes.obs, episodes.next_obs, episodes.rewards[..., None]], -1).reshape(-1, 2 * OBS + 1)
    valid, label = np.asarray(episodes.valid), np.repeat(TASK, R * T)
    x[valid.ravel() == 0] = 0
    own = posterior_by_hand(x, label, valid.ravel(), 4)[np.arange(len(x)), label].reshape(M, R, T)
    expected = episodes.rewards + weight * np.clip(np.log(own) + np.log(3), -np.log(3), np.log(3))
    np.testing.assert_allclose(found, expected * valid, atol=1e-4)


@pytest.mark.parametrize("shift", [20.0, None])
def test_an_obvious_difference_is_found_in_observations_or_rewards(shift):
    """Task 3 is known for sure, worth log 3; between the two that look alike half of that certainty is left: log 3/2."""
    episodes = make_episodes(2, shift)
    gain = np.asarray(information_reward(episodes, jnp.asarray(TASK), 4) - episodes.rewards)
    known, alike = (gain[rows][np.asarray(episodes.valid)[rows] > 0] for rows in (slice(4, None), slice(4)))
    np.testing.assert_allclose(known, np.log(3), atol=1e-3)
    assert abs(alike.mean() - np.log(1.5)) < 0.2


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_unit_of_a_feature_does_not_matter(scale):
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 2, 30)
    x[label == 1, 0] += 2.0
    plain, scaled = (
        linear_discriminant(jnp.asarray(a), jnp.asarray(label), jnp.ones(30), 2) for a in (x, x * np.float32(scale))
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-4)


def test_nothing_to_find_pays_nothing():
    """One task is all there is, so there is no information about which."""
    episodes = make_episodes(3)
    found = information_reward(episodes, jnp.zeros(M, jnp.int32), 4)
    np.testing.assert_allclose(found, episodes.rewards, atol=1e-6)
