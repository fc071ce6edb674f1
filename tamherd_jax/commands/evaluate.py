"""`tamherd evaluate`: assign a task to a member of a trained herd, and adapt it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from tamherd_jax.commands import check_count, mistakes_of_the_user, new_console, parse_shots
from tamherd_jax.commands.options import one_of, option
from tamherd_jax.commands.trained_herd import HerdOptions, find_herd
from tamherd_jax.registry.choices import TASK_SETS


@dataclasses.dataclass(frozen=True)
class Evaluate(HerdOptions):
    """Assign a trained herd of a run to a task, adapt its member, and print what was done."""

    test_tasks: Annotated[str | None, one_of(TASK_SETS), option("NAME")] = None
    """The task set that the task is of, where the herd was trained on another, such as ml2-vel-between after ml2-vel."""
    shots: Annotated[str | None, option("COUNTS")] = None
    """Measure the member also after other numbers of exploration episodes, such as 0,1,2,5,10."""
    episodes: Annotated[int | None, option("N")] = None
    """Test episodes that measure the adapted policy. By default as many as the run's."""


def evaluate(options: Evaluate) -> None:
    """Run `tamherd evaluate`; return the exit status.

    Raises:
      UserError: there is no such herd or task, or no such number of episodes.
    """
    with mistakes_of_the_user():
        check_count("episodes", options.episodes)
        shots = parse_shots(options.shots or "")
        herd = find_herd(options, options.test_tasks)
    if options.episodes is not None:
        herd = dataclasses.replace(herd, episodes=dataclasses.replace(herd.episodes, test=options.episodes))

    from tamherd_jax.envs import get_task_set
    from tamherd_jax.experiments.recording import task_key

    task_set = herd.task_set if options.test_tasks is None else get_task_set(options.test_tasks)
    key, task = task_key(herd, options.task, task_set), task_set.task(options.task)
    adapted, console = herd.adapt(key, task), new_console(highlight=False)
    for line in describe(herd, task_set, options.task, adapted):
        console.print(line, soft_wrap=True)
    for count in shots:
        returns = herd.with_shots(count).adapt(key, task, adapted.member).after.returns
        spread = f"(std {float(returns.std()):.1f})"
        console.print(f"shots {count:<4}return {float(returns.mean()):.1f} over {returns.size} test episodes {spread}")


def describe(herd: Any, task_set: Any, task: str, adapted: Any) -> list[str]:
    """Return what was done, a line each."""
    assignment = adapted.assignment
    shares = zip(herd.task_set.task_names, herd.member_tasks[adapted.member], strict=True)
    learnt = ", ".join(f"{name} {share:.0%}" for name, share in shares if share > 0)
    distances = ", ".join(f"{distance:.3g}" for distance in assignment.distances)
    before, after = adapted.before.returns, adapted.after.returns
    return [
        f"task      {task} ({task_set.name} version {task_set.version}), herd of seed {herd.seed}",
        f"probe     {herd.episodes.probe} episodes, {assignment.steps} steps",
        f"assigned  to member {adapted.member} of {herd.size}, trained on {learnt}",
        f"          squared distances {distances}; margin {assignment.margin:.3g}; confidence {assignment.confidence:.3f}",
        f"before    return {float(before.mean()):.1f} over {before.size} exploration episodes",
        f"after     return {float(after.mean()):.1f} over {after.size} test episodes (std {float(after.std()):.1f})",
        f"steps     {adapted.steps} to assign and adapt, {int(adapted.after.steps.sum())} to test",
    ]
