"""The paper's table beside ours, the unbiased statistics, and the cluster result, for a terminal."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from tamherd_jax.experiments.results import Results
from tamherd_jax.reporting import paper
from tamherd_jax.reporting.run_files import algorithm_of, arm_title, included, left_out
from tamherd_jax.reporting.statistics import ArmSummary, Comparison, Estimate, estimate, summarize

PAPER_TASK_SET = "ML2"
"""Task set of the paper's tables."""


def fixed(value: float, digits: int = 1, sign: bool = False) -> str:
    """Format a number with `digits` decimals and, if asked, its sign; zero has none."""
    rounded = round(value, digits) + 0.0  # -0.0 becomes 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def number(value: float) -> str:
    """Format a number with one decimal, a missing one as a dash."""
    return fixed(value) if np.isfinite(value) else "-"


def interval(estimate: Estimate, digits: int = 1) -> str:
    """Format an interval as `[low, high]`; empty with fewer than two seeds."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{fixed(estimate.low, digits)}, {fixed(estimate.high, digits)}]"


def body_name(body: str | None) -> str:
    """Heading of a row."""
    return "Mean of bodies" if body is None else body.capitalize()


def paper_value(results: Results, arm: str, body: str | None) -> float | None:
    """The paper's number for an arm on a body, or its mean over the bodies it has; None where it has none."""
    if results.task_set.name != PAPER_TASK_SET:
        return None
    table = paper.PAPER.get(algorithm_of(results).name, {})
    if body is not None:
        return table.get(body, {}).get(arm)
    values = [table[b][arm] for b in results.task_set.bodies if arm in table.get(b, {})]
    return float(np.mean(values)) if values else None


def paper_table_number(results: Results) -> int | None:
    """Return the number of the paper's table that a run's results stand beside; None where the paper has no such runs."""
    table = algorithm_of(results).paper
    return table.number if table is not None and results.task_set.name == PAPER_TASK_SET else None


def paper_columns(results: Results) -> list[str]:
    """The arms that the paper has numbers for; all where it has none."""
    return [arm for arm in results.arms if paper_value(results, arm, None) is not None] or results.arms


def seeds_text(count: int) -> str:
    """Format a number of seeds: `1 seed`, `3 seeds`."""
    return f"{count} seed{'s' * (count != 1)}"


def returns_table(results: Results, statistic: str = "best", summaries: list[ArmSummary] | None = None) -> Table:
    """Returns after adaptation per arm and body, with 95% intervals where there are seeds for them.

    `best` is the paper's statistic, median over seeds of the best epoch, with the paper's number (10 seeds) under each, in its
    layout; `last5` the interquartile mean over seeds of the mean of the last five epochs.
    """
    what = {"best": "best epoch, median", "last5": "mean of the last five epochs, interquartile mean"}[statistic]
    title = f"Return after adaptation, {what} of {seeds_text(results.config.seeds)}"
    cells = {(s.arm, s.body): _returns_cell(results, s, statistic) for s in summaries or summarize(results)}
    bodies = [*results.task_set.bodies, None]
    lost = left_out_text(results)
    table = Table(title=title, caption=lost and f"left out, see excluded in results.json: {lost}")
    if statistic == "best":
        shown = paper_columns(results)
        _fill(table, "Body", [arm_title(results, arm) for arm in shown])
        for body in bodies:
            style = "bold" if body is None else None
            table.add_row(body_name(body), *[cells[arm, body] for arm in shown], style=style)
    else:
        _fill(table, "Arm", [body_name(body) for body in bodies])
        for arm in results.arms:
            table.add_row(arm_title(results, arm), *[cells[arm, body] for body in bodies])
    return table


def _fill(table: Table, first: str, others: list[str]) -> None:
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")


def _returns_cell(results: Results, summary: ArmSummary, statistic: str) -> str:
    ours = summary.best if statistic == "best" else summary.last5_iqm
    theirs = paper_value(results, summary.arm, summary.body) if statistic == "best" else None
    lines = [number(ours.value), interval(ours), "" if theirs is None else f"paper {theirs:.1f}"]
    return "\n".join(line for line in lines if line)


