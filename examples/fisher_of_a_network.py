"""Per-sample scores and Fisher matrices of a network of one's own, and distances between data sets without forming a matrix.

The scores `g_t = grad log p(y_t | x_t)` of a classifier give the Fisher matrix `F = sum_t w_t g_t g_t^T`, with as many entries
as the square of the number of parameters. Inner products need none: `<F_i, F_j> = sum_ts w_it w_js (g_it . g_js)^2`.

python examples/fisher_of_a_network.py [--samples 64]
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.fisher import diagonal_fisher, fisher_gram, score_gradients

CLASSES, FEATURES = 5, 8
NET = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(CLASSES)])


def log_prob(params, x, y):
    """Return `log p(y | x)` of one sample."""
    return jax.nn.log_softmax(NET.apply(params, x))[y]


def sample_data_sets(key, samples):
    """Return inputs `[4, samples, FEATURES]`: data sets 0 and 1 come from one distribution, 2 and 3 from another."""
    shifts = jnp.array([1.0, 1.0, -1.0, -1.0])
    return jax.random.normal(key, (4, samples, FEATURES)) + shifts[:, None, None]


def main(samples):
    params = NET.init(jax.random.key(0), jnp.ones(FEATURES))
    x = sample_data_sets(jax.random.key(1), samples)
    y = jax.random.categorical(jax.random.key(2), NET.apply(params, x))  # from the model, as Fisher's definition has it
    weights = jnp.full((4, samples), 1.0 / samples)

    scores = jax.vmap(lambda x, y: score_gradients(log_prob, params, x, y))(x, y)  # leaves [4, samples, ...]
    gram = np.asarray(fisher_gram(scores, weights))
    norms = np.sqrt(np.diag(gram))
    print("cosine between the data sets' Fisher matrices:")
    print(np.round(gram / norms[:, None] / norms, 2))

    diagonal = diagonal_fisher(log_prob, params, weights[0], x[0], y[0])
    important = {jax.tree_util.keystr(path): float(leaf.max()) for path, leaf in jax.tree_util.tree_leaves_with_path(diagonal)}
    print("largest diagonal entry per array:", {name: round(value, 4) for name, value in important.items()})
    return gram


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64)
    main(parser.parse_args().samples)
