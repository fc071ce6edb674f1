"""The tables of `report.html`, each made from result files; a template lays them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from tamherd_jax.experiments.results import ClusterSummary, Results
from tamherd_jax.reporting import paper
from tamherd_jax.reporting.figures import adaptation
from tamherd_jax.reporting.run_files import RunFiles, arm_title
from tamherd_jax.reporting.statistics import ArmSummary, Comparison, Estimate, estimate
from tamherd_jax.reporting.tables import (
    body_name,
    fixed,
    interval,
    number,
    paper_columns,
    paper_value,
    seeds_text,
    shots_estimates,
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, small lines under it, and `good` or `bad` where it says so."""

    text: str
    small: tuple[str, ...] = ()
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of cells; `total` for one that sums up."""

    cells: tuple[Cell, ...]
    total: bool = False


@dataclasses.dataclass(frozen=True)
class TableView:
    """A table; `prose` where its cells are text rather than numbers, `labels` of the first columns say what a row is."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    prose: bool = False
    labels: int = 1


def row(*cells: str | Cell, total: bool = False) -> Row:
    """Make a row of texts and cells."""
    return Row(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells), total)


def with_interval(value: Estimate, digits: int = 1, sign: bool = False) -> Cell:
    """Return a cell with a statistic and, under it, its interval."""
    if not np.isfinite(value.value):
        return Cell("-")
    small = (interval(value, digits),) if value.low is not None else ()
    return Cell(fixed(value.value, digits, sign), small)


def paper_table(results: Results, summaries: list[ArmSummary]) -> TableView:
    """Table 1 or 2 in the paper's layout: a row a body, a column an arm; under each number the paper's and the difference."""
    shown = paper_columns(results)

    def cell(summary: ArmSummary) -> Cell:
        ours, theirs = summary.best, paper_value(results, summary.arm, summary.body)
        base = with_interval(ours)
        if theirs is None or not np.isfinite(ours.value):
            return base
        mark = "" if ours.low is None or theirs in ours else "good" if ours.value > theirs else "bad"
        return Cell(base.text, (*base.small, f"paper {theirs:.1f}", f"({fixed(ours.value - theirs, sign=True)})"), mark)

    bodies = [*results.task_set.bodies, None]
    cells = {(s.arm, s.body): cell(s) for s in summaries}
    rows = tuple(row(body_name(b), *(cells[arm, b] for arm in shown), total=b is None) for b in bodies)
    caption = f"Best epoch, median over {seeds_text(results.config.seeds)}"
    return TableView(caption, ("Body", *(arm_title(results, arm) for arm in shown)), rows)


def statistics_table(results: Results, summaries: list[ArmSummary]) -> TableView:
    """Every arm's unbiased statistics on every body and on all."""
    head = ("Body", "Arm", "Interquartile mean", "Mean", "Before", "Adaptation", "Best (median)", "Seeds")
    rows = []
    for s in summaries:
        parts = [with_interval(s.last5_iqm), with_interval(s.last5), with_interval(s.before), with_interval(s.gain, sign=True)]
        name, arm = body_name(s.body), arm_title(results, s.arm)
        rows.append(row(name, arm, *parts, with_interval(s.best), str(s.best.count), total=s.body is None))
    return TableView("Mean of the last five epochs", head, tuple(rows), labels=2)


def comparison_table(comparisons: list[Comparison]) -> TableView:
    """Herd against single learner."""
    head = ("Body", "P(herd better)", "Difference", "P(herd better) all along", "Difference all along")
    rows = [
        row(
            body_name(c.body),
            with_interval(c.probability, 2),
            with_interval(c.difference, sign=True),
            with_interval(c.probability_along, 2),
            with_interval(c.difference_along, sign=True),
            total=c.body is None,
        )
        for c in comparisons
    ]
    return TableView("Herd against single learner at equal environment steps", head, tuple(rows))


def excluded_table(results: Results) -> TableView | None:
    """Learners left out of the statistics; None where there are none."""
    entries = results.excluded
    if not entries:
        return None
    rows = [
        row(
            arm_title(results, e.arm),
            str(e.seed),
            "-" if e.learner is None else str(e.learner),
            str(e.epoch),
            e.why,
        )
        for e in entries
    ]
    return TableView(f"Left out of the statistics ({len(rows)})", ("Arm", "Seed", "Learner", "Epoch", "Why"), tuple(rows), True)


