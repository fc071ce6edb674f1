"""Put a trained herd of a run into the package: `python tools/ship_herd.py runs/tuned-maml-1 ml2-maml`.

The seed is the one whose herd has the highest mean return after adaptation over the last five epochs and all tasks. Its
training tasks are embedded anew from less experience, which makes the file small; every task must still get the same member.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from tamherd_jax.codec import read_arrays, read_json
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.herd.files import SHIPPED

LAST = 5  # epochs
REPEATS = 20  # assignments of each task that must agree
EPISODES = 1  # of the probe in each training task


def best_seed(run: Path) -> int:
    """Return the seed of a run whose herd does best in the last epochs."""
    seeds = read_json(run / "config.json")
    after = read_arrays(run / "curves.npz")["herd/after"][:, -LAST:].mean(axis=(1, 2))
    return int(seeds["first_seed"]) + int(np.nanargmax(after))


def check_assignments(herd: Herd, compact: Herd) -> None:
    """Compare the members that both herds choose for every task.

    Raises:
      ValueError: The compact herd chooses another one.
    """
    for name in herd.task_set.task_names:
        (wanted,) = {herd.assign(jax.random.key(number), name).member for number in range(3)}
        found = [compact.assign(jax.random.key(number), name).member for number in range(REPEATS)]
        print(f"{name}: member {wanted}, the compact herd's choices {sorted(set(found))} in {REPEATS} repeats")
        if set(found) != {wanted}:
            raise ValueError(f"the compact herd assigns {name} otherwise")


def main() -> None:
    """Write `tamherd_jax/trained/NAME`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run's directory")
    parser.add_argument("name", help="of the herd in the package, such as ml2-maml")
    parser.add_argument("--seed", type=int, help="this seed in place of the best one")
    parser.add_argument("--tasks-each", type=int, default=2, help="embedded training tasks for each task of the set")
    options = parser.parse_args()
    seed = best_seed(options.run) if options.seed is None else options.seed
    herd = Herd.load(options.run / "herd" / f"seed-{seed}")
    compact = herd.compact(jax.random.key(seed), options.tasks_each * len(herd.task_set), EPISODES)
    check_assignments(herd, compact)
    directory = SHIPPED / options.name
    compact.save(directory)
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"seed {seed}: {directory}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
