"""Load a trained herd, assign a task to a member, adapt that member, and act with the result step by step.

python examples/load_herd.py runs/quick-1/herd/seed-0 [--task walker-backward]
"""

import argparse

import jax

from tamherd_jax import Herd


def main(directory, task_name):
    herd = Herd.load(directory)
    policy = herd.adapt(jax.random.key(0), task_name)
    print(f"{task_name}: member {policy.member} of {herd.size}, confidence {policy.assignment.confidence:.2f}")
    print(f"return {policy.before.returns.mean():.1f} before and {policy.after.returns.mean():.1f} after adaptation")

    env, index = herd.learner.env, herd.task_set.index(task_name)
    task = jax.tree.map(lambda leaf: leaf[index], herd.task_set.tasks)
    step = jax.jit(env.step)
    state, carry, total = jax.jit(env.reset)(jax.random.key(1), task), policy.initial_carry(), 0.0
    for key in jax.random.split(jax.random.key(2), herd.learner.horizon):
        action, carry = policy.act(carry, state.obs, key)
        state = step(state, action)
        total += float(state.reward)
    print(f"one more episode, played step by step: {total:.1f}")
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="a herd's directory, as a run leaves it")
    parser.add_argument("--task", default="walker-backward")
    options = parser.parse_args()
    main(options.directory, options.task)
