"""`python -m benchmarks [NAME ...] [--mode MODE] [--out FILE]`, and `list`, `table`, `compare`, `plot`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
SUMMARY = """\
python -m benchmarks [NAME ...] [--mode smoke|quick|full] [--out FILE]   measure all benchmarks, or those named
python -m benchmarks list                                                the benchmarks
python -m benchmarks table FILE.json [NAME ...] [--into PAGE.md]       a run as Markdown; into a file, between marks
python -m benchmarks compare A.json B.json [--floor 0.05]                B against A; exit status 1 on a regression
python -m benchmarks plot FILE.json [--out FILE.png]                     cost against size
python -m benchmarks ahead_of_time [NAME ...] [--out FILE]               compile for an H100 and a TPU that are not there
"""


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line."""

    def error(self, message: str) -> NoReturn:
        """Report a mistake of the user's and exit with status 2."""
        raise ValueError(f"{message} (see python -m benchmarks --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 where `compare` finds a regression, 2 with one line for a mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "list": show_list,
        "table": show_table,
        "compare": show_comparison,
        "plot": show_plot,
        "ahead_of_time": compile_ahead_of_time,
    }
    try:
        if given[:1] and given[0] in commands:
            return commands[given[0]](given[1:])
        return run(given)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted\n")
        return 130


def parser(name: str = "") -> Parser:
    """Return a parser that prints the summary of all commands as its help."""
    program = f"python -m benchmarks {name}".strip()
    return Parser(prog=program, epilog=SUMMARY, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(arguments: Sequence[str]) -> int:
    """Measure, print tables as they are done, write the JSON file."""
    found = parser()
    found.add_argument("names", nargs="*", metavar="NAME", help="benchmarks; all by default")
    found.add_argument("--mode", default="full", help="smoke (seconds), quick (3 minutes on two cores) or full (default)")
    found.add_argument("--out", type=Path, help="JSON file; by default one in benchmarks/results/ named after device and mode")
    found.add_argument("--limit", type=float, metavar="SECONDS", help="start no case after this; by default the mode's own")
    options = found.parse_args(arguments)

    from benchmarks.cases import get_mode
    from benchmarks.registry import chosen
    from benchmarks.suite import measure_suite

    selected = chosen(options.names)
    if __name__ == "__main__":  # every compilation is timed; as a function, this leaves the caller's cache alone
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
    return measure_suite(selected, options.names, get_mode(options.mode, options.limit), options.out)


def show_list(arguments: Sequence[str]) -> int:
    """Print the benchmarks' names and what they measure."""
    parser("list").parse_args(arguments)
    from benchmarks.registry import benchmarks

    for name, benchmark in benchmarks().items():
        own = f" (python -m {benchmark.module})" if benchmark.alone else ""
        print(f"{name:18s} {benchmark.summary}{own}")
    return 0


def show_table(arguments: Sequence[str]) -> int:
    """Print a run as Markdown."""
    found = parser("table")
    found.add_argument("file", type=Path)
    found.add_argument("names", nargs="*", metavar="NAME")
    found.add_argument("--into", type=Path, metavar="FILE", help=f"put it into a file, between {BEGIN} and {END}")
    options = found.parse_args(arguments)
    from benchmarks.results import read_document
    from benchmarks.tables import markdown

    document = read_document(options.file)
    known = {row["benchmark"] for row in document["rows"]}
    for name in options.names:
        if name not in known:
            raise ValueError(f"{options.file} has no benchmark {name!r}; it has {', '.join(sorted(known))}")
    text = markdown(document, options.names)
    if options.into is None:
        print(text, end="")
    else:
        replace_between_marks(options.into, text)
    return 0


def replace_between_marks(path: Path, text: str) -> None:
    """Put a text into a file between `BEGIN` and `END`, in place of what is there.

    Raises:
      ValueError: the file has not each mark once, in this order.
    """
    old = path.read_text(encoding="utf-8")
    parts = [part for half in old.split(BEGIN) for part in half.split(END)]
    if len(parts) != 3 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{path} needs the marks {BEGIN} and {END}, once each")
    path.write_text(f"{parts[0]}{BEGIN}\n{text}{END}{parts[2]}", encoding="utf-8")


def show_comparison(arguments: Sequence[str]) -> int:
    """Print ratios; return 1 if a figure is slower by more than the spread and the floor, or fails now."""
    found = parser("compare")
    found.add_argument("old", type=Path)
    found.add_argument("new", type=Path)
    found.add_argument("--floor", type=float, default=0.05, help="least relative change that counts (default 0.05)")
    options = found.parse_args(arguments)
    if not 0 <= options.floor < float("inf"):
        raise ValueError(f"floor must be a number from 0, not {options.floor}")
    from rich.console import Console

    from benchmarks.compare import REGRESSIONS, compare, comparison_table, warnings
    from benchmarks.results import read_document

    old, new = read_document(options.old), read_document(options.new)
    changes = compare(old, new, options.floor)
    console = wide_console(Console)
    console.print(comparison_table(changes))
    for line in warnings(old, new):
        console.print(f"note: {line}", highlight=False, markup=False)
    regressions = [f"{change.benchmark}: {change.case}" for change in changes if change.verdict in REGRESSIONS]
    console.print(f"{len(regressions)} regression(s)" + "".join(f"\n  {name}" for name in regressions), markup=False)
    return 1 if regressions else 0


def show_plot(arguments: Sequence[str]) -> int:
    """Draw cost against size."""
    found = parser("plot")
    found.add_argument("file", type=Path)
    found.add_argument("--out", type=Path, help="image; by default beside the file")
    options = found.parse_args(arguments)
    from benchmarks.plot import plot
    from benchmarks.results import read_document

    out = options.out or options.file.with_suffix(".png")
    plot(read_document(options.file), out)
    print(out)
    return 0


def compile_ahead_of_time(arguments: Sequence[str]) -> int:
    """Compile the accelerator's programs without an accelerator; return 1 if one of them fails."""
    from benchmarks.ahead_of_time import main

    return main(arguments, parser("ahead_of_time"))


def wide_console(console: Any) -> Any:
    """Return a console that does not break lines where output is not a terminal."""
    return console() if sys.stdout.isatty() else console(width=200)


if __name__ == "__main__":
    sys.exit(main())
