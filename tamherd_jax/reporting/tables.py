"""The paper's Table 1 beside ours, and the cluster result, for a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

PAPER_TABLE_1 = {
    "cheetah": {"oracle": 221.6, "single": 236.6, "herd": 221.2},
    "walker": {"oracle": 298.5, "single": 229.7, "herd": 298.5},
}
"""Median over 10 seeds of the best return (40 epochs of MAML); the single learner's walker is also printed as 229.1."""

ARM_TITLES = {"oracle": "Oracle", "single": "Single", "herd": "Herd of MAMLs"}


def seed_values(results: dict[str, Any], arm: str, body: str, statistic: str) -> np.ndarray:
    """`[S]` values of one statistic, in the order of the seeds."""
    wanted = (arm, body, statistic)
    return np.array([r["value"] for r in results["rows"] if (r["arm"], r["body"], r["statistic"]) == wanted])


def returns_table(results: dict[str, Any], statistic: str = "best") -> Table:
    """Median over seeds of a statistic per body and arm; the best epoch's with the paper's numbers (10 seeds) beside."""
    what = {"best": "best epoch", "final": "last epoch", "last5": "mean of the last five epochs"}[statistic]
    seeds, with_paper = results["config"]["seeds"], statistic == "best"  # the paper's statistic
    title = f"Return after adaptation, {what}, median of {seeds} seed{'s' * (seeds > 1)}"
    table = Table(title=title, caption=_left_out(results))
    table.add_column("Body")
    for title in ARM_TITLES.values():
        table.add_column(title, justify="right")
        if with_paper:
            table.add_column("paper", justify="right", style="dim")
    ours_all: dict[str, list[float]] = {arm: [] for arm in ARM_TITLES}
    paper_all: dict[str, list[float]] = {arm: [] for arm in ARM_TITLES}
    for body in results["task_set"]["bodies"]:
        cells = [body.capitalize()]
        for arm in ARM_TITLES:
            values = seed_values(results, arm, body, statistic)
            ours = float(np.median(values)) if len(values) else float("nan")
            ours_all[arm].append(ours)
            paper = PAPER_TABLE_1.get(body, {}).get(arm)
            paper_all[arm] += [] if paper is None else [paper]
            cells += [f"{ours:.1f}", *_paper_cell(paper, with_paper)]
        table.add_row(*cells)
    means: list[str] = []
    for arm in ARM_TITLES:
        means += [_mean(ours_all[arm]), *([_mean(paper_all[arm])] if with_paper else [])]
    table.add_row("Mean of bodies", *means, style="bold")
    return table


def _left_out(results: dict[str, Any]) -> str | None:
    """How many seeds each arm's statistics lack, None where they lack none."""
    seeds = {arm: {e["seed"] for e in results["excluded"] if e["arm"] == arm} for arm in ARM_TITLES}
    texts = [f"{ARM_TITLES[arm]}: {len(lost)} of {results['config']['seeds']}" for arm, lost in seeds.items() if lost]
    return f"left out, see excluded in results.json: {'; '.join(texts)}" if texts else None


def _paper_cell(value: float | None, shown: bool) -> list[str]:
    return ([""] if value is None else [f"{value:.1f}"]) if shown else []


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" if values else ""


def clusters_table(results: dict[str, Any]) -> Table:
    """Per seed: which tasks went to which cluster, adjusted Rand index, and how test tasks were assigned."""
    table = Table(title="Clusters of training tasks (draws in each cluster) and assignment of test tasks")
    table.add_column("Seed", justify="right")
    for name in results["task_set"]["tasks"]:
        table.add_column(name.replace("-", "\n"), justify="center")
    for title in ("Rand\nindex", "assigned\nright", "reward\nguard"):
        table.add_column(title, justify="right")
    for row in results["clusters"]:
        if row["failure"]:
            table.add_row(str(row["seed"]), *["-"] * (len(table.columns) - 1))
            continue
        counts = ["/".join(str(n) for n in row["tasks_in_cluster"][name]) for name in results["task_set"]["tasks"]]
        table.add_row(
            str(row["seed"]),
            *counts,
            f"{row['adjusted_rand_index_bodies']:.2f}",
            f"{row['assignment_accuracy']:.0%}",
            f"{row['reward_guard_rate']:.0%}",
        )
    return table


def ledger_table(results: dict[str, Any]) -> Table:
    """Environment steps a seed: the budget and the mean really taken."""
    table = Table(title="Environment steps a seed (one step = one action)")
    table.add_column("")
    for name in results["ledger"]["budget"]:
        table.add_column(name, justify="right")
    table.add_row("budget", *[f"{value:,}" for value in results["ledger"]["budget"].values()])
    table.add_row("taken", *[f"{np.mean(value):,.0f}" for value in results["ledger"]["taken"].values()])
    return table
