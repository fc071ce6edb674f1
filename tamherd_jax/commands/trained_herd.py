"""The trained herd that `tamherd evaluate` and `tamherd view` ask for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from tamherd_jax.commands.options import option


@dataclasses.dataclass(frozen=True)
class HerdOptions:
    """A trained herd, a task for it, and the seed."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="HERD")]
    """A run directory, the directory of one saved herd, or a trained herd that comes with the package, such as ml2-maml."""
    task: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The task, such as walker-backward."""
    seed: Annotated[int | None, option("N")] = None
    """Which seed's herd. By default the run's first."""


def find_herd(options: HerdOptions, test_tasks: str | None = None) -> Any:
    """The herd that options name; their task is one of its task set, or of another one of the same kind.

    Raises:
      ValueError: there is no such herd or task, or the herd is damaged, in one line.
    """
    from tamherd_jax.herd.artefact import Herd
    from tamherd_jax.herd.files import herd_directory

    directory, seed = herd_directory(options.directory), options.seed
    if not (directory / "herd.json").exists():
        directory = _of_seed(directory, seed)
    herd = Herd.load(directory)
    if seed not in (None, herd.seed):
        raise ValueError(f"{directory} holds the herd of seed {herd.seed}, not {seed}")
    from tamherd_jax.experiments.final_tests import same_kind

    task_set = herd.task_set if test_tasks is None else same_kind(herd.task_set, test_tasks)
    task_set.index(options.task)
    return herd


def _of_seed(directory: Path, seed: int | None) -> Path:
    """Where a run directory keeps the herd of a seed, of its first one if None."""
    from tamherd_jax.herd.files import shipped_herds

    numbers = [path.name.removeprefix("seed-") for path in (directory / "herd").glob("seed-*")]
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    if not seeds:
        shipped = ", ".join(shipped_herds())
        raise ValueError(f"{directory} holds no trained herd; tamherd run leaves one, and with the package comes {shipped}")
    if seed is not None and seed not in seeds:
        raise ValueError(f"{directory} holds no trained herd of seed {seed}, only of {', '.join(map(str, seeds))}")
    return directory / "herd" / f"seed-{seeds[0] if seed is None else seed}"
