"""`tamherd evaluate`: a trained herd meets a task."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import tyro

from tamherd_jax.commands import check_count, mistakes_of_the_user, new_console
from tamherd_jax.commands.trained_herd import HerdOptions, find_herd


@dataclasses.dataclass(frozen=True)
class Evaluate(HerdOptions):
    """Assign a trained herd of a run to a task, adapt its member, and print what was done."""

    episodes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Test episodes that measure the adapted policy. By default as many as the run's."""


def evaluate(options: Evaluate) -> None:
    """`tamherd evaluate`.

    Raises:
      UserError: there is no such herd or task, or no such number of episodes.
    """
    with mistakes_of_the_user():
        check_count("episodes", options.episodes)
        herd = find_herd(options)
    if options.episodes is not None:
        herd = dataclasses.replace(herd, episodes=dataclasses.replace(herd.episodes, test=options.episodes))

    from tamherd_jax.experiments.recording import task_key

    console = new_console(highlight=False)
    for line in describe(herd, options.task, herd.adapt(task_key(herd, options.task), options.task)):
        console.print(line, soft_wrap=True)


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
