"""The command `tamherd`: parses arguments and dispatches to `commands`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from tamherd_jax.commands import UserError, drop_output
from tamherd_jax.commands.config import Config, show_config
from tamherd_jax.commands.embed import Embed, embed
from tamherd_jax.commands.evaluate import Evaluate, evaluate
from tamherd_jax.commands.join import Join, join
from tamherd_jax.commands.report import Report, report
from tamherd_jax.commands.run import Run, run
from tamherd_jax.commands.sweep import Sweep, sweep
from tamherd_jax.commands.view import View, view

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Join, tyro.conf.subcommand("join")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Embed, tyro.conf.subcommand("embed")]
    | Annotated[Config, tyro.conf.subcommand("config")]
)


ACTIONS: dict[type, Callable[[Any], int | None]] = {
    Run: run,
    Sweep: sweep,
    Report: report,
    Join: join,
    Evaluate: evaluate,
    View: view,
    Embed: embed,
    Config: show_config,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command: exit status 0 on success, 2 with one line on standard error for a mistake of the user's."""
    for stream in (sys.stdout, sys.stderr):  # a directory's name may hold what the terminal's encoding cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        status = ACTIONS[type(command)](command)  # None is 0
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"tamherd: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except BrokenPipeError:  # nobody reads any more, as with `| head`
        drop_output()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.stderr.write("tamherd: interrupted\n")
        sys.exit(130)
    if status:
        sys.exit(status)


def parse(arguments: list[str]) -> Any:
    """The command that arguments name.

    Raises:
      UserError: for arguments that name none. (`--help` exits with status 0.)
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Command, args=arguments, prog="tamherd", description="Taming the Herd, on the accelerator.")
    except SystemExit as stop:
        if not stop.code:
            raise
        # Of the box that tyro draws, the first block between rules is the message.
        blocks: list[list[str]] = [[]]
        for line in complaint.getvalue().splitlines()[1:]:
            if set(line.strip()) & {"-", "─"} and not set(line.strip(" │|-─╭╮╰╯├┤")):
                blocks.append([])
            else:
                blocks[-1].append(line.strip(" │|"))
        message = next((" ".join(block) for block in blocks if any(block)), "bad arguments")
        raise UserError(f"{message} (see tamherd --help)") from None


if __name__ == "__main__":
    main()
