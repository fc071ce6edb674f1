"""The benchmark suite: that it runs, what it writes, counts and compares. No timing is asserted."""

import copy
import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cg_iterations, learning, pearl_exploration, pearl_learning, pearl_recipes, registry, tables
from benchmarks.__main__ import main
from benchmarks.cases import MODES, Call, Case, Child, Program, Quoted, get_mode
from benchmarks.compare import compare
from benchmarks.counting import count_operations
from benchmarks.csv_files import read_rows
from benchmarks.measure import add_ceilings, measure_benchmark
from benchmarks.open_loop import OpenLoop, episode_returns, search
from benchmarks.plot import curves
from benchmarks.results import SCHEMA, check, read_document, write_document
from benchmarks.statistics import summarize, verdict
from tamherd_jax.experiments.presets import get_preset
from tamherd_jax.herd.artefact import Herd

ROOT = Path(__file__).parents[1]
SMOKE = MODES["smoke"]


def measured(cases, mode=SMOKE, clock=lambda: 0.0):
    return {row["case"]: row for row in measure_benchmark("toy", cases, mode, clock, lambda text: None)}


def timing(*seconds, case="a case", **fields):
    summary = summarize(seconds)
    numbers = {name: getattr(summary, name) for name in ("count", "min", "q25", "median", "q75", "max", "iqr")}
    row = {"benchmark": "toy", "case": case, "unit": "task", "status": "measured", "note": "", "work": 2.0}
    return {**row, "seconds": numbers, "rate": 2.0 / summary.median, **fields}


def document(*rows):
    machine = {"device": "toy", "platform": "cpu", "cores": 2, "versions": {}, "commit": "0000000", "python": "3.11"}
    fields = {"mode": "quick", "names": [], "started": "2026-11-22", "seconds": 1.0, "load_before": 0.1, "load_after": 0.2}
    return {"schema": SCHEMA, "machine": machine, **fields, "ceilings": {}, "definitions": [], "rows": list(rows)}


# The suite itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks") / "run.json"
    assert main(["fisher_gram", "peers", "--mode", "smoke", "--out", str(path)]) == 0
    return path


def test_smoke_measures_what_it_was_asked_for(smoke):
    run = read_document(smoke)
    assert run["names"] == ["fisher_gram", "peers"]
    assert [row["benchmark"] for row in run["rows"]].count("machine") == 2
    assert {row["benchmark"] for row in run["rows"]} == {"machine", "fisher_gram", "peers"}
    assert {row["status"] for row in run["rows"]} == {"measured", "quoted"}
    for row in run["rows"]:
        if row["status"] == "quoted":
            continue
        assert row["seconds"]["count"] >= SMOKE.repeats
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
    factors = next(row for row in run["rows"] if row["case"].startswith("factors"))
    assert factors["operations"] > 0
    assert factors["bytes"] > 0
    assert factors["ceiling_fraction"] > 0
    assert factors["compile_s"] > 0
    assert factors["memory"] > 2**20
    assert run["machine"]["versions"]["jax"] == jax.__version__
    assert any(line.startswith("task: ") for line in run["definitions"])


def test_tables_and_plots_come_from_the_file_alone(smoke, capsys, tmp_path):
    assert main(["table", str(smoke), "fisher_gram"]) == 0
    text = capsys.readouterr().out
    assert "`python -m benchmarks fisher_gram`" in text
    assert "| factors, 2 tasks x 8 steps |" in text
    assert "gymnasium" not in text
    rows = [timing(1.0, 1.1, 1.2, case=f"at {n}", size=n, series="line") for n in (1, 10)]
    write_document(document(*rows), tmp_path / "run.json")
    assert main(["plot", str(tmp_path / "run.json")]) == 0
    assert (tmp_path / "run.png").stat().st_size > 1000
    assert [row["size"] for row in curves(document(*rows[::-1]))["toy"]["line"]] == [1, 10]
    assert main(["plot", str(smoke)]) == 2
    assert "nothing at several sizes" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_done(tmp_path, monkeypatch):
    def interrupted(mode):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.peers.cases", interrupted)
    path = tmp_path / "run.json"
    assert main(["peers", "--mode", "smoke", "--out", str(path)]) == 130
    assert {row["benchmark"] for row in read_document(path)["rows"]} == {"machine"}