def adaptation_table(run: RunFiles) -> TableView:
    """Every arm's return on every task before and after adaptation, mean of the last five epochs."""
    rows = []
    for arm in run.results.arms:
        values = adaptation(run.results, run.curves, arm)
        for task, name in enumerate(run.results.task_set.tasks):
            before, after = (estimate([values[kind][:, task]], np.mean) for kind in ("before", "after"))
            gain = estimate([values["after"][:, task] - values["before"][:, task]], np.mean)
            change = with_interval(gain, sign=True)
            mark = "good" if gain.value > 0 else "bad" if gain.value <= 0 else ""
            change = Cell(change.text, change.small, mark)
            rows.append(row(name, arm_title(run.results, arm), with_interval(before), with_interval(after), change))
    head = ("Task", "Arm", "Before", "After", "Change")
    return TableView("Mean return over the last five epochs, mean over seeds", head, tuple(rows), labels=2)


def shots_table(results: Results) -> TableView | None:
    """Return after each number of exploration episodes by arm, mean over bodies, where a run measured it."""
    if results.final_tests is None:
        return None
    final = results.final_tests
    rows = [row(title, *(with_interval(cell) for cell in cells)) for title, cells in shots_estimates(results)]
    caption = f"Mean return over bodies after so many exploration episodes, tasks of {final.task_set}"
    return TableView(caption, ("Arm", *(str(count) for count in final.shots)), tuple(rows))


def cluster_bodies(results: Results, summary: ClusterSummary) -> list[str]:
    """For each cluster of a seed, the body of most of its training tasks."""
    bodies, of_task = results.task_set.bodies, results.task_set.body_of_task
    counts = np.array(
        [
            sum(
                np.array(summary.tasks_in_cluster[t]) for t, b in zip(results.task_set.tasks, of_task, strict=True) if b == body
            )
            for body in bodies
        ]
    )
    return [bodies[i] for i in counts.argmax(0)]


def confusion_table(results: Results) -> TableView:
    """How often test tasks went to the clusters of each body, over epochs and seeds that could be clustered."""
    bodies = results.task_set.bodies
    counts = {task: dict.fromkeys(bodies, 0) for task in results.task_set.tasks}
    clustered = [summary for summary in results.clusters if not summary.failure]
    for summary in clustered:
        owners = cluster_bodies(results, summary)
        for task, assigned in summary.assigned_to.items():
            for owner, times in zip(owners, assigned, strict=True):
                counts[task][owner] += times
    rows = []
    for task, body in zip(counts, results.task_set.body_of_task, strict=True):
        total = max(sum(counts[task].values()), 1)
        cells = [
            Cell(f"{n / total:.0%}", (f"{n:,}",), "good" if b == body else "bad" * (n > 0)) for b, n in counts[task].items()
        ]
        rows.append(row(task, *cells))
    caption = f"Test tasks by the cluster they were given to, all epochs of {seeds_text(len(clustered))}"
    return TableView(caption, ("Task", *(f"cluster of mostly {body}" for body in bodies)), tuple(rows))


def clusters_table(results: Results) -> TableView:
    """Every seed's clusters."""
    names = results.task_set.tasks
    head = ("Seed", *names, "Rand index", "Purity", "Silhouette", "Assigned right", "Reward guard")
    rows = []
    for summary in results.clusters:
        if summary.failure:
            rows.append(row(str(summary.seed), summary.failure))
            continue
        counts = ["/".join(str(n) for n in summary.tasks_in_cluster[name]) for name in names]
        silhouette = summary.silhouette.get(str(summary.clusters))
        rows.append(
            row(
                str(summary.seed),
                *counts,
                f"{summary.adjusted_rand_index_bodies:.2f}",
                f"{summary.purity_bodies:.2f}",
                "-" if silhouette is None else f"{silhouette:.2f}",
                f"{summary.assignment_accuracy:.0%}",
                f"{summary.reward_guard_rate:.0%}",
            )
        )
    return TableView("Training tasks in each cluster; Rand index and purity against the bodies", head, tuple(rows))


