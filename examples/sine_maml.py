"""MAML on sine waves (Finn et al. 2017, section 5.1) with the kernels alone: no environment, no class of this package.

python examples/sine_maml.py [--iterations 4000]
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tamherd_jax.maml import adapt, meta_gradient

NET = nn.Sequential([nn.Dense(40), nn.relu, nn.Dense(40), nn.relu, nn.Dense(1)])


def mse(params, x, y):
    """Return the loss of one task on points x, y `[points, 1]`."""
    return jnp.mean((NET.apply(params, x) - y) ** 2)


def sample_tasks(key, tasks, points=10):
    """Return support and query points, each a pair x, y `[tasks, points, 1]`, of waves of random amplitude and phase."""
    keys = jax.random.split(key, 3)
    amplitude = jax.random.uniform(keys[0], (tasks, 1, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(keys[1], (tasks, 1, 1), maxval=jnp.pi)
    x = jax.random.uniform(keys[2], (tasks, 2 * points, 1), minval=-5.0, maxval=5.0)
    y = amplitude * jnp.sin(x - phase)
    return (x[:, :points], y[:, :points]), (x[:, points:], y[:, points:])


def train(key, iterations, optimizer):
    """Return meta-parameters after so many steps on 25 new tasks each; the whole training is one compiled scan."""

    def step(carry, key):
        params, state = carry
        _, gradient = meta_gradient(mse, params, *sample_tasks(key, 25), step_size=0.01)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = NET.init(key, jnp.ones(1))
    keys = jax.random.split(key, iterations)
    return jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)), keys)[0][0]


def main(iterations):
    params = train(jax.random.key(0), iterations, optax.adam(1e-3))
    support, query = sample_tasks(jax.random.key(1), 1_000)
    adapted = jax.vmap(lambda x, y: adapt(mse, params, x, y, step_size=0.01))(*support)
    before = jnp.mean(jax.vmap(mse, (None, 0, 0))(params, *query))
    after = jnp.mean(jax.vmap(mse)(adapted, *query))
    print(f"mean squared error on 1,000 new waves: {before:.3f} before and {after:.3f} after one gradient step")
    return float(before), float(after)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=4_000)
    main(parser.parse_args().iterations)
