"""The best possible return of an episode: cross-entropy search over open-loop controls, `python -m benchmarks.open_loop`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.learning import OneTask
from tamherd_jax.envs import Locomotion, ml2, take_tasks

ELITES = 32
BLEND = 0.7  # of the elites' mean and deviation with those before
SMALLEST_DEVIATION = 0.03


@dataclasses.dataclass(frozen=True)
class OpenLoop:
    """Search the controls of one episode from one start; the best return found bounds the best possible from below."""

    task: OneTask = "walker-forward"
    """Whose return is sought."""
    steps: int = 100
    """T, length of the episode."""
    hold: int = 5
    """Steps for which controls stay as they are."""
    candidates: int = 512
    """Sequences an iteration."""
    iterations: int = 140
    """Of the search; the best so far is printed every 20."""
    walker_frame_skip: int = 4
    """Physics steps in an environment step of the walker."""
    physics: Literal["planar", "mujoco", "mjx"] = "planar"
    """Backend."""
    seed: int = 0
    """Of the search; the start is the same for all."""


def episode_returns(options: OpenLoop) -> Callable[[np.ndarray], jax.Array]:
    """The return `[B]` of each of B sequences of controls `[B, ceil(T / hold), 6]`."""
    env = Locomotion(options.physics, walker_frame_skip=options.walker_frame_skip)
    task = take_tasks(ml2().tasks, np.asarray(ml2().index(options.task)))

    def one(controls: jax.Array) -> jax.Array:
        def step(state, control):
            state = env.step(state, control)
            return state, state.reward

        start = env.reset(jax.random.key(0), task)
        return jnp.sum(jax.lax.scan(step, start, jnp.repeat(controls, options.hold, axis=0)[: options.steps])[1])

    return jax.jit(jax.vmap(one))


def search(options: OpenLoop) -> Iterator[float]:
    """The best return so far after each iteration: elites are kept, the rest sampled around them."""
    pay, rng = episode_returns(options), np.random.default_rng(options.seed)
    shape = (math.ceil(options.steps / options.hold), 6)
    mean, deviation, elites = np.zeros(shape), np.full(shape, 0.5), np.zeros((0, *shape))
    while True:
        drawn = np.clip(mean + deviation * rng.standard_normal((options.candidates, *shape)), -1.0, 1.0)
        drawn[: len(elites)] = elites
        returns = np.asarray(pay(drawn.astype(np.float32)))
        best = np.argsort(-returns)[:ELITES]
        elites = drawn[best]
        mean = BLEND * elites.mean(0) + (1 - BLEND) * mean
        deviation = BLEND * np.maximum(elites.std(0), SMALLEST_DEVIATION) + (1 - BLEND) * deviation
        yield float(returns[best[0]])


def main() -> None:
    """Print the best return as the search goes on."""
    options = tyro.cli(OpenLoop)
    for number, best in zip(range(1, options.iterations + 1), search(options), strict=False):
        if number % 20 == 0:
            print(f"{options.task} {number} {best:.1f}", flush=True)


if __name__ == "__main__":
    main()
