"""Returns of PEARL after exploring with and without noise: `python -m benchmarks.pearl_exploration HERD ...`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from benchmarks.csv_files import markdown_line, read_rows, write_rows
from tamherd_jax.envs.episodes import collect_policy_episodes
from tamherd_jax.envs.tasks import take_tasks
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.pearl import PEARL
from tamherd_jax.pearl.learner import PEARLState
from tamherd_jax.types import PyTree

COLUMNS = ("seed", "task", "exploration", "episodes", "repeat", "before", "after")
EXPLORATIONS = {"mean": True, "noise": False}
"""Whether exploration takes the policy's mean action, by name."""
TITLES = ("task", "exploration", "episodes", "before", "after", "standard deviation", "below half")


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Adapt the right member of each herd to each task many times and print returns before and after, as CSV."""

    herds: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of shipped herds, or directories of herds."""
    episodes: tuple[int, ...] = (1, 2)
    """Exploration episodes of an adaptation."""
    repeats: int = 32
    """Adaptations of each kind."""
    into: Path | None = None
    """A CSV file to append to, in place of printing."""


def lines(options: Exploration) -> Iterator[list[object]]:
    """Rows of the CSV as they come."""
    for name in options.herds:
        herd = Herd.load(name)
        if not isinstance(herd.learner, PEARL):
            raise ValueError(f"{name} is no herd of PEARLs")
        keys = jax.random.split(jax.random.key(herd.seed), options.repeats)
        of_task = np.argmax(herd.member_tasks, axis=0)
        for kind, episodes in itertools.product(EXPLORATIONS, options.episodes):
            adapt = adaptations(herd.learner, kind, episodes)
            for index, task in enumerate(herd.task_set.task_names):
                member = jax.tree.map(lambda leaf, row=int(of_task[index]): leaf[row], herd.members)
                before, after = adapt(keys, member, take_tasks(herd.task_set.tasks, index))
                for repeat in range(options.repeats):
                    yield [herd.seed, task, kind, episodes, repeat, f"{before[repeat]:.1f}", f"{after[repeat]:.1f}"]


def adaptations(learner: PEARL, kind: str, episodes: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return a program that adapts one member to one task with each of R keys.

    It returns returns `[R]` of exploration, mean of its episodes, and of an episode of the adapted policy.
    """
    config = dataclasses.replace(learner.config, deterministic_exploration=EXPLORATIONS[kind])
    learner = PEARL(learner.env, learner.meta_batch_size, learner.tasks, config)

    def one(key: jax.Array, member: PEARLState, task: PyTree) -> tuple[jax.Array, jax.Array]:
        explore_key, test_key = jax.random.split(key)
        policy, experience = learner.adapt(explore_key, member, task, episodes)
        return experience.returns.mean(), collect_policy_episodes(learner, policy, task, test_key, 1).returns[0]

    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


def table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Return the lines of a table in Markdown: a task's adaptations of one kind in a line, all herds together.

    The last column is the share of adaptations that return less than half of the task's best mean.
    """
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        group = groups.setdefault((row["task"], row["exploration"], row["episodes"]), [])
        group.append((float(row["before"]), float(row["after"])))
    found = {key: np.array(group) for key, group in groups.items()}
    yield markdown_line(TITLES)
    yield markdown_line(("---", "---", *("---:" for _ in TITLES[2:])))
    for (task, kind, episodes), returns in sorted(found.items()):
        best = max(other[:, 1].mean() for key, other in found.items() if key[0] == task)
        before, after = returns.T
        shown = (f"{before.mean():.0f}", f"{after.mean():.0f}", f"{after.std():.0f}", f"{np.mean(after < best / 2):.0%}")
        yield markdown_line((task, kind, episodes, *shown))


def main() -> None:
    """Write the rows, and print the table of all in the file."""
    options = tyro.cli(Exploration)
    write_rows(COLUMNS, lines(options), options.into)
    if options.into:
        print(*table(read_rows(options.into)), sep="\n")


if __name__ == "__main__":
    main()