def shots_table(results: Results) -> Table | None:
    """Return after each number of exploration episodes by arm, mean over bodies, where a run measured it."""
    final = results.final_tests
    if final is None:
        return None
    table = Table(title=f"Return after exploration episodes, tasks of {final.task_set}, mean over bodies")
    _fill(table, "Arm", [str(count) for count in final.shots])
    for title, cells in shots_estimates(results):
        table.add_row(title, *(f"{number(cell.value)}\n{interval(cell)}".strip() for cell in cells))
    return table


def shots_estimates(results: Results) -> list[tuple[str, list[Estimate]]]:
    """Title of each arm, and its mean return over bodies after each number of exploration episodes of `final_tests`;
    empty where a run has none.
    """
    rows: list[tuple[str, list[Estimate]]] = []
    if (final := results.final_tests) is None:
        return rows
    bodies = np.array(final.bodies)
    for arm, returns in final.returns.items():
        values = np.array(returns, float)[included(results, arm)]  # [S, N, k]
        means = [values[:, bodies == body].mean(1) for body in dict.fromkeys(final.bodies)]
        cells = [estimate([one[:, index] for one in means], np.mean) for index in range(values.shape[2])]
        rows.append((arm_title(results, arm), cells))
    return rows


def comparison_table(comparisons: list[Comparison]) -> Table:
    """Whether the herd is better than the single learner, paired by seed, at the end and all along."""
    table = Table(title="Herd over single learner, paired by seed, at equal environment steps")
    for column in ("Body", "P(better)\nlast five", "difference\nlast five", "P(better)\nall along", "difference\nall along"):
        table.add_column(column, justify="left" if column == "Body" else "right")
    for row in comparisons:
        probabilities = [f"{p.value:.2f}\n{interval(p, 2)}".strip() for p in (row.probability, row.probability_along)]
        differences = [f"{fixed(d.value, sign=True)}\n{interval(d)}".strip() for d in (row.difference, row.difference_along)]
        cells = [cell for pair in zip(probabilities, differences, strict=True) for cell in pair]
        table.add_row(body_name(row.body), *cells, style="bold" if row.body is None else None)
    return table


def left_out_text(results: Results) -> str:
    """How many seeds each arm's statistics lack; empty where they lack none."""
    lost = {arm: left_out(results, arm) for arm in results.arms}
    return "; ".join(f"{arm_title(results, arm)}: {len(s)} of {results.config.seeds}" for arm, s in lost.items() if s)


def clusters_table(results: Results, most: int = 20) -> Table:
    """Per seed: which tasks went to which cluster, adjusted Rand index, and how test tasks were assigned."""
    rows = results.clusters
    more = f"the first {most} of {len(rows)} seeds; all are in report.html" if len(rows) > most else None
    table = Table(title="Clusters of training tasks (how many in each) and assignment of test tasks", caption=more)
    table.add_column("Seed", justify="right")
    for name in results.task_set.tasks:
        table.add_column(name.replace("-", "\n"), justify="center")
    for title in ("Rand\nindex", "assigned\nright", "reward\nguard"):
        table.add_column(title, justify="right")
    for row in rows[:most]:
        if row.failure:
            table.add_row(str(row.seed), *["-"] * (len(table.columns) - 1))
            continue
        counts = ["/".join(str(n) for n in row.tasks_in_cluster[name]) for name in results.task_set.tasks]
        table.add_row(
            str(row.seed),
            *counts,
            f"{row.adjusted_rand_index_bodies:.2f}",
            f"{row.assignment_accuracy:.0%}",
            f"{row.reward_guard_rate:.0%}",
        )
    return table


def ledger_table(results: Results) -> Table:
    """Environment steps a seed: the budget and the mean really taken."""
    table = Table(title="Environment steps a seed (one step = one action)")
    _fill(table, "", ["budget", "taken"])
    for name, budget in results.ledger.budget.items():
        table.add_row(name, f"{budget:,}", f"{np.mean(results.ledger.taken[name]):,.0f}")
    return table
