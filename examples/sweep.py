"""Sweep two hyperparameters of MAML over seeds in one compiled program, and rank the settings.

`float` fields of `MAMLConfig` are leaves of a pytree: a setting is a row of arrays, and `map_learners` trains rows on all
devices with one program. Every setting sees the same seeds, so that differences are paired.

python examples/sweep.py [--epochs 20] [--seeds 4]
"""

import argparse
import dataclasses
import itertools

import jax
import jax.numpy as jnp
from own_environment import Puck, puck_tasks

from tamherd_jax.maml import MAML, MAMLConfig
from tamherd_jax.parallel import map_learners

STEP_SIZES, KL_BOUNDS = (0.1, 0.5), (0.01, 0.05)
BASE = MAMLConfig(episodes_per_task=10, horizon=20, hidden_sizes=(32,))


def train(key, step_size, max_kl, epochs, tasks):
    """Return the mean return after adaptation of the last five epochs, `[]`, of one setting and seed."""
    config = dataclasses.replace(BASE, inner_step_size=step_size, trpo=dataclasses.replace(BASE.trpo, max_kl=max_kl))
    learner = MAML(Puck(), meta_batch_size=16, config=config)

    def epoch(state, key):
        state, metrics = learner.train_epoch(key, state, tasks.tasks, jnp.ones(len(tasks)))
        return state, jnp.mean(metrics.after)

    _, returns = jax.lax.scan(epoch, learner.init(key), jax.random.split(key, epochs))
    return jnp.mean(returns[-5:])


def main(epochs, seeds):
    tasks = puck_tasks()
    settings = list(itertools.product(STEP_SIZES, KL_BOUNDS))
    rows = [(jax.random.key(seed), *setting) for setting in settings for seed in range(seeds)]
    keys, step_sizes, kl_bounds = (jnp.stack(column) for column in zip(*rows, strict=True))
    sweep = map_learners(lambda *row: train(*row, epochs, tasks), (0, 0, 0), devices=jax.local_devices())
    returns = jnp.asarray(sweep(keys, step_sizes, kl_bounds)).reshape(len(settings), seeds)
    ranked = sorted(zip(settings, returns, strict=True), key=lambda item: -float(item[1].mean()))
    for (step_size, max_kl), values in ranked:
        print(f"step size {step_size}, KL {max_kl}: {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})")
    return ranked


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    main(options.epochs, options.seeds)