def ledger_table(results: Results) -> TableView:
    """Environment steps of a seed by part of the experiment, and meta-updates."""
    ledger = results.ledger
    rows = [
        row(
            name,
            f"{budget:,}",
            f"{np.mean(ledger.taken[name]):,.0f}" if name in ledger.taken else "-",
            f"{ledger.meta_updates[name]:,}" if name in ledger.meta_updates else "-",
        )
        for name, budget in ledger.budget.items()
    ]
    caption = "Environment steps a seed (one step = one action); an episode that ends early costs what it lasted"
    return TableView(caption, ("", "Budget", "Taken (mean)", "Meta-updates"), tuple(rows))


def throughput_table(log: tuple[dict[str, Any], ...]) -> TableView | None:
    """Seconds and steps by stage from log.jsonl; a stage's first epoch, which compiles, stands by itself."""
    rows = []
    for stage in dict.fromkeys(record["stage"] for record in log):
        mine = [record for record in log if record["stage"] == stage]
        later = [record for record in mine if record["epoch"] > 1]
        pace = f"{np.median([r['seconds'] for r in later]):.2f}" if later else "-"
        speed = f"{np.median([r['steps'] / r['seconds'] for r in later]):,.0f}" if later else "-"
        total = sum(record["seconds"] for record in mine)
        rows.append(row(stage, str(len(mine)), f"{total:.1f}", f"{mine[0]['seconds']:.1f}", pace, speed))
    if not rows:
        return None
    seconds, steps = (sum(record[key] for record in log) for key in ("seconds", "steps"))
    rows.append(row("all", str(len(log)), f"{seconds:.1f}", "", "", f"{steps / seconds:,.0f}", total=True))
    head = ("Stage", "Epochs", "Seconds", "First epoch, s", "Later epochs, s (median)", "Environment steps/s")
    return TableView("Wall-clock time of all seeds together, tests included (log.jsonl)", head, tuple(rows))


def configuration_table(results: Results) -> TableView:
    """Every field of the configuration by its dotted name."""

    def flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flat(f"{prefix}.{name}" if prefix else name, inner)
        else:
            yield prefix, str(value)

    rows = tuple(row(*pair) for pair in flat("", results.config.to_json()))
    return TableView("config.json", ("Setting", "Value"), rows, True)


def ambiguity_table() -> TableView:
    """What the paper leaves open, and what is done here."""
    rows = tuple(row(*(text.replace("`", "").replace("**", "") for text in pair)) for pair in paper.AMBIGUITIES)
    caption = "Each is an option or a documented decision; numbers are those of Table 1"
    return TableView(caption, ("Open in the paper", "Here"), rows, True)


def verdict(run: RunFiles, summaries: list[ArmSummary], comparisons: list[Comparison]) -> list[str]:
    """What the run says about the paper's claim, in sentences made from the numbers."""
    results = run.results
    count = results.config.seeds
    ends = [(arm_title(results, s.arm), s.last5_iqm) for s in summaries if s.body is None and s.last5_iqm.count]
    texts = [f"{title} {number(e.value)} {interval(e)}".strip() for title, e in ends]
    kind = "interquartile mean over" if count > 1 else "from"
    sentences = [f"Mean return over the bodies, last five epochs, {kind} {seeds_text(count)}: {'; '.join(texts)}."]
    if comparisons and comparisons[-1].difference.count:
        sentences.append(_against(comparisons[-1]))
    if "herd" in results.arms:
        values = adaptation(results, run.curves, "herd")
        gains = (values["after"] - values["before"]).mean(0) if len(values["after"]) else np.array([])
        worse = [name for name, gain in zip(results.task_set.tasks, gains, strict=False) if gain <= 0]
        if len(gains):
            exception = f"; not on {', '.join(worse)}" if worse else ""
            sentences.append(
                f"Adaptation raises the herd's return on {len(gains) - len(worse)} of {len(gains)} tasks{exception}."
            )
    return sentences


def _against(overall: Comparison) -> str:
    """The herd against the single learner, and whether the seeds decide it."""

    def part(difference: Estimate) -> str:
        if difference.low is None:
            return f"{fixed(difference.value, sign=True)} (one seed: undecided)"
        decided = "undecided: the interval holds 0" if 0 in difference else "decided: the interval excludes 0"
        return f"{fixed(difference.value, sign=True)} {interval(difference)} ({decided})"

    return (
        f"Herd less single learner at equal environment steps, paired by seed: {part(overall.difference)} at the end, "
        f"{part(overall.difference_along)} averaged along the learning curve."
    )