def test_a_table_replaces_the_one_in_a_file(smoke, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("# Title\n<!-- benchmarks -->\nold\n<!-- end of benchmarks -->\nthe rest\n")
    for _ in range(2):
        assert main(["table", str(smoke), "fisher_gram", "--into", str(page)]) == 0
        text = page.read_text()
        assert text.startswith("# Title\n<!-- benchmarks -->\n")
        assert text.endswith("|\n<!-- end of benchmarks -->\nthe rest\n")
        assert "old" not in text
        assert text.count("fisher_gram") == 1
    page.write_text("no marks")
    assert main(["table", str(smoke), "--into", str(page)]) == 2
    assert page.read_text() == "no marks"
    assert "needs the marks" in capsys.readouterr().err


@pytest.mark.parametrize("name", [b.name for b in registry.benchmarks().values() if not b.alone])
def test_every_benchmark_can_be_traced(name):
    """Whatever it calls of the library is there; only what is traced, not compiled, so that it is cheap."""
    benchmark = registry.benchmarks()[name]
    for mode in ("quick", "full"):
        names = [case.name for case in benchmark.cases(get_mode(mode))]
        assert len(names) == len(set(names))
    found = benchmark.cases(get_mode("smoke"))
    programs = []
    if name not in ("startup", "table1", "scaling", "peers"):  # these start processes or run what they make
        programs = [job for case in found if isinstance(case, Case) and isinstance(job := case.make(), Program)]
        assert programs
    for job in programs:
        assert count_operations(jax.jit(job.fn).trace(*job.args).jaxpr.jaxpr).operations > 0


def test_an_experiment_is_run_from_its_start_again():
    from benchmarks.table1 import Repeated, configuration
    from tamherd_jax.experiments.state import RunState

    experiment = Repeated(configuration(SMOKE, 1)).experiment
    for _ in range(2):
        assert experiment.plan.work(experiment.state.done) == experiment.plan.work()
        experiment.state.learners["single"] = "trained"
        experiment.state.curves_of("single").record(steps=np.zeros(1))
        experiment.state.done["probe"] = 1
        assert experiment.plan.work(experiment.state.done) < experiment.plan.work()
        experiment.restart()
        assert experiment.state == RunState()


def test_list_names_them_all(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in registry.benchmarks():
        assert f"{name} " in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "unknown benchmark 'nonsense'; choose from machine"),
        (["physics_accuracy"], "python -m benchmarks.physics_accuracy"),
        (["machine", "--limit", "0"], "limit must be a positive number of seconds, not 0.0"),
        (["machine", "--mode", "slow"], "unknown mode 'slow'; choose from smoke, quick, full"),
        (["machine", "--out"], "--out"),
        (["machine", "--mode", "smoke", "--out", "nowhere/run.json"], "there is no directory nowhere"),
        (["machine", "--mode", "smoke", "--out", "there.json"], "there.json exists; name another"),
        (["table", "nowhere.json"], "cannot read nowhere.json: No such file"),
        (["compare", "nowhere.json", "nowhere.json"], "cannot read nowhere.json"),
        (["compare", "one.json"], "required: new"),
        (["compare", "a", "b", "--floor", "-1"], "floor must be a number from 0"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_mistakes_get_one_line_and_status_two(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("precious")
    assert main(arguments) == 2
    assert (tmp_path / "there.json").read_text() == "precious"
    error = capsys.readouterr().err
    assert error.startswith("benchmarks: ")
    assert error.count("\n") == 1
    assert words in error


def test_as_a_process():
    command = [sys.executable, "-m", "benchmarks", "compare", "nowhere.json", "b.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_committed_results_can_be_read():
    others = ("ahead_of_time", "accelerator-")  # documents of other programs
    files = [path for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")) if not path.name.startswith(others)]
    assert files
    for path in files:
        run = read_document(path)
        assert tables.markdown(run)
        assert run["machine"]["commit"] != "unknown"


def test_committed_learning_curves_name_settings_of_the_study():
    with (ROOT / "benchmarks" / "results" / "learning.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == learning.COLUMNS
    fields = [field for field in dataclasses.fields(learning.Learning) if field.name in learning.SETTINGS]
    hints = get_type_hints(learning.Learning)  # of a default of None the first of `kind | None`
    kinds = {f.name: get_args(hints[f.name])[0] if f.default is None else type(f.default) for f in fields}
    for row in found:
        options = learning.Learning(**{name: kind(row[name]) if row[name] else None for name, kind in kinds.items()})
        written = [getattr(options, name) for name in kinds]
        assert ["" if value is None else str(value) for value in written] == [row[name] for name in kinds]
        assert options.tasks == "all" or row["task"].startswith(options.tasks)


@pytest.mark.parametrize("file", ["pearl_recipes_1.csv", "pearl_recipes_2.csv", "pearl_contexts.csv"])
def test_tables_of_pearls_recipes_are_those_of_the_committed_curves(file):
    rows = read_rows(ROOT / "benchmarks" / "results" / file)
    assert {row["recipe"] for row in rows} <= set(pearl_learning.RECIPES)
    page = (ROOT / "docs" / "learning.md").read_text()
    for body in ("cheetah", "walker"):
        shown = page.split(f"<!-- {file}, {body} -->\n\n")[1].split("\n\n")[0].splitlines()
        assert len(shown) > 4
        assert shown == [line for line in pearl_recipes.table(rows, body) if line in shown]


@pytest.mark.parametrize("file", ["pearl_exploration_1.csv", "pearl_exploration_2.csv"])
def test_table_of_explorations_is_that_of_the_committed_adaptations(file):
    rows = read_rows(ROOT / "benchmarks" / "results" / file)
    assert tuple(rows[0]) == pearl_exploration.COLUMNS
    shown = (ROOT / "docs" / "learning.md").read_text().split(f"<!-- {file} -->\n\n")[1].split("\n\n")[0]
    assert shown.splitlines() == list(pearl_exploration.table(rows))


def test_a_table_of_explorations_counts_adaptations_below_half_of_the_best_mean():
    returns = {"mean": (0.0, 10.0), "noise": (20.0, 40.0)}
    rows = [
        {"task": "cheetah-forward", "exploration": kind, "episodes": "2", "before": "1.0", "after": str(after)}
        for kind, both in returns.items()
        for after in both
    ]
    assert list(pearl_exploration.table(rows))[2:] == [
        "| cheetah-forward | mean | 2 | 1 | 5 | 5 | 100% |",
        "| cheetah-forward | noise | 2 | 1 | 30 | 10 | 0% |",
    ]


def test_explorations_adapt_the_member_that_was_trained_on_the_task(monkeypatch):
    herd = Herd.load("ml2-pearl")
    twice = dataclasses.replace(herd, labels=np.repeat(herd.labels, 2))  # two embedded training tasks of each task
    first = jax.tree.leaves(herd.members)[0]

    def which(learner, kind, episodes):
        def adapt(keys, member, task):
            (row,) = (row for row in range(herd.size) if np.array_equal(first[row], jax.tree.leaves(member)[0]))
            return np.full(len(keys), row), np.zeros(len(keys))

        return adapt

    monkeypatch.setattr(pearl_exploration.Herd, "load", lambda name: twice)
    monkeypatch.setattr(pearl_exploration, "adaptations", which)
    rows = list(pearl_exploration.lines(pearl_exploration.Exploration(("herd",), episodes=(1,), repeats=1)))
    trained = [float(np.argmax(column)) for column in herd.member_tasks.T]
    assert len(set(trained)) == 2
    assert [float(row[5]) for row in rows] == 2 * trained


def test_explorations_need_a_herd_of_pearls():
    with pytest.raises(ValueError, match="ml2-maml is no herd of PEARLs"):
        next(pearl_exploration.lines(pearl_exploration.Exploration(("ml2-maml",))))


def test_tuned_pearl_is_a_recipe_of_the_comparison_with_contexts_of_another():
    both = "fine-scale-20-d99", "contexts-window-4000-episodes-2"
    recipe, contexts = (pearl_learning.RECIPES[name] for name in both)
    recipe = recipe | {name: value for name, value in contexts.items() if name.startswith("context_")}
    compared = dataclasses.replace(pearl_learning.BASE, **recipe)  # tested after exploring without noise
    assert get_preset("tuned-pearl").pearl == dataclasses.replace(compared, deterministic_exploration=False)


def test_a_summary_of_recipes_is_over_the_last_tests_of_all_seeds():
    after = np.zeros((2, 20))
    after[:, 13:18] = 7.0
    after[0, -5:], after[1, -5:] = 10.0, (14.0, 14.0, 20.0, 26.0, 26.0)
    after[0, 2] = 90.0
    tests = np.stack([after, after - 50.0, np.full((2, 20), 3.0)], -1)
    early = (np.mean([7, 7, 10, 10, 10]) + np.mean([7, 7, 14, 14, 20])) / 2
    spread = np.sqrt(np.mean(np.square([-6, -6, 0, 6, 6]))) / 2
    expected = (f"{early:.0f}", "15", f"{spread:.0f}", "10, 20", "58", "-35", "3")
    assert pearl_recipes.summary(tests) == expected


def test_a_search_for_the_best_controls_never_loses_what_it_found():
    options = OpenLoop(task="cheetah-backward", steps=20, candidates=64, physics="mujoco")
    best = list(itertools.islice(search(options), 4))
    assert best == sorted(best)
    assert best[-1] > float(episode_returns(options)(np.zeros((1, 4, 6), np.float32))[0]) + 1.0


# Measuring -----------------------------------------------------------------------------------------------------------


def test_compiling_is_apart_and_work_may_come_from_the_result():
    program = Program(lambda x: (x @ x, jnp.sum(x)), (jnp.ones((4, 4)),))
    row = measured([Case("product", lambda: program, "task", lambda out: float(out[1]))])["product"]
    assert row["work"] == 16.0
    assert row["rate"] == pytest.approx(16.0 / row["seconds"]["median"])
    assert row["operations"] == 2 * 4**3 + 16
    assert row["bytes"] == pytest.approx(4 * (16 + 16 + 1), abs=32)  # a backend may count the pair's pointers
    assert row["trace_s"] > 0
    assert row["compile_s"] > 0
    add_ceilings([row], copy_rate=1e6, product_rate=1e3)
    assert row["ceiling_fraction"] == pytest.approx((144 / 1e3) / row["seconds"]["median"])


def test_cases_take_turns():
    order = []
    jobs = [Case(name, lambda n=name: Call(lambda: order.append(n) or 1.0, own_clock=True), "start", 1.0) for name in "ab"]
    measured(jobs)
    assert order == ["a", "b"] * SMOKE.repeats


def test_a_clock_of_its_own_is_believed():
    readings, closed = iter([Child(3.0, 10), Child(1.0, 30), Child(2.0, 20)]), []
    job = Call(lambda: next(readings), own_clock=True, close=lambda: closed.append(True))
    row = measured([Case("child", lambda: job, "start", 1.0, repeats=3)])["child"]
    assert row["seconds"]["median"] == 2.0
    assert row["memory"] == 30
    assert closed == [True]


def test_a_failure_is_a_row_and_ends_nothing():
    def broken():
        raise RuntimeError("no such peer\nand more")

    def later():
        def run():
            if calls:
                raise OSError("disk full")
            calls.append(1)
            return 1.0

        calls = []
        return Call(run, own_clock=True)

    sound = Case("sound", lambda: Call(lambda: 1.0, own_clock=True), "start", 1.0)
    rows = measured([Case("broken", broken, "start", 1.0), Case("later", later, "start", 1.0), sound])
    assert rows["broken"]["status"] == rows["later"]["status"] == "failed"
    assert rows["broken"]["note"] == "RuntimeError: no such peer"
    assert rows["sound"]["status"] == "measured"


def test_a_ratio_to_a_quoted_figure():
    theirs = Quoted("theirs, long", 10.0, "task", 5.0, "somewhere", "theirs")
    row = measured([Case("ours", lambda: Call(lambda: 2.0, own_clock=True), "task", 3.0, against=theirs)])["ours"]
    assert row["against"] == {"name": "theirs", "ratio": pytest.approx(3.0)}
    assert "1.5 tasks/s (3.0 x theirs, quoted)" in tables.cells(row)


def test_when_time_is_over_the_rest_is_skipped_but_quotes_are_shown():
    cases = [Case("late", lambda: pytest.fail("was started"), "start", 1.0), Quoted("theirs", 2.0, "task", 1.0, "somewhere")]
    rows = measured(cases, clock=lambda: SMOKE.limit + 1)
    assert rows["late"]["status"] == "skipped"
    assert rows["theirs"]["rate"] == 0.5
    assert "somewhere" in tables.cells(rows["theirs"])[0]


# Counting operations -------------------------------------------------------------------------------------------------


def operations(fn, *args):
    return count_operations(jax.make_jaxpr(fn)(*args).jaxpr)


def test_operations_of_products_loops_and_branches():
    x = jnp.ones((8, 8))
    product = 2 * 8**3
    assert operations(jnp.dot, x, x) == (product, True)
    batched = operations(jax.vmap(jnp.dot), jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6)))
    assert batched == (3 * 2 * 4 * 5 * 6, True)
    assert operations(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=10)[0], x) == (10 * product, True)
    assert operations(lambda x: jax.lax.fori_loop(0, 7, lambda _, c: c @ c, x), x) == (7 * product, True)
    assert operations(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), x).operations == product + 1 - 1
    assert operations(jax.jit(lambda x: jnp.sum(jnp.tanh(x))), x) == (128, True)


def test_what_cannot_be_counted_is_said():
    x = jnp.ones((8, 8))
    unknown = operations(lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ c, x), x)
    assert unknown == (2 * 8**3, False)
    host = operations(lambda x: jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct((8, 8), x.dtype), x), x)
    assert host == (0.0, False)
    assert tables.cells(timing(1.0, operations=5.0, operations_complete=False))[8] == ">= 5"


