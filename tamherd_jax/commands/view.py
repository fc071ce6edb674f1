"""`tamherd view`: an animation of the adapted policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tamherd_jax.commands import mistakes_of_the_user, new_console
from tamherd_jax.commands.options import option
from tamherd_jax.commands.trained_herd import HerdOptions, find_herd


@dataclasses.dataclass(frozen=True)
class View(HerdOptions):
    """Adapt a trained herd to a task and write an animation, before and after adaptation, that a browser opens offline."""

    out: Annotated[Path | None, option("FILE")] = None
    """File to write: a page with a player, or a name ending in .svg for an image that plays where images stand, as in a README.
    By default view-TASK-seed-N.html in the herd's directory, or here for a herd that comes with the package."""


def view(options: View) -> None:
    """Run `tamherd view`; return the exit status.

    Raises:
      UserError: there is no such herd or task, or the page cannot be written.
    """
    with mistakes_of_the_user():
        herd = find_herd(options)
        beside = options.directory if options.directory.is_dir() else Path()
        path = options.out or beside / f"view-{options.task}-seed-{herd.seed}.html"
        if not path.parent.is_dir():
            raise ValueError(f"cannot write {path}: {path.parent} is no directory")

    from tamherd_jax.experiments.recording import record
    from tamherd_jax.reporting.animation import player_data
    from tamherd_jax.reporting.animation_svg import animated_svg
    from tamherd_jax.reporting.html import view_page, write_page

    with mistakes_of_the_user():
        data = player_data(record(herd, [options.task]))
        (entry,) = data["tasks"]
        what = "the exploration and the test episode of median return"
        subtitle = f"Herd of seed {herd.seed}, member {entry['member']} of {herd.size}: {what}"
        title = f"{options.task}, before and after adaptation"
        svg = path.suffix.lower() == ".svg"
        write_page(animated_svg(data, title) if svg else view_page(data, title, subtitle), path)
    before, after = (clip["return"] for clip in entry["clips"])
    line = f"{options.task}: return {before} before and {after} after adaptation. Animation: {path}"
    new_console(highlight=False).print(line, soft_wrap=True)
