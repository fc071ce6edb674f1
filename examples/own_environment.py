"""An environment of one's own: pucks that are rewarded for sliding in one of four directions.

There are two modes: plain pucks, and pucks that slide on rough ground and move against the push.

A learner asks for `reset`, `step` and two sizes, nothing else. The task is a tree of arrays; the observation does not show it,
so that a policy has to find out by acting.

python examples/own_environment.py [--epochs 20]
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tamherd_jax.envs import make_task_set
from tamherd_jax.maml import MAML, MAMLConfig, TRPOConfig


@struct.dataclass
class State:
    velocity: jax.Array  # [2]
    obs: jax.Array  # [O]
    reward: jax.Array  # []
    done: jax.Array  # [], 1 once the episode has terminated; here only the horizon ends it
    metrics: dict[str, Any]
    info: dict[str, Any]


class Puck:
    observation_size, action_size, backend = 2, 2, "own"

    def reset(self, rng, task):
        velocity = 0.1 * jax.random.normal(rng, (2,))
        zero = jnp.zeros(())
        return State(velocity, velocity, zero, zero, {}, {"task": task})

    def step(self, state, action):
        task = state.info["task"]
        push = jnp.clip(action, -1.0, 1.0) * jnp.where(task["mirrored"] > 0, -1.0, 1.0)
        velocity = jnp.where(task["mirrored"] > 0, 0.3, 0.8) * state.velocity + 0.2 * push
        return state.replace(velocity=velocity, obs=velocity, reward=velocity @ task["direction"])


def puck_tasks():
    """Return eight tasks, four directions for each of the two modes."""
    angles = {"east": 0.0, "north": 0.5, "west": 1.0, "south": 1.5}
    tasks, modes = {}, {}
    for mode, mirrored in (("plain", 0.0), ("mirrored", 1.0)):
        for name, angle in angles.items():
            direction = jnp.array([jnp.cos(jnp.pi * angle), jnp.sin(jnp.pi * angle)])
            tasks[f"{mode}-{name}"] = {"direction": direction, "mirrored": jnp.float32(mirrored)}
            modes[f"{mode}-{name}"] = mode
    return make_task_set("Puck", tasks, modes)


def main(epochs):
    tasks = puck_tasks()
    config = MAMLConfig(episodes_per_task=10, horizon=20, hidden_sizes=(32,), inner_step_size=0.5, trpo=TRPOConfig(max_kl=0.05))
    learner = MAML(Puck(), meta_batch_size=16, config=config)
    state, train_epoch = learner.init(jax.random.key(0)), jax.jit(learner.train_epoch)
    for epoch in range(epochs):
        key = jax.random.fold_in(jax.random.key(1), epoch)
        state, metrics = train_epoch(key, state, tasks.tasks, jnp.ones(len(tasks)))
        before, after = (float(jnp.mean(returns)) for returns in (metrics.before, metrics.after))
        print(f"epoch {epoch + 1}: return {before:.2f} before and {after:.2f} after adaptation")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    main(parser.parse_args().epochs)