def test_integers_and_moves_are_free():
    assert operations(lambda i: i + 1, jnp.arange(9)) == (0.0, True)
    assert operations(lambda x: x.T.reshape(-1)[::2], jnp.ones((4, 4))) == (0.0, True)


# Statistics and comparisons ------------------------------------------------------------------------------------------


def test_summary_is_of_order_statistics():
    summary = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.count, summary.min, summary.median, summary.max, summary.iqr) == (5, 1.0, 3.0, 5.0, 2.0)
    assert summary.spread == 4.0
    for bad in ([], [1.0, float("nan")], [-1.0]):
        with pytest.raises(ValueError, match="at least one run"):
            summarize(bad)


def test_verdict_needs_more_than_the_spread_and_the_floor():
    old = summarize([1.0, 1.0, 1.1, 1.2, 1.2])
    assert verdict(old, summarize([1.2, 1.2, 1.3, 1.3, 1.5])) == "same"  # 0.2 apart, spreads 0.2 and 0.3
    assert verdict(old, summarize([1.3, 1.3, 1.35, 1.4, 1.4])) == "slower"  # 0.25 apart, spreads 0.2 and 0.1
    assert verdict(old, summarize([1.5, 1.5, 1.6, 1.7, 1.7])) == "slower"
    assert verdict(summarize([1.5, 1.5, 1.6, 1.7, 1.7]), old) == "faster"
    steady = summarize([1.0] * 5)
    assert verdict(steady, summarize([1.04] * 5)) == "same"
    assert verdict(steady, summarize([1.04] * 5), floor=0.01) == "slower"
    assert verdict(steady, summarize([9.0] * 2)) == "too few runs"


