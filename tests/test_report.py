"""report.html: self-contained, valid, and the same numbers as the result files; made again from these alone."""

import csv
import dataclasses
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import BODIES, PROBE, TASKS, synthetic_episodes, write_synthetic_run

from tamherd_jax import cli
from tamherd_jax.reporting import figures, paper, views
from tamherd_jax.reporting.animation import player_data
from tamherd_jax.reporting.report import make_report
from tamherd_jax.reporting.run_files import arm_curve, read_episodes, read_log, read_run_files

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect", "line", "circle"}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run's directory with everything that a report leaves in it, and its page."""
    directory = tmp_path_factory.mktemp("run")
    write_synthetic_run(directory, seeds=4, controls=("random_assignment",), excluded=(2,))
    synthetic_episodes(directory / "episodes.npz")
    path = make_report(directory, Console(file=io.StringIO()))
    assert path == directory / "report.html"
    return directory, path.read_text()


class Page(html.parser.HTMLParser):
    """Elements of a page; refuses tags that do not match, and ids that are used twice."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.elements, self.text, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if "table" in self.stack and ({"td", "th"} & set(self.stack)):
            self.tables[-1][-1][-1] += (" " if self.stack[-1] == "small" else "") + data.strip()


def test_the_page_is_well_formed_and_loads_nothing(reported):
    _, text = reported
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            target = attributes.get(name) or ""
            assert target.startswith(("#", "data:")) or not target, (tag, name, target)
    assert not re.search(r"@import|url\((?!#)|https?:|//[a-z]+\.|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert target in ids, target
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 3 + 3 + 3 + 4 + 4  # Figure 2, its controls, adaptation, Figures 3 and 4 of four seeds
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_figures_take_their_colours_from_the_page(reported):
    _, text = reported
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "var(--ink)" in drawing
        assert not set(re.findall(r"#[0-9a-f]{6}\b", drawing)) - {"#ffffff"}
        assert re.search(
            r"<text[^>]*>[^<]*return|<text[^>]*>[^<]*(?:principal|t-SNE)", drawing
        )  # words are words, not outlines


def find(page, first):
    return next(table for table in page.tables if table[0][: len(first)] == first)


def test_tables_agree_with_the_raw_files(reported):
    directory, text = reported
    page, curves = Page(text), np.load(directory / "curves.npz")
    rows = {row[0]: row[1:] for row in find(page, ["Body", "Oracle", "Single", "Herd of MAMLs"])[1:]}
    for column, arm in enumerate(("oracle", "single", "herd")):
        medians = {}
        for body in ("cheetah", "walker"):
            tasks = [i for i, b in enumerate(BODIES) if b == body]
            best = [
                row.max()
                for s, row in enumerate(curves[f"{arm}/after"][:, :, tasks].astype(float).mean(2))
                if (arm, s) != ("herd", 2)
            ]
            medians[body] = np.median(best)
            theirs = paper.PAPER["maml"][body][arm]
            cell = rows[body.capitalize()][column]
            assert cell.startswith(f"{medians[body]:.1f} [")
            assert cell.endswith(f"paper {theirs:.1f} ({medians[body] - theirs:+.1f})")
        assert rows["Mean of bodies"][column].startswith(f"{np.mean(list(medians.values())):.1f} [")
    for row in find(page, ["Task", "Arm", "Before", "After", "Change"])[1:]:
        task, arm = row[0], {"Oracle": "oracle", "Single": "single", "Herd of MAMLs": "herd"}.get(row[1], "random_assignment")
        counted = [s for s in range(4) if (arm, s) != ("herd", 2)]
        before, after = (curves[f"{arm}/{kind}"][counted, -5:, TASKS.index(task)].mean() for kind in ("before", "after"))
        assert row[2].split()[0] == f"{before:.1f}"
        assert row[3].split()[0] == f"{after:.1f}"
    confusion = {row[0]: row[1:] for row in find(page, ["Task", "cluster of mostly cheetah"])[1:]}
    assert confusion["walker-forward"] == ["100% 48", "0% 0"]
    assert confusion["walker-backward"] == ["0% 0", "100% 48"]
    assert find(page, ["Arm", "Seed", "Learner"])[1][:2] == ["Herd of MAMLs", "2"]


def test_the_herds_curve_is_the_probes_until_its_members_start(reported):
    directory, _ = reported
    run = read_run_files(directory)
    steps, returns = arm_curve(run.results, run.curves, "herd", "walker")
    alone, single = arm_curve(run.results, run.curves, "single", "walker")
    np.testing.assert_array_equal(steps[:4], alone[:4])
    np.testing.assert_array_equal(returns[:, :4], np.delete(single, 2, 0)[:, :4])
    assert steps[4] == 160_000 + 10_000 + 40_000
    assert arm_curve(run.results, run.curves, "oracle")[0][0] == 40_000


def test_a_probe_of_its_own_is_no_control(tmp_path):
    write_synthetic_run(tmp_path, controls=("multitask", "random_assignment"))
    run = read_run_files(tmp_path)
    assert figures.paper_arms(run.results) == ["oracle", "single", "herd"]
    config = dataclasses.replace(run.results.config, probe="multitask")
    run = dataclasses.replace(run, results=dataclasses.replace(run.results, config=config))
    assert figures.paper_arms(run.results) == ["oracle", "single", "herd", "multitask"]
    assert figures.control_arms(run.results) == ["herd", "random_assignment"]
    own = arm_curve(run.results, run.curves, "multitask")[1][:, :PROBE]
    np.testing.assert_array_equal(arm_curve(run.results, run.curves, "herd")[1][:, :PROBE], own)


def test_episodes_from_before_a_steps_seconds_were_recorded(tmp_path):
    synthetic_episodes(tmp_path / "new.npz")
    old = {name: array for name, array in np.load(tmp_path / "new.npz").items() if name != "dt"}
    np.savez(tmp_path / "episodes.npz", **old)
    data = player_data(read_episodes(tmp_path))
    assert [data["bodies"][body]["dt"] for body in ("cheetah", "walker")] == [0.05, 0.008]


def test_throughput_comes_from_whole_lines_of_the_log(reported):
    directory, _ = reported
    log = read_log(directory)
    assert len(log) == 10  # the half line at the end is not counted
    table = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in views.throughput_table(log).rows}
    assert table["probe"] == ["4", "16.0", "10.0", "2.00", "500"]
    assert table["all"][:2] == ["10", "52.0"]


def test_csv_files_hold_every_number(reported):
    directory, _ = reported
    results, curves = json.loads((directory / "results.json").read_text()), np.load(directory / "curves.npz")
    with open(directory / "rows.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in results["rows"]]
    with open(directory / "curves.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(curves[f"{arm}/after"].size for arm in ("oracle", "single", "herd", "random_assignment"))
    line = next(x for x in lines if (x["arm"], x["seed"], x["epoch"], x["task"]) == ("herd", "2", "3", "walker-forward"))
    assert np.float32(line["after"]) == curves["herd/after"][2, 2, 2]
    assert int(line["budget"]) == curves["herd/budget"][2]
    assert (line["excluded"], line["body"]) == ("1", "walker")


def test_the_report_is_made_again_from_result_files_alone(reported, tmp_path, capsys):
    directory, text = reported
    names = ("results.json", "curves.npz", "embeddings.npz")
    for name in names:
        shutil.copy(directory / name, tmp_path / name)
    cli.main(["report", str(tmp_path)])
    assert "Report:" in capsys.readouterr().out
    again = (tmp_path / "report.html").read_text()
    assert "No log.jsonl" in again
    assert "player-data" not in again
    cells = [Page(page).tables[0] for page in (text, again)]
    assert cells[0] == cells[1]
    first = again
    cli.main(["report", str(tmp_path)])
    assert (tmp_path / "report.html").read_text() == first  # to the byte


def test_runs_of_older_versions_one_seed_and_pearl_report_too(tmp_path):
    write_synthetic_run(tmp_path / "old", seeds=1)
    path = tmp_path / "old" / "results.json"
    results = json.loads(path.read_text())
    del results["excluded"]
    path.write_text(json.dumps(results))
    text = make_report(tmp_path / "old", Console(file=io.StringIO())).read_text()
    assert "one seed: undecided" in text
    write_synthetic_run(tmp_path / "pearl", seeds=2, algorithm="pearl")
    text = make_report(tmp_path / "pearl", Console(file=io.StringIO())).read_text()
    assert "Table 2" in text
    assert "String of PEARLs" in text
    assert "1004.5" in text


def test_a_herd_that_no_seed_has_leaves_a_dash(tmp_path):
    write_synthetic_run(tmp_path, seeds=2, excluded=(0, 1))
    console = Console(file=io.StringIO(), width=120)
    page = Page(make_report(tmp_path, console).read_text())
    assert find(page, ["Body", "Oracle", "Single", "Herd of MAMLs"])[1][3] == "-"


def test_a_damaged_episodes_file_gets_one_line(tmp_path, capsys):
    write_synthetic_run(tmp_path)
    (tmp_path / "episodes.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert "episodes.npz cannot be read" in error


def test_a_hundred_seeds_take_seconds(tmp_path):
    write_synthetic_run(tmp_path, seeds=100, member_epochs=40)
    start = time.process_time()
    make_report(tmp_path, Console(file=io.StringIO()))
    assert time.process_time() - start < 20


LOADED = """<script>addEventListener("load", () => {
  document.body.dataset.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).join(" ") || "nothing";
});</script>"""


def browse(text, directory):
    """What Chromium makes of a page: its elements once it ran, what it loaded, and lines of its console."""
    (directory / "page.html").write_text(text.replace("</body>", LOADED + "</body>"))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={directory / 'profile'}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=2000", "--dump-dom", f"file://{directory / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    loaded = re.search(r'data-loaded="([^"]*)"', done.stdout)[1]
    return done.stdout, loaded, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it_without_errors_or_requests(reported, tmp_path):
    _, text = reported
    page, loaded, console = browse(text, tmp_path)
    assert (loaded, console) == ("nothing", [])
    assert page.count('class="copy"') == page.count("<table")  # the page's program ran
    assert re.search(r"after adaptation: return [\d.]+ of 25.0", page)  # and the player's


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_browser_would_have_told(tmp_path):
    text = '<html><body><img src="http://127.0.0.1:9/no.png"><script>undefined_function()</script></body></html>'
    _, loaded, console = browse(text, tmp_path)
    assert loaded == "http://127.0.0.1:9/no.png"
    assert any("undefined_function" in line for line in console)


def test_returns_after_other_numbers_of_exploration_episodes_are_shown(tmp_path):
    write_synthetic_run(tmp_path, seeds=2)
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    returns = {"herd": [[[1.0, 10.0], [3.0, 30.0]], [[2.0, 20.0], [4.0, 40.0]]]}  # two seeds, two tasks, two numbers
    results["final_tests"] = {
        "task_set": "Held-Out",
        "tasks": ["a", "b"],
        "bodies": ["A", "B"],
        "shots": [0, 5],
        "returns": returns,
    }
    path.write_text(json.dumps(results))
    page = make_report(tmp_path, Console(file=io.StringIO())).read_text()
    table = page.split("tasks of Held-Out</caption>")[1].split("</table>")[0]
    assert re.findall(r">([\d.]+)<", table.split("<tbody>")[0]) == ["0", "5"]
    assert re.findall(r">([\d.]+)<", table.split("<tbody>")[1]) == ["2.5", "25.0"]


def test_figures_are_matplotlibs_and_leave_its_backend_alone(reported):
    run = read_run_files(reported[0])
    drawn = (figures.learning_curves(run.results, run.curves), figures.embedding_map(run.results, run.embeddings))
    assert [len(figure.axes) for figure in drawn] == [3, 4]  # all tasks and two bodies; four seeds
    program = "import sys, tamherd_jax.reporting.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
