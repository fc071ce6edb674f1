"""The trained herd that `tamherd evaluate` and `tamherd view` ask for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclasses.dataclass(frozen=True)
class HerdOptions:
    """Which herd meets which task."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run directory, or the directory of one saved herd."""
    task: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The task, such as walker-backward."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Which seed's herd. By default the run's first."""


def find_herd(options: HerdOptions, test_tasks: str | None = None) -> Any:
    """The herd that options name; their task is one of its task set, or of another one of the same kind.

    Raises:
      ValueError: there is no such herd or task, or the herd is damaged, in one line.
    """
    from tamherd_jax.herd.artefact import Herd

    directory, seed = options.directory, options.seed
    if not (directory / "herd.json").exists():
        directory = _of_seed(directory, seed)
    herd = Herd.load(directory)
    if seed not in (None, herd.seed):
        raise ValueError(f"{directory} holds the herd of seed {herd.seed}, not {seed}")
    task_set = herd.task_set if test_tasks is None else same_kind(herd.task_set, test_tasks)
    task_set.index(options.task)
    return herd


def same_kind(trained: Any, name: str) -> Any:
    """Return a task set whose tasks a learner of another one can meet.

    Raises:
      ValueError: There is none of that name, or its tasks are of another kind.
    """
    import jax

    from tamherd_jax.envs import get_task_set

    task_set = get_task_set(name)
    before, after = (jax.tree.map(lambda leaf: leaf.shape[1:], one.tasks) for one in (trained, task_set))
    if before != after or not set(task_set.mode_names) <= set(trained.mode_names):
        raise ValueError(f"the tasks of {name} are of another kind than those the herd was trained on, {trained.name}")
    return task_set


def _of_seed(directory: Path, seed: int | None) -> Path:
    """Where a run directory keeps the herd of a seed, of its first one if None."""
    numbers = [path.name.removeprefix("seed-") for path in (directory / "herd").glob("seed-*")]
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    if not seeds:
        raise ValueError(f"{directory} holds no trained herd; tamherd run leaves one in its run directory when it is done")
    if seed is not None and seed not in seeds:
        raise ValueError(f"{directory} holds no trained herd of seed {seed}, only of {', '.join(map(str, seeds))}")
    return directory / "herd" / f"seed-{seeds[0] if seed is None else seed}"