def test_noise_alone_is_seldom_a_regression():
    rng = np.random.default_rng(0)
    runs = np.abs(1 + 0.1 * rng.standard_normal((400, 2, 9)))
    verdicts = [verdict(summarize(a), summarize(b)) for a, b in runs]
    assert verdicts.count("slower") + verdicts.count("faster") < 8
    assert verdict(summarize(runs[0, 0]), summarize(2 * runs[0, 1])) == "slower"


def test_a_planted_regression_is_found_and_named(tmp_path, capsys):
    old = document(timing(1.0, 1.01, 1.02), timing(1.0, 1.01, 1.02, case="other"))
    new = copy.deepcopy(old)
    new["rows"][1] = timing(1.3, 1.31, 1.32, case="other")
    paths = []
    for name, content in (("a", old), ("b", new)):
        paths.append(str(tmp_path / f"{name}.json"))
        write_document(content, Path(paths[-1]))
    assert main(["compare", paths[0], paths[0]]) == 0
    assert main(["compare", *paths]) == 1
    assert "toy: other" in capsys.readouterr().out
    assert main(["compare", *paths[::-1]]) == 0
    assert main(["compare", *paths, "--floor", "0.5"]) == 0


def test_changes_by_kind_and_by_unit():
    failed = {**timing(1.0, case="fails"), "status": "failed", "note": "why"}
    quoted = {**timing(1.0, case="theirs"), "status": "quoted"}
    old = document(timing(1.0, 1.0, 1.0, case="fails"), timing(2.0, 2.0, 2.0), timing(1.0, case="gone"), quoted)
    more = timing(4.0, 4.0, 4.0, work=4.0)  # twice the time for twice the work
    new = document(failed, more, timing(1.0, case="new"), {**quoted, "seconds": {"median": 9.0}})
    verdicts = {change.case: change.verdict for change in compare(old, new)}
    assert verdicts == {"fails": "broken", "a case": "same", "new": "new", "gone": "gone"}
    assert {change.case: change.verdict for change in compare(new, old)}["fails"] == "mended"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: d.pop("machine"), "machine is missing"),
        (lambda d: d.update(schema=99), "has schema 99"),
        (lambda d: d.update(load_before=float("nan")), "load_before is missing or no float"),
        (lambda d: d["rows"].append(d["rows"][0]), "occurs twice"),
        (lambda d: d["rows"][0].pop("seconds"), "seconds is missing"),
        (lambda d: d["rows"][0]["seconds"].pop("q25"), "q25 is missing"),
        (lambda d: d["rows"][0].update(status="great"), "none of measured"),
        (lambda d: d["rows"][0].update(status="failed"), "without a reason"),
        (lambda d: d["machine"].update(cores="two"), "cores is missing or no int"),
    ],
)
def test_damaged_files_are_refused(damage, words, tmp_path):
    bad = document(timing(1.0, 1.1, 1.2))
    check(bad, "a run")
    damage(bad)
    path = tmp_path / "bad.json"
    with pytest.raises(ValueError, match=words):
        write_document(bad, path)
    assert not list(tmp_path.iterdir())
    path.write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=words):
        read_document(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document(timing(1.0)))[:-20])
    with pytest.raises(ValueError, match="is no JSON file"):
        read_document(path)


