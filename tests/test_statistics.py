"""Statistics over seeds: against hand-made numbers, a plain resampling loop, and the raw files."""

import numpy as np
import pytest
from synthetic_run import BODIES, PROBE, write_synthetic_run

from tamherd_jax.experiments.results import read_run
from tamherd_jax.reporting import statistics, tables
from tamherd_jax.reporting.statistics import estimate, interquartile_mean


def test_interquartile_mean_cuts_a_quarter_at_each_end():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, -50, 5, 6])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([1.0, 2.0, 9.0])) == pytest.approx(4.0)  # three seeds: nothing to cut


@pytest.mark.parametrize("statistic", [np.median, np.mean, interquartile_mean])
def test_intervals_equal_a_plain_stratified_bootstrap(statistic):
    rng = np.random.default_rng(1)
    strata = [rng.normal(0, 1, 12), rng.normal(50, 20, 9)]
    ours = estimate(strata, statistic)
    assert ours.value == pytest.approx(np.mean([statistic(s) for s in strata]))
    draws = [np.mean([statistic(rng.choice(s, len(s))) for s in strata]) for _ in range(4000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    tolerance = 0.12 * (high - low)
    assert abs(ours.low - low) < tolerance
    assert abs(ours.high - high) < tolerance
    assert ours.count == 9


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = [10.0 in estimate([rng.normal(10, 3, 20)], np.mean) for _ in range(60)]
    assert 0.8 <= np.mean(covered) <= 1.0


def test_one_seed_has_no_interval_and_none_has_no_value():
    one = estimate([np.array([3.0])], np.mean)
    assert (one.value, one.low, one.high, one.count) == (3.0, None, None, 1)
    assert 3.0 not in one
    assert np.isnan(estimate([np.array([])], np.mean).value)


def test_improvement_pairs_seeds_and_halves_ties():
    pairs = statistics.paired({0: 1.0, 1: 5.0, 2: 3.0, 7: 9.0}, {2: 3.0, 1: 4.0, 0: 2.0, 5: 0.0})
    np.testing.assert_array_equal(pairs, [[1, 2], [5, 4], [3, 3]])
    assert statistics.probability_of_improvement([pairs]).value == pytest.approx(0.5)
    # Paired: every seed improves by one, however far apart the seeds are.
    spread = np.array([[11.0, 10.0], [21.0, 20.0], [31.0, 30.0]])
    assert statistics.probability_of_improvement([spread]).value == 1.0
    difference = statistics.mean_difference([spread])
    assert (difference.value, difference.low, difference.high) == (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("synthetic")
    write_synthetic_run(directory, seeds=6, first_seed=3, controls=("random_assignment",), excluded=(5,))
    return read_run(directory)


def returns(curves, arm, body, kind="after"):
    """`[S][E]` mean over a body's tasks, by plain loops."""
    array = curves[f"{arm}/{kind}"]
    tasks = [i for i, b in enumerate(BODIES) if b == body]
    return [[sum(float(array[s, e, t]) for t in tasks) / len(tasks) for e in range(array.shape[1])] for s in range(len(array))]


def counted(arm, rows):
    """Rows of the seeds that count: seed 5, the third, lost its herd."""
    return [row for s, row in enumerate(rows) if not (arm == "herd" and s == 2)]


def test_summaries_equal_what_the_raw_curves_say(run):
    results, curves, _ = run
    summaries = {(s.arm, s.body): s for s in statistics.summarize(results)}
    assert {arm for arm, _ in summaries} == {"oracle", "single", "herd", "random_assignment"}
    for arm in ("oracle", "single", "herd", "random_assignment"):
        per_body = []
        for body in ("cheetah", "walker"):
            after, before = (counted(arm, returns(curves, arm, body, kind)) for kind in ("after", "before"))
            best = sorted(max(row) for row in after)
            half = len(best) // 2
            expected_best = best[half] if len(best) % 2 else (best[half - 1] + best[half]) / 2
            last = sorted(sum(row[-5:]) / 5 for row in after)
            cut = len(last) // 4
            middle = last[cut : len(last) - cut]
            old = [sum(row[-5:]) / 5 for row in before]
            s = summaries[arm, body]
            expected = (expected_best, sum(last) / len(last), sum(middle) / len(middle), sum(old) / len(old))
            ours = (s.best.value, s.last5.value, s.last5_iqm.value, s.before.value)
            np.testing.assert_allclose(ours, expected, rtol=1e-6)
            assert s.gain.value == pytest.approx(expected[1] - expected[3], rel=1e-6)
            assert s.best.count == len(after)
            per_body.append(expected)
        total = summaries[arm, None]
        np.testing.assert_allclose((total.best.value, total.last5.value), np.mean(per_body, 0)[:2], rtol=1e-6)


def test_the_comparison_equals_the_raw_curves(run):
    results, curves, _ = run
    rows = {c.body: c for c in statistics.compare(results, curves)}
    differences = {}
    for body in ("cheetah", "walker"):
        herd, single = (counted("herd", returns(curves, arm, body)) for arm in ("herd", "single"))
        end = [sum(h[-5:]) / 5 - sum(s[-5:]) / 5 for h, s in zip(herd, single, strict=True)]
        assert rows[body].difference.value == pytest.approx(np.mean(end), rel=1e-6)
        assert rows[body].probability.value == pytest.approx(np.mean([d > 0 for d in end]))
        # All along: herd = the single learner's curve while the probe trains, then its own; equal steps at the end of the herd.
        x_single, x_herd = curves["single/budget"], np.concatenate([curves["single/budget"][:PROBE], curves["herd/budget"]])
        horizon = min(x_herd[-1], x_single[-1])
        fine = np.linspace(40_000, horizon, 20_001)
        along = [
            np.mean(np.interp(fine, x_herd, [*s[:PROBE], *h]) - np.interp(fine, x_single, s))
            for h, s in zip(herd, single, strict=True)
        ]
        assert rows[body].difference_along.value == pytest.approx(np.mean(along), rel=2e-3)
        differences[body] = np.mean(end)
    assert rows[None].difference.value == pytest.approx(np.mean(list(differences.values())), rel=1e-6)


def test_the_printed_table_shows_these_numbers(run):
    results, _, _ = run
    table = tables.returns_table(results)
    assert [column.header for column in table.columns] == ["Body", "Oracle", "Single", "Herd of MAMLs"]
    summaries = {(s.arm, s.body): s for s in statistics.summarize(results)}
    columns = {str(column.header): list(column.cells) for column in table.columns}
    for arm, title, paper in (
        ("herd", "Herd of MAMLs", ("221.2", "298.5", "259.9")),
        ("single", "Single", ("236.6", "229.7", "233.1")),
    ):
        for cell, body, theirs in zip(columns[title], ("cheetah", "walker", None), paper, strict=True):
            value, interval, printed = cell.split("\n")
            best = summaries[arm, body].best
            assert value == f"{best.value:.1f}"
            assert interval == f"[{best.low:.1f}, {best.high:.1f}]"
            assert printed == f"paper {theirs}"
    assert "Herd of MAMLs: 1 of 6" in str(table.caption)
    unbiased = tables.returns_table(results, "last5")
    rows = dict(zip(unbiased.columns[0].cells, unbiased.columns[3].cells, strict=True))
    assert list(rows) == ["Oracle", "Single", "Herd of MAMLs", "Random assignment"]
    assert rows["Random assignment"].startswith(f"{summaries['random_assignment', None].last5_iqm.value:.1f}\n[")


def test_numbers_print_without_negative_zeros():
    assert [tables.fixed(x, 1, True) for x in (-0.04, 0.0, 0.06, -0.06)] == ["0.0", "0.0", "+0.1", "-0.1"]
    assert tables.number(float("nan")) == "-"
