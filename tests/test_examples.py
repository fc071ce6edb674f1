"""Every example runs, on a small setting, and does what it says."""

import importlib
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def example(monkeypatch):
    """Import an example as a program beside it would."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


def test_each_is_short_and_says_how_to_run_it():
    assert {"sine_maml", "own_environment", "own_meta_learner", "load_herd", "sweep", "fisher_of_a_network"} == set(NAMES)
    for name in NAMES:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert sum(bool(line.strip()) for line in text.splitlines()) < 80, name
        assert f"\npython examples/{name}.py" in text


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(quick_run, tmp_path, monkeypatch):
    """As written but for the length of the training; its programs are those that the quick preset compiled."""
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert "PROBE_EPOCHS, EPOCHS = 1, 5, 24" in parameters.source
    parameters.source = parameters.source.replace("1, 5, 24", "1, 3, 1")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # as that run's
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(quick_run.copy_cache(tmp_path / "programs")))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    shown = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert "Herd(MAML on ML2, seed" in printed
    assert "herd and oracle 1/1" in printed
    assert "loss after adaptation 0.0" in printed
    assert {"text/html", "image/png", "application/vnd.jupyter.widget-view+json"} <= shown  # animation, figure, progress bar


def test_sine_maml_learns_to_adapt(example):
    before, after = example("sine_maml").main(500)
    assert after < 0.9 * before


def test_own_environment_learns_to_adapt(example, capsys):
    before, after = example("own_environment").main(5)
    assert after > before + 0.3
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_own_meta_learner_makes_a_herd_of_two_modes(example):
    adapted = example("own_meta_learner").main(10)
    members = {name: policy.member for name, policy in adapted.items()}
    plain, mirrored = ({members[name] for name in members if name.startswith(mode)} for mode in ("plain", "mirrored"))
    assert len(plain) == len(mirrored) == 1
    assert plain != mirrored
    gains = [float(policy.after.returns.mean() - policy.before.returns.mean()) for policy in adapted.values()]
    assert np.mean(gains) > 0.3


def test_load_herd_acts_step_by_step(example, locomotion_herd, tmp_path, capsys):
    locomotion_herd.save(tmp_path)
    assert np.isfinite(example("load_herd").main(tmp_path, "cheetah-forward"))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_sweep_ranks_settings(example):
    sweep = example("sweep")
    ranked = sweep.main(2, 1)
    assert {setting for setting, _ in ranked} == {(a, b) for a in sweep.STEP_SIZES for b in sweep.KL_BOUNDS}
    means = [float(values.mean()) for _, values in ranked]
    assert means == sorted(means, reverse=True)


def test_fisher_matrices_tell_the_data_sets_apart(example):
    gram = np.asarray(example("fisher_of_a_network").main(32))
    cosine = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    same, other = (cosine[0, 1], cosine[2, 3]), cosine[:2, 2:]
    assert min(same) > other.max()