@pytest.mark.parametrize(
    ("value", "as_number", "as_seconds"),
    [
        (None, "", ""),
        (0.0, "0", "0 us"),
        (4.5e-6, "4.5e-06", "4.5 us"),
        (0.0123, "0.0123", "12.3 ms"),
        (12.345, "12.3", "12.3 s"),
        (999.7, "1 k", "1,000 s"),
        (2.5e7, "25 M", "25,000,000 s"),
        (3.2e15, "3,200 T", "3,200,000,000,000,000 s"),
    ],
)
def test_numbers_read_well(value, as_number, as_seconds):
    assert tables.number(value) == as_number
    assert tables.seconds(value) == as_seconds


def test_the_pytorch_peer_computes_the_same_curvature():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_maml

    peer = torch_maml.TorchMAML(2, 2, 4, 3, 2)
    theta = {name: p.clone().requires_grad_() for name, p in peer.params.items()}
    outputs, flat = peer.outputs(theta), torch_maml.flatten_all(peer.params.values())
    old = tuple(out.detach() for out in outputs)
    vector = torch.randn_like(flat)
    expected = torch.autograd.functional.hvp(lambda x: torch_maml.kl(old, peer.outputs(peer.unflatten(x))), flat, vector)[1]
    found = peer.curvature(outputs, theta)(vector) - 1e-5 * vector
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-6)
    assert peer.trust_region_step() < float(peer.loss(peer.params))


