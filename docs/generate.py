"""Tables and figures of README and documentation, made from the results committed under benchmarks/results/.

python docs/generate.py              the pages of docs/generated/, which Sphinx includes (docs/conf.py calls this)
python docs/generate.py README.md    the tables between `<!-- results: RUN -->` and `<!-- end of results -->` of a
                                     file, and each docs/figures/RUN.png that it shows, Figure 2 of that run
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tamherd_jax.experiments.settings import run_command  # noqa: E402
from tamherd_jax.reporting import figures, paper, tables  # noqa: E402
from tamherd_jax.reporting.run_files import RunFiles, arm_title, read_run_files  # noqa: E402
from tamherd_jax.reporting.statistics import Analysis, ArmSummary, Estimate, analyse, estimate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
GENERATED = ROOT / "docs" / "generated"
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
PAPER_ARMS = ("oracle", "single", "herd")

NOTES = {
    "tuned-maml-4-seeds": "The recipe before: discount 0.99, lambda 0.95.",
}
"""What a run's name does not say."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# Runs ----------------------------------------------------------------------------------------------------------------


def read_runs(where: Path = RESULTS) -> dict[str, RunFiles]:
    """Return the committed runs by name: those of tuned presets first, those of earlier recipes last."""
    found = {path.parent.name: read_run_files(path.parent) for path in sorted(where.glob("*/results.json"))}
    return dict(sorted(found.items(), key=lambda item: _place(*item)))


def _place(name: str, run: RunFiles) -> tuple[bool, bool, int]:
    config = run.results.config
    return name in NOTES, not config.preset.startswith("tuned"), -config.seeds


def command(run: RunFiles) -> str:
    """Return the command that makes such a run."""
    return run_command(
        dataclasses.replace(run.results.config, physics=run.results.physics), always=("seeds", "physics", "controls")
    )


def with_interval(estimate: Any, sign: bool = False) -> str:
    """Return `12.3 [10.0, 15.0]`, without the interval where there are too few seeds for one."""
    return f"{tables.fixed(estimate.value, sign=sign)} {tables.interval(estimate)}".strip()


def best_table(run: RunFiles, analysis: Analysis) -> str:
    """Return the paper's table: median over seeds of the best epoch, 95% interval, and the paper's number in parentheses."""
    results = run.results
    shown = [arm for arm in results.arms if arm in PAPER_ARMS]
    by_place = {(s.arm, s.body): s for s in analysis.summaries}

    def cell(summary: ArmSummary) -> str:
        theirs = tables.paper_value(results, summary.arm, summary.body)
        return with_interval(summary.best) + ("" if theirs is None else f" ({theirs:.1f})")

    bodies = [*results.task_set.bodies, None]
    rows = [[tables.body_name(body), *(cell(by_place[arm, body]) for arm in shown)] for body in bodies]
    seeds = tables.seeds_text(results.config.seeds)
    return markdown_table([f"best epoch, median of {seeds} (paper)", *(arm_title(results, arm) for arm in shown)], rows)


def last_table(run: RunFiles, analysis: Analysis) -> str:
    """Return interquartile mean over seeds of the last five epochs, and what adaptation brings, for every arm and body."""
    results = run.results
    rows = [
        [arm_title(results, s.arm), tables.body_name(s.body), with_interval(s.last5_iqm), with_interval(s.gain, sign=True)]
        for s in analysis.summaries
    ]
    return markdown_table(["arm", "body", "last five epochs, interquartile mean", "gain by adaptation"], rows)


def comparison_table(analysis: Analysis) -> str:
    """Return the herd's lead over the single learner, paired by seed, at equal environment steps."""
    rows = [
        [
            tables.body_name(c.body),
            with_interval(c.difference, sign=True),
            f"{c.probability.value:.2f}",
            with_interval(c.difference_along, sign=True),
        ]
        for c in analysis.comparisons
    ]
    return markdown_table(["herd minus single", "last five epochs", "P(herd better)", "along the whole curve"], rows)


def comparison_sentence(analysis: Analysis) -> str:
    """Return the herd's lead over the single learner in a sentence; empty where a run has not both."""
    leads = [f"{tables.body_name(c.body).lower()} {with_interval(c.difference, sign=True)}" for c in analysis.comparisons]
    return f"Herd minus single learner, paired by seed, mean of the last five epochs: {', '.join(leads)}." if leads else ""


