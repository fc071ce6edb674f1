"""Long runs of the planar physics: `python -m benchmarks.endurance [--steps N] [--calls N] [--out FILE]`.

Random controls on cheetahs and walkers, bodies put back on their feet every hundred steps: counts what is not finite. Then
calls of one vector from a jitted loop: the memory that the process holds before and after.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.bodies import BODIES, NQ, NU, NV
from benchmarks.machine import commit, device_name
from benchmarks.measure import resident_memory
from tamherd_jax.physics import init_state
from tamherd_jax.physics.planar import PlanarPhysics

ENVIRONMENTS = 4096
EPISODE = 100


def random_episodes(form: str, environments: int, length: int):
    """Compile an episode of each environment from a fresh state; it returns how many of its states are not finite."""
    physics, body = PlanarPhysics(form), jnp.arange(environments) % len(BODIES)

    def run(key: jax.Array) -> jax.Array:
        place, motion, noise = jax.random.split(key, 3)
        q = 0.1 * jax.random.uniform(place, (environments, NQ), minval=-1.0)
        start = jax.vmap(init_state)(q, 0.1 * jax.random.normal(motion, (environments, NV)))

        def advance(state, key):
            control = jax.random.uniform(key, (environments, NU), minval=-1.0)
            state = jax.vmap(physics.step)(body, state, control)
            return state, jnp.sum(~jnp.isfinite(state.q).all(axis=1))

        return jnp.sum(jax.lax.scan(advance, start, jax.random.split(noise, length))[1])

    return jax.jit(run)


def count_non_finite(form: str, steps: int) -> dict[str, float]:
    """Take at least `steps` environment steps; report those whose state is not finite."""
    run = random_episodes(form, ENVIRONMENTS, EPISODE)
    rounds, bad, begun = -(-steps // (ENVIRONMENTS * EPISODE)), 0, time.perf_counter()
    for number in range(rounds):
        bad += int(run(jax.random.key(number)))
    taken = rounds * ENVIRONMENTS * EPISODE
    return {"environment steps": taken, "not finite": bad, "seconds": time.perf_counter() - begun}


def measure_leak(form: str, calls: int) -> dict[str, float]:
    """Call the step of two vectors again and again; report the resident memory (bytes) after a tenth and at the end."""
    run = random_episodes(form, 32, 1000)
    memory = []
    for number in range(calls // 1000):
        run(jax.random.key(number)).block_until_ready()
        memory.append(resident_memory()[0] or 0)
    early = memory[len(memory) // 10]
    return {"calls": calls, "resident after a tenth": early, "resident at the end": memory[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10**8, help="random environment steps (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10**6, help="calls of two vectors (default: %(default)s)")
    parser.add_argument("--form", default="auto", help="form of the planar physics (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args()
    report = {"device": device_name(), "commit": commit(), "form": arguments.form}
    report |= {"random steps": count_non_finite(arguments.form, arguments.steps)}
    report |= {"memory": measure_leak(arguments.form, arguments.calls)}
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
