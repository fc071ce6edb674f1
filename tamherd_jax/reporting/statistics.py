"""Statistics over seeds: the paper's, unbiased ones beside it, and their bootstrap intervals.

A value over all bodies is the mean over bodies of each body's value; its interval resamples the seeds of each body (stratum)
by themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from tamherd_jax.experiments.results import Results
from tamherd_jax.reporting.run_files import arm_curve, included, seed_values

CONFIDENCE = 0.95
RESAMPLES = 5000

Statistic = Callable[..., Any]
"""`(values [..., S], axis) -> [...]`."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
      value: of the data; NaN where there is none.
      low, high: ends of the 95% bootstrap interval (percentiles); None with fewer than two seeds.
      count: fewest seeds of any stratum.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    def __contains__(self, number: float) -> bool:
        """Whether the interval covers a number."""
        return self.low is not None and self.high is not None and self.low <= number <= self.high


def interquartile_mean(values: Any, axis: int = -1) -> Any:
    """Mean of what is left after cutting off the lowest and the highest quarter (`floor(S / 4)` seeds at each end)."""
    return scipy.stats.trim_mean(values, 0.25, axis=axis)


def estimate(strata: Sequence[np.ndarray], statistic: Statistic) -> Estimate:
    """Mean over strata of a statistic, with its stratified bootstrap interval.

    Args:
      strata: one array `[S_i]` a stratum, resampled with replacement independently of the others.
      statistic: of one stratum, vectorised over leading axes.

    Source: Agarwal et al. (2021), stratified bootstrap; `scipy.stats.bootstrap` resamples several samples independently.
    """
    strata = [np.asarray(stratum, float) for stratum in strata]
    count = min((len(stratum) for stratum in strata), default=0)
    if not count:
        return Estimate(float("nan"), None, None, 0)

    def combined(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([statistic(sample, axis=axis) for sample in samples], axis=0)

    value = float(combined(*strata))
    if count < 2:
        return Estimate(value, None, None, count)
    interval = scipy.stats.bootstrap(
        strata,
        combined,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), count)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> np.ndarray:
    """`[P, 2]` values of the seeds that both have."""
    common = sorted(set(first) & set(second))
    return np.array([(first[seed], second[seed]) for seed in common]).reshape(-1, 2)


def improvement(pairs: np.ndarray) -> np.ndarray:
    """Score pairs, `[P]`: 1 where the first of a pair is the larger, 1/2 where both are equal."""
    return (pairs[:, 0] > pairs[:, 1]) + 0.5 * (pairs[:, 0] == pairs[:, 1])


def probability_of_improvement(strata: Sequence[np.ndarray]) -> Estimate:
    """`P(first > second)` over seeds, ties counting half, from strata of pairs `[P_i, 2]`; seeds are resampled in pairs."""
    return estimate([improvement(pairs) for pairs in strata], np.mean)


def mean_difference(strata: Sequence[np.ndarray]) -> Estimate:
    """Mean of first minus second over seeds, from strata of pairs `[P_i, 2]`; seeds are resampled in pairs."""
    return estimate([pairs[:, 0] - pairs[:, 1] for pairs in strata], np.mean)


def mean_over_training(
    results: Results, curves: dict[str, np.ndarray], arm: str, body: str, horizon: float
) -> dict[int, float]:
    """Mean of an arm's curve over its environment steps up to `horizon`, by seed: how good it was all along.

    The trapezoidal integral from its first epoch to `horizon`, divided by the distance; it rewards learning fast.
    """
    steps, returns = arm_curve(results, curves, arm, body)
    grid = np.unique(np.append(steps[steps < horizon], min(horizon, steps[-1])))
    at_grid = np.array([np.interp(grid, steps, row) for row in returns]).reshape(-1, len(grid))
    means = np.trapezoid(at_grid, grid, axis=1) / (grid[-1] - grid[0]) if len(grid) > 1 else at_grid[:, 0]
    return dict(zip(results.seeds[included(results, arm)].tolist(), means.tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """One arm on one body, or on all (`body` None: the mean over bodies).

    Attributes:
      arm, body: which.
      best: median over seeds of the best epoch, the paper's statistic. It picks the luckiest of many noisy tests.
      last5: mean over seeds of the mean of the last five epochs.
      last5_iqm: interquartile mean over seeds of the same.
      before: mean over seeds of the return before adaptation, last five epochs.
      gain: mean over seeds of `last5 - before`, what adaptation brings.
    """

    arm: str
    body: str | None
    best: Estimate
    last5: Estimate
    last5_iqm: Estimate
    before: Estimate
    gain: Estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against another on one body or on all, paired by seed.

    Attributes:
      body: None for the mean over bodies.
      probability: that the first is better, mean of the last five epochs.
      difference: mean difference of the same.
      probability_along, difference_along: the same of `mean_over_training` up to the step both reach.
    """

    body: str | None
    probability: Estimate
    difference: Estimate
    probability_along: Estimate
    difference_along: Estimate


def summarize(results: Results) -> list[ArmSummary]:
    """Every arm on every body and on all."""
    bodies = results.task_set.bodies
    return [_summary(results, arm, body) for body in [*bodies, None] for arm in results.arms]


def _summary(results: Results, arm: str, body: str | None) -> ArmSummary:
    bodies = results.task_set.bodies if body is None else [body]

    def strata(statistic: str) -> list[np.ndarray]:
        return [np.array(list(seed_values(results, arm, b, statistic).values())) for b in bodies]

    gains = [last - before for last, before in zip(strata("last5"), strata("before"), strict=True)]
    return ArmSummary(
        arm,
        body,
        best=estimate(strata("best"), np.median),
        last5=estimate(strata("last5"), np.mean),
        last5_iqm=estimate(strata("last5"), interquartile_mean),
        before=estimate(strata("before"), np.mean),
        gain=estimate(gains, np.mean),
    )


def compare(results: Results, curves: dict[str, np.ndarray], first: str = "herd", second: str = "single") -> list[Comparison]:
    """One arm against another, per body and over all bodies, at equal environment steps."""
    bodies = results.task_set.bodies
    horizon = min(curves[f"{arm}/budget"][-1] for arm in (first, second))
    end, along = {}, {}
    for body in bodies:
        end[body] = paired(*(seed_values(results, arm, body, "last5") for arm in (first, second)))
        along[body] = paired(*(mean_over_training(results, curves, arm, body, horizon) for arm in (first, second)))
    rows: list[tuple[str | None, list[str]]] = [(body, [body]) for body in bodies] + [(None, list(bodies))]
    return [
        Comparison(
            name,
            probability_of_improvement([end[body] for body in members]),
            mean_difference([end[body] for body in members]),
            probability_of_improvement([along[body] for body in members]),
            mean_difference([along[body] for body in members]),
        )
        for name, members in rows
    ]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All statistics of a run: every arm on every body, and the herd against the single learner where both are there."""

    summaries: list[ArmSummary]
    comparisons: list[Comparison]


def analyse(results: Results, curves: dict[str, np.ndarray]) -> Analysis:
    """All statistics of a run from its files."""
    both = {"herd", "single"} <= set(results.arms)
    return Analysis(summarize(results), compare(results, curves) if both else [])
