"""PEARL's gradient steps at the paper's sizes: `python -m benchmarks.pearl [--learners L] [--precision P] [--steps N]`.

Meta-batch 4 x 256 transitions, contexts of 256, networks of 300 units, observations and actions of ML2 (17 and 6). Transitions
are random: no environment is stepped. The authors' PyTorch code takes about 100 ms a step on two EPYC cores (quoted).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.pearl import PEARL, PEARLConfig, PEARLState, Transition, replay

TASKS = 4
QUOTED_PYTORCH_MS = 100.0


class Sizes:
    """What PEARL asks of an environment that is never stepped."""

    observation_size, action_size = 17, 6


def random_transitions(key: jax.Array, count: int) -> Transition:
    keys = jax.random.split(key, 4)
    obs, next_obs = (jax.random.normal(k, (count, Sizes.observation_size)) for k in keys[:2])
    action = jnp.tanh(jax.random.normal(keys[2], (count, Sizes.action_size)))
    return Transition(obs, action, jax.random.normal(keys[3], (count,)), next_obs, jnp.zeros(count))


def filled_state(learner: PEARL, key: jax.Array) -> PEARLState:
    """A fresh learner whose encoder rings are full and whose other rings hold as much."""
    init_key, key = jax.random.split(key)
    count = learner.config.encoder_capacity * TASKS
    data, task = random_transitions(key, count), jnp.arange(count) % TASKS
    state = learner.init(init_key)
    full, encoder = (replay.add(ring, data, task, jnp.ones(count)) for ring in (state.full, state.encoder))
    return dataclasses.replace(state, full=full, encoder=encoder)


def batched(fn: Callable[..., Any], learners: int) -> Any:
    """Compile for an axis of learners; one alone is not batched on the inside, as in training on a CPU."""
    if learners > 1:
        return jax.jit(jax.vmap(fn))
    return jax.jit(lambda *args: fn(*jax.tree.map(lambda leaf: leaf[0], args)))


def measure(fn: Any, *args: Any, repeats: int) -> tuple[float, list[float], float]:
    """Seconds to compile, seconds of each run after a warm-up, and this process's CPU seconds of a run."""
    start = time.perf_counter()
    program = fn.lower(*args).compile()
    compiled, times = time.perf_counter() - start, []
    jax.block_until_ready(program(*args))
    busy = time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - start)
    return compiled, times, (time.process_time() - busy) / repeats


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learners", type=int, default=1)
    parser.add_argument("--precision", choices=("highest", "tensorfloat32", "bfloat16"), default="highest")
    parser.add_argument("--steps", type=int, default=50, help="gradient steps of a run")
    parser.add_argument("--capacity", type=int, default=20_000, help="transitions of a task")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = PEARLConfig(gradient_steps=options.steps, replay_capacity=options.capacity, matmul_precision=options.precision)
    learner, count = PEARL(Sizes(), 20, TASKS, config), options.learners
    learner.check_memory(count)
    keys = jnp.stack([jax.random.key(i) for i in range(count)])
    states = jax.jit(jax.vmap(lambda k: filled_state(learner, k)))(keys)
    weights = jnp.ones((count, TASKS))

    def same_batch(key, state, weights):
        batch = learner._batch(key, state, weights)
        return jax.lax.scan(lambda s, _: learner._sac.step(s, batch), state.train, None, length=options.steps)

    parts = {"networks alone": same_batch, "with draws from replay": learner._improve}
    print(f"{jax.devices()[0].device_kind}, {count} learner(s), {options.steps} steps a run, {options.precision}")
    for name, fn in parts.items():
        compiled, times, busy = measure(batched(fn, count), keys, states, weights, repeats=options.repeats)
        ms = 1e3 * np.array(times) / options.steps
        spread = f"min {ms.min():6.2f}  median {np.median(ms):6.2f}  max {ms.max():6.2f} ms a step"
        rate = count * 1e3 / np.median(ms)
        cpu = f"CPU {1e3 * busy / options.steps:.0f} ms"
        print(f"{name:24s} compile {compiled:5.2f} s   {spread}   {cpu}   {rate:,.0f} steps/s in all")
    print(f"PyTorch, two CPU cores, quoted: {QUOTED_PYTORCH_MS:.0f} ms; load average here {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