def clusters_sentence(run: RunFiles) -> str:
    """Return how well clusters and assignments match the bodies, in a sentence."""
    rows = [row for row in run.results.clusters if not row.failure]
    perfect = sum(row.adjusted_rand_index_bodies == 1 for row in rows)
    right = sum(row.assignment_accuracy for row in rows) / max(len(rows), 1)
    seeds = tables.seeds_text(len(run.results.clusters))
    return f"Clusters were the bodies in {perfect} of {seeds}; {right:.0%} of the test tasks went to the right member."


def steps_sentence(run: RunFiles) -> str:
    """Return the environment steps that each arm may take, in a sentence."""
    budget = run.results.ledger.budget
    shown = ", ".join(f"{arm_title(run.results, arm)} {budget[arm] / 1e6:.2f}" for arm in PAPER_ARMS if arm in budget)
    return f"Million environment steps a seed, the herd's with probe and embedding: {shown}. Device: {run.results.device}."


def run_section(name: str, run: RunFiles) -> str:
    """Return a run's section of the results page."""
    analysis = analyse(run.results, run.curves)
    parts = [
        f"## {name}",
        NOTES.get(name, ""),
        f"`{command(run)}`",
        best_table(run, analysis),
        last_table(run, analysis),
        comparison_table(analysis) if analysis.comparisons else "",
        f"{clusters_sentence(run)} {steps_sentence(run)}",
        f"![Figure 2 of {name}: return after adaptation against environment steps](generated/{name}.png)",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def readme_block(run: RunFiles) -> str:
    """Return what stands between the marks of a run: the paper's table, the comparison and the command."""
    analysis = analyse(run.results, run.curves)
    text = " ".join((comparison_sentence(analysis), clusters_sentence(run), f"Command: `{command(run)}`."))
    return f"\n{best_table(run, analysis)}\n{text.strip()}\n\n"


def fill(text: str, runs: dict[str, RunFiles]) -> str:
    """Return a text with the tables between all marks made anew.

    Raises:
      ValueError: a mark names a run that is not committed.
    """

    def block(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in runs:
            raise ValueError(f"there is no run {name!r}; runs are {', '.join(runs)}")
        return start + readme_block(runs[name]) + end

    return BLOCK.sub(block, text)


# Number of modes -----------------------------------------------------------------------------------------------------


def runs_by_modes(runs: dict[str, RunFiles], preset: str) -> list[tuple[RunFiles, Analysis]]:
    """Return a preset's runs on task sets of one mode or more, fewest modes first; runs of earlier recipes are left out."""
    chosen = [run for name, run in runs.items() if run.results.config.preset == preset and name not in NOTES]
    ordered = sorted(chosen, key=lambda run: (len(run.results.task_set.bodies), run.results.task_set.name))
    return [(run, analyse(run.results, run.curves)) for run in ordered]


def modes_table(runs: dict[str, RunFiles], preset: str) -> str:
    """Return herd and single learner by number of modes: return after adaptation, last five epochs, mean of bodies."""
    rows = []
    for run, analysis in runs_by_modes(runs, preset):
        overall = {summary.arm: summary for summary in analysis.summaries if summary.body is None}
        (lead,) = (one for one in analysis.comparisons if one.body is None)
        set_, seeds = run.results.task_set, str(run.results.config.seeds)
        returns = [with_interval(overall[arm].last5) for arm in ("single", "herd")]
        leads = [with_interval(value, sign=True) for value in (lead.difference, lead.difference_along)]
        rows.append([set_.name, str(len(set_.bodies)), seeds, *returns, *leads])
    header = ["task set", "modes", "seeds", "single", "herd", "herd minus single, last five epochs", "along the whole curve"]
    return markdown_table(header, rows)


def modes_figure(runs: dict[str, RunFiles], preset: str) -> Figure:
    """Return the herd's lead over the single learner against the number of modes, all bodies and each, with 95% intervals."""

    def draw(axis: Axes) -> None:
        for place, (run, analysis) in enumerate(compared):
            bodies = run.results.task_set.bodies
            for one in analysis.comparisons:
                x = place + (0.0 if one.body is None else 0.12 * (1 + bodies.index(one.body)))
                low, high = one.difference.low, one.difference.high
                colour = figures.INK if one.body is None else figures.COLOURS[bodies.index(one.body)]
                axis.plot([x, x], [low, high], color=colour, linewidth=1.5)
                label = tables.body_name(one.body) if place == most else None
                axis.plot(x, one.difference.value, "s" if one.body is None else "o", color=colour, label=label)
        axis.axhline(0.0, color=figures.GRID)
        axis.set_xticks(range(len(labels)), labels)
        axis.set(ylabel="return of herd minus single")
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    compared = runs_by_modes(runs, preset)
    labels = [f"{r.results.task_set.name}\n{len(r.results.task_set.bodies)} modes" for r, _ in compared]
    most = len(compared) - 1
    return figures.row_of_panels({"Last five epochs, paired by seed": draw}, 3.4)


# Other pages ---------------------------------------------------------------------------------------------------------


def open_points() -> str:
    """Return the table of what the paper leaves open."""
    lines = [
        "| open in the paper | here |",
        "| --- | --- |",
        *(f"| {point} | {choice} |" for point, choice in paper.AMBIGUITIES),
    ]
    return "\n".join(lines) + "\n"


def embedding_studies() -> str:
    """Return the share of seeds with perfect clusters and assignment, for every embedding, probe and length studied."""
    from benchmarks.embedding_study import markdown

    parts = [markdown(RESULTS / "embedding_study.csv")]
    for kind in ("multitask", "discriminative"):
        parts.append(
            f"The same with a {kind} probe (chosen embeddings):\n\n{probe_table(RESULTS / f'embedding_study_{kind}.csv')}"
        )
    return "\n\n".join(parts) + "\n"


CHOSEN = (
    ("fisher", "max", "euclidean"),
    ("fisher", "max", "cosine"),
    ("fisher", "none", "cosine"),
    ("transition", "none", "cosine"),
)
"""Embedding, reward weights and metric of the rows of the smaller tables."""


def probe_table(path: Path) -> str:
    """Return the rows `CHOSEN` of a study by probe length, Ward's linkage."""
    with open(path, newline="", encoding="utf-8") as file:
        records = [row for row in csv.DictReader(file) if row["linkage"] == "ward"]
    lengths = sorted({int(row["epochs"]) for row in records})
    cells = {(r["embedding"], r["reward"], r["metric"], int(r["epochs"])): r for r in records}

    def share(record: dict[str, str]) -> str:
        return " / ".join(f"{100 * float(record[key]):.0f}" for key in ("perfect_clusters", "perfect_assignment"))

    rows = [[f"{e}, weights {w}, {m}", *(share(cells[e, w, m, n]) for n in lengths)] for e, w, m in CHOSEN]
    return markdown_table(["probe epochs", *map(str, lengths)], rows)


def newest_benchmarks() -> dict[str, Path]:
    """Return the newest file of a full run for each device."""
    found: dict[str, tuple[str, Path]] = {}
    for path in RESULTS.glob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        if document.get("mode") == "full":
            device = document["machine"]["device"]
            found[device] = max(found.get(device, ("", path)), (document["started"], path))
    return {device: path for device, (_, path) in sorted(found.items())}


def benchmark_tables() -> str:
    """Return the tables of the newest full run on each device."""
    from benchmarks.results import read_document
    from benchmarks.tables import markdown

    parts = []
    for device, path in newest_benchmarks().items():
        document = read_document(path)
        parts.append(f"## {device}\n\nFile: `benchmarks/results/{path.name}`. {markdown(document)}")
        parts += [f"- {line}" for line in document["definitions"]]
    return "\n".join(parts) + "\n"


def accelerator_tables() -> str:
    """Return the tables of what was measured on each accelerator."""
    parts = []
    for path in sorted(RESULTS.glob("accelerator-*.json")):
        run = json.loads(path.read_text("utf-8"))
        where = f"JAX {run['jax']}, driver {run['driver']}, host of {run['host']}, {run['date']}"
        parts.append(f"## {run['device']}\n\n{where}. File: `benchmarks/results/{path.name}`.\n\nPhysics: {run['physics']}.\n")
        fields = ("form", "block", "environments", "microseconds", "million_steps_a_second", "compile_cpu_seconds")
        parts.append(_plain_table(run["physics_rows"], fields))
        parts.append("Relative error of the velocity after one step, against MuJoCo C in float64.\n")
        parts.append(_plain_table(run["accuracy_rows"], ("form", "block", "body", "n", "median", "p99", "worst")))
        parts.append(f"Epochs: {run['epoch']}.\n")
        fields = ("algorithm", "learners", "milliseconds", "compile_seconds", "compile_cpu_seconds", "temporary_megabytes")
        parts.append(_plain_table(run["epoch_rows"], fields))
    return "\n".join(parts)


def sweep_tables() -> str:
    """Return every committed sweep: mean of the last five epochs with its 95% interval over seeds, the best herd first."""
    parts = []
    for path in sorted(RESULTS.glob("sweep-*/sweep.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            records = [row for row in csv.DictReader(file) if row["statistic"] == "last5"]
        columns = list(records[0])
        names = columns[columns.index("setting") + 1 : columns.index("arm")]
        bodies = list(dict.fromkeys(row["body"] for row in records if row["body"]))
        parts.append(f"File: `benchmarks/results/{path.parent.name}/{path.name}`.\n\n{_sweep_table(records, names, bodies)}")
    return "\n".join(parts)


def _sweep_table(records: Sequence[dict[str, str]], names: Sequence[str], bodies: Sequence[str]) -> str:
    """Return a sweep's table: the values of `names`, every arm's mean over `bodies`, and the herd's of each of them."""

    def values(setting: str, arm: str, body: str) -> np.ndarray:
        wanted = {"setting": setting, "arm": arm, "body": body}
        return np.array([float(row["value"]) for row in records if all(row[key] == value for key, value in wanted.items())])

    def overall(setting: str, arm: str) -> Estimate:
        return estimate([values(setting, arm, body) for body in bodies], np.mean)

    settings = {row["setting"]: [row[name] for name in names] for row in records}
    ranked = sorted(settings, key=lambda setting: -overall(setting, "herd").value)
    rows = [
        [
            *settings[setting],
            *(with_interval(overall(setting, arm)) for arm in PAPER_ARMS),
            *(with_interval(estimate([values(setting, "herd", body)], np.mean)) for body in bodies),
        ]
        for setting in ranked
    ]
    return markdown_table([*(f"`{name}`" for name in names), *PAPER_ARMS, *(f"herd, {body}" for body in bodies)], rows)


def _plain_table(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> str:
    def text(value: Any) -> str:
        return (
            f"{value:.1e}"
            if isinstance(value, float) and value < 1e-2
            else f"{value:,}"
            if not isinstance(value, str)
            else value
        )

    header = [field.replace("_", " ") for field in fields]
    return markdown_table(header, [[text(row.get(field, "")) for field in fields] for row in rows])


def help_text(arguments: Sequence[str]) -> str:
    """Return what the command prints for its help, without colours."""
    from tamherd_jax.cli import main

    stream = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="78")  # what a page of text holds
    with wide, contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).strip()


def command_line() -> str:
    """Return the help of all commands as a page."""
    whole = help_text([])
    names = re.findall(r"^[│|\s]*•\s+([a-z]+)\s", whole, re.MULTILINE)
    sections = [("tamherd", whole), *((f"tamherd {name}", help_text([name])) for name in names)]
    return "\n".join(f"## {title}\n\n```text\n{text}\n```\n" for title, text in sections)


def presets() -> str:
    """Return a table of the presets."""
    from tamherd_jax.experiments.presets import PRESETS, get_preset

    fields = ("algorithm", "seeds", "probe_epochs", "member_epochs", "single_epochs")
    rows = [[f"`{name}`", *(str(getattr(get_preset(name), field)) for field in fields)] for name in PRESETS]
    return markdown_table(["preset", "algorithm", "seeds", "probe epochs", "member epochs", "single epochs"], rows)


def write_pages(where: Path = GENERATED) -> None:
    """Write every generated page, and Figure 2 of every run."""
    where.mkdir(exist_ok=True)
    runs = read_runs()
    pages = {
        "modes": modes_table(runs, "tuned-maml"),
        "results": "\n".join(run_section(name, run) for name, run in runs.items()),
        "open_points": open_points(),
        "embedding_studies": embedding_studies(),
        "benchmarks": benchmark_tables(),
        "accelerators": accelerator_tables(),
        "command_line": command_line(),
        "presets": presets(),
        "sweeps": sweep_tables(),
    }
    for name, text in pages.items():
        (where / f"{name}.md").write_text(text, "utf-8")
    for name, run in runs.items():
        figures.save_figure(figures.learning_curves(run.results, run.curves), where / f"{name}.png")
    figures.save_figure(modes_figure(runs, "tuned-maml"), where / "modes.png")


def fill_file(path: Path) -> None:
    """Make the tables of a file anew, and the figures that it shows."""
    text, runs = path.read_text("utf-8"), read_runs()
    path.write_text(fill(text, runs), "utf-8")
    for name in set(re.findall(r"docs/figures/([\w.-]+)\.png", text)) & set(runs):
        figures.save_figure(figures.learning_curves(runs[name].results, runs[name].curves), FIGURES / f"{name}.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fill_file(Path(sys.argv[1]))
    else:
        write_pages()
