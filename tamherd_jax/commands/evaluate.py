"""`tamherd evaluate`: a trained herd meets a task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from tamherd_jax.commands import mistakes_of_the_user


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Assign a trained herd of a run to a task, adapt its member, and print what was done."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run directory, or the directory of one saved herd."""
    task: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The task, such as walker-backward."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Which seed's herd. By default the run's first."""
    episodes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Test episodes that measure the adapted policy. By default as many as the run's."""


def evaluate(options: Evaluate) -> None:
    """`tamherd evaluate`.

    Raises:
      UserError: there is no such herd or task, or no such number of episodes.
    """
    from rich.console import Console

    with mistakes_of_the_user():
        herd = find_herd(options.directory, options.seed, options.episodes)
        herd.task_set.index(options.task)

    import jax

    adapted = herd.adapt(jax.random.fold_in(jax.random.key(herd.seed), herd.task_set.index(options.task)), options.task)
    console = Console(highlight=False)
    for line in describe(herd, options.task, adapted):
        console.print(line, soft_wrap=True)


def find_herd(directory: Path, seed: int | None, episodes: int | None = None) -> Any:
    """The herd of a seed in a run directory, measuring with `episodes` test episodes.

    Raises:
      ValueError: there is none, or it is damaged, in one line.
    """
    from tamherd_jax.herd.artefact import Herd

    if episodes is not None and episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    if not (directory / "herd.json").exists():
        directory = _of_seed(directory, seed)
    herd = Herd.load(directory)
    if seed not in (None, herd.seed):
        raise ValueError(f"{directory} holds the herd of seed {herd.seed}, not {seed}")
    if episodes is not None:
        herd = dataclasses.replace(herd, episodes=dataclasses.replace(herd.episodes, test=episodes))
    return herd


def _of_seed(directory: Path, seed: int | None) -> Path:
    """Where a run directory keeps the herd of a seed, of its first one if None."""
    numbers = [path.name.removeprefix("seed-") for path in (directory / "herd").glob("seed-*")]
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    if not seeds:
        raise ValueError(f"{directory} holds no trained herd; tamherd run leaves one in its run directory when it is done")
    if seed is not None and seed not in seeds:
        raise ValueError(f"{directory} holds no trained herd of seed {seed}, only of {', '.join(map(str, seeds))}")
    return directory / "herd" / f"seed-{seeds[0] if seed is None else seed}"


def describe(herd: Any, task: str, adapted: Any) -> list[str]:
    """What was done, a line each."""
    assignment = adapted.assignment
    shares = zip(herd.task_set.task_names, herd.member_tasks[adapted.member], strict=True)
    learnt = ", ".join(f"{name} {share:.0%}" for name, share in shares if share > 0)
    distances = ", ".join(f"{distance:.3g}" for distance in assignment.distances)
    before, after = adapted.before.returns, adapted.after.returns
    return [
        f"task      {task} ({herd.task_set.name} version {herd.task_set.version}), herd of seed {herd.seed}",
        f"probe     {herd.episodes.probe} episodes, {assignment.steps} steps",
        f"assigned  to member {adapted.member} of {herd.size}, trained on {learnt}",
        f"          squared distances {distances}; margin {assignment.margin:.3g}; confidence {assignment.confidence:.3f}",
        f"before    return {float(before.mean()):.1f} over {before.size} exploration episodes",
        f"after     return {float(after.mean()):.1f} over {after.size} test episodes (std {float(after.std()):.1f})",
        f"steps     {adapted.steps} to assign and adapt, {int(adapted.after.steps.sum())} to test",
    ]