def test_the_study_of_iterations_compares_the_same_seeds_over_the_last_epochs():
    rng, rows = np.random.default_rng(0), []
    for seed in range(6):
        level = 100.0 * rng.normal()
        for iterations, more in ((3, -2.0), (10, 0.0)):
            for epoch in range(1, 31):
                after = level + more if epoch > 20 else 1e6
                rows.append({"tasks": "all", "cg_iterations": str(iterations), "seed": str(seed), "epoch": str(epoch)})
                rows[-1] |= {"task": "walker-forward", "after": str(after)}
    three, ten = cg_iterations.report(rows)
    assert three.startswith("all, 3 iterations: ")
    assert three.endswith("against 10: -2.0 [-2.0, -2.0]")
    assert ten.endswith("against 10: +0.0 [+0.0, +0.0]")


def test_the_page_on_learning_has_the_study_of_iterations_as_it_was_recorded():
    """Of every kind: its return and, but for the largest number of iterations, the difference to that."""
    results, page = ROOT / "benchmarks" / "results" / "cg_iterations.csv", (ROOT / "docs" / "learning.md").read_text()
    lines = list(cg_iterations.report(read_rows(results)))
    assert len(lines) == 6
    for line in lines:
        kind, returns = line.split(" iterations: ")
        whole, _, difference = returns.partition(", against 10: ")
        tasks, iterations = kind.split(", ")
        last = "" if iterations == "10" else f" {difference}"
        assert f"| {tasks} | {iterations} | {whole} |{last} |" in page.replace("|  |", "| |")
