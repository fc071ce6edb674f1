"""One MAML epoch, split into sampling and update: `python -m benchmarks.maml_epoch [--physics NAME] [--learners L]`.

20 tasks x 10 episodes x 100 steps before and after adaptation, 40,000 environment steps of ML2. garage's MAML-TRPO takes 17.3 s
for the same work on two EPYC cores (quoted: 12.9 s sampling, 4.0 s update).
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.envs import Locomotion, ml2, systematic_resample, take_tasks
from tamherd_jax.maml import MAML
from tamherd_jax.parallel import map_learners

QUOTED_GARAGE_SECONDS = 17.3


def timed(fn, *args, repeats: int) -> tuple[float, list[float]]:
    """Seconds of the first call (compilation included) and of each further one."""
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    first, times = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        times.append(time.perf_counter() - start)
    return first, times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--physics", default="auto")
    parser.add_argument("--learners", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    tasks, env = ml2().tasks, Locomotion(options.physics, 10.0)
    learner = MAML(env, 20)
    keys = jnp.stack([jax.random.key(i) for i in range(options.learners)])
    states = jax.vmap(learner.init)(keys)
    weights = np.ones((options.learners, 4), np.float32)

    def collect(key, params):
        drawn = take_tasks(tasks, systematic_resample(key, jnp.ones(4), 20))
        return jax.vmap(lambda k, task: learner._collect(k, params, task, 10))(jax.random.split(key, 20), drawn)

    def batches(state, episodes):
        return jax.vmap(lambda e: learner._batch(state.value_params, e))(episodes)

    def update(params, support, query):
        return learner._outer_step(params, support, query)[0]

    episodes = map_learners(collect, (0, 0))(keys, states.params)
    data = map_learners(batches, (0, 0))(states, episodes)
    parts = {
        "sampling (20,000 steps, once of two)": (map_learners(collect, (0, 0)), (keys, states.params)),
        "baseline and advantages (once of two)": (map_learners(batches, (0, 0)), (states, episodes)),
        "trust-region update": (map_learners(update, (0, 0, 0)), (states.params, data, data)),
        "whole epoch (40,000 steps)": (
            map_learners(lambda k, s, w: learner.train_epoch(k, s, tasks, w), (0, 0, 0)),
            (keys, states, weights),
        ),
    }
    print(f"{jax.devices()[0].device_kind}, physics {env.backend}, {options.learners} learner(s), {options.repeats} repeats")
    for name, (fn, args) in parts.items():
        first, times = timed(fn, *args, repeats=options.repeats)
        spread = f"min {min(times):6.3f}  median {np.median(times):6.3f}  max {max(times):6.3f} s"
        print(f"{name:40s} first call {first:6.2f} s   {spread}")
    median = float(np.median(times)) / options.learners
    ratio = QUOTED_GARAGE_SECONDS / median
    print(f"{40_000 / median:,.0f} budgeted steps/s, {ratio:.1f} x garage ({QUOTED_GARAGE_SECONDS} s, quoted)")


if __name__ == "__main__":
    main()
