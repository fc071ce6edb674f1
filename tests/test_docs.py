"""The documentation: blocks of Python run as written, numbers are those of the results, Sphinx builds without a warning."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WRITTEN = [path for path in DOCS.rglob("*.md") if path.parent.name != "generated"]
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text() for path in WRITTEN}


@pytest.fixture(scope="module")
def generate():
    """The script that makes tables."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_blocks(page):
    """Names that the blocks of a page leave, run one after the other."""
    names = {"__name__": "page"}
    for block in python_blocks(page):
        exec(block, names)
    return names


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


RUN = {"guides/kernels", "guides/environments", "guides/scaling", "guides/results", "guides/herds", "guides/sweeps"}
RUN |= {"getting_started", "physics"}
"""Pages whose blocks a test below runs."""


def test_no_block_is_left_out():
    assert {page for page in PAGES if python_blocks(page)} == RUN


def test_the_first_page_names_settings_that_exist():
    assert run_blocks("getting_started")["config"].seeds == 2


def test_the_guide_to_results_reads_a_committed_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = run_blocks("guides/results")
    assert names["returns"].shape == (10, len(names["steps"]))
    assert len(capsys.readouterr().out.splitlines()) == len(names["analysis"].summaries)


def test_the_guide_to_herds_loads_one(tmp_path, monkeypatch, locomotion_herd):
    monkeypatch.chdir(tmp_path)
    locomotion_herd.save("runs/quick-1/herd/seed-0")
    names = run_blocks("guides/herds")
    assert names["action"].shape == (6,)
    before, after = ((tmp_path / where / "arrays.npz").read_bytes() for where in ("runs/quick-1/herd/seed-0", "my-herd"))
    assert before == after


def test_the_guide_to_sweeps_makes_rows_of_settings():
    grid = run_blocks("guides/sweeps")["grid"]
    np.testing.assert_allclose(grid.inner_step_size, [0.05, 0.1, 0.2])
    np.testing.assert_allclose(grid.trpo.max_kl, [0.01, 0.05, 0.05])


def test_the_page_on_physics_takes_square_roots():
    roots = run_blocks("physics")["roots"]
    if roots is not None:
        np.testing.assert_allclose(roots, np.sqrt(np.linspace(1.0, 9.0, 1_000)), rtol=1e-4)


def test_options_presets_and_files_that_the_pages_name_exist(generate):
    from tamherd_jax.experiments.presets import PRESETS

    text = "\n".join([*PAGES.values(), (ROOT / "README.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()])
    commands = re.findall(r"`(tamherd [^`]+)`", text)
    known = set(re.findall(r"--[a-z][a-z-]*", generate.command_line()))
    assert len(known) > 20
    assert {option for command in commands for option in re.findall(r"--[a-z][a-z-]*", command)} <= known
    assert set(re.findall(r"--preset ([a-z-]+)", text)) <= set(PRESETS)
    files = re.findall(r"`((?:benchmarks|docs|examples|tests|tamherd_jax)/[\w./-]+\.(?:py|csv|md|json))`", text)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_generated_pages_hold_the_numbers_of_the_files(generate):
    """One number of each kind of page, computed here from the raw file without the project's reporting."""
    runs = generate.read_runs()
    run = runs["tuned-maml-10-seeds"]
    best = [r.value for r in run.results.rows if (r.arm, r.body, r.statistic) == ("herd", "walker", "best")]
    lines = generate.run_section("tuned-maml-10-seeds", run).splitlines()
    (row,) = (line for line in lines if line.startswith("| Walker") and "(" in line)
    assert row.split("|")[4].split()[0] == f"{np.median(best):.1f}"
    assert row.rstrip(" |").endswith("(298.5)")
    assert "| clustering | Ward linkage" in generate.open_points()
    assert "| **Fisher, unweighted, cosine** (`quick`) | 100 / 100 |" in generate.embedding_studies()
    assert "python -m benchmarks maml_epoch" in generate.benchmark_tables()
    assert "| `paper-maml` | maml | 10 | 10 | 40 | 51 |" in generate.presets()
    with (ROOT / "benchmarks" / "results" / "sweep-inner-step-and-kl" / "sweep.csv").open(newline="") as file:
        wanted = {"maml.inner_step_size": "0.2", "maml.trpo.max_kl": "0.1", "arm": "herd", "statistic": "last5"}
        found = [r for r in csv.DictReader(file) if wanted.items() <= r.items()]
    walker = np.mean([float(r["value"]) for r in found if r["body"] == "walker"])
    overall = np.mean([float(r["value"]) for r in found])
    (row,) = (line for line in generate.sweep_tables().splitlines() if line.startswith("| 0.2 | 0.1 |"))
    cells = [cell.split()[0] for cell in row.strip("|").split("|")]
    assert (cells[4], cells[6]) == (f"{overall:.1f}", f"{walker:.1f}")


def test_the_guide_to_the_kernels_learns_sine_waves(capsys):
    """At 4,000 of the paper's 70,000 iterations, which the guide says end at 0.3145."""
    names = run_blocks("guides/kernels")
    error = float(capsys.readouterr().out)
    assert error < 1.2
    unadapted = float(jnp.mean(jax.vmap(names["mse"], (None, 0, 0))(names["params"], *names["query"])))
    assert error < 0.4 * unadapted
    kept = names["last_layer_alone"]["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kept, names["params"]["params"]["Dense_0"]["kernel"])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(names["step_size_gradient"]))
    assert bool(jnp.isfinite(names["value"]))
    assert jax.tree.structure(names["newton_step"]) == jax.tree.structure(names["params"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAXopt is no longer:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:brax")  # Brax 0.14 on the MJX of this year
def test_the_guide_to_environments_trains_ants(capsys):
    names = run_blocks("guides/environments")
    assert names["tasks"].task_names == ("east", "north", "west", "south")
    assert np.isfinite(names["metrics"].before).all()
    assert np.isfinite(names["metrics"].after).all()
    assert float(names["metrics"].steps) == 2 * 4 * 2 * 5
    assert float(names["velocities"].steps) == 2 * 2 * 2 * 5
    assert np.isfinite(names["velocities"].after).all()
    assert capsys.readouterr().out.strip() == "27 8"
    assert names["mixed"].mode_names == ("ant", "pendulum")


def test_the_guide_to_scaling_maps_learners():
    names = run_blocks("guides/scaling")
    alone = jnp.float32(0.3) * jax.random.normal(jax.random.key(2), (3,))
    np.testing.assert_allclose(names["trained"][2], alone, rtol=1e-6)
    assert (names["config"].seeds, names["config"].physics) == (100, "planar")


@pytest.mark.slow
def test_sphinx_builds_without_a_warning(tmp_path):
    """Internal links and anchors are part of what it warns of."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    from tamherd_jax import envs, maml

    for package, names in (("maml", maml.__all__), ("envs", envs.__all__)):
        for name in names:
            if callable(getattr(__import__(f"tamherd_jax.{package}", fromlist=[name]), name)):
                assert f">{name}<" in page, name
