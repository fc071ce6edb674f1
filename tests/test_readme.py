"""The README: two commands to start with, code that runs as written, results that are those of the committed files."""

import dataclasses
import io
import re
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(heading):
    """Text under a heading of the README."""
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_quick_start_is_two_commands():
    commands = [block.strip() for block in blocks("bash", section("Quick start"))]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert commands[0].endswith("tamherd run")
    assert commands[1].endswith("pytest")


def test_continuous_integration_runs_the_test_command_of_the_quick_start():
    script = (ROOT / ".ci" / "run").read_text()
    (extraction,) = re.findall(r"<<'P'\n(.*?)^P$", script, re.DOTALL | re.MULTILINE)
    printed = []
    exec(extraction, {"print": printed.append, "open": lambda name, **_: io.StringIO((ROOT / name).read_text())})
    assert printed == [blocks("bash", section("Quick start"))[1].strip()]


def test_every_number_in_the_results_is_that_of_the_committed_files():
    """The tables between the marks are made again from the files; the prose around them holds no measured number."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.remove(str(ROOT / "docs"))
    marked = generate.BLOCK.findall(README)
    assert marked
    assert len(re.findall("<!-- results:", README)) == len(marked)
    assert generate.fill(README, generate.read_runs()) == README, "run python docs/generate.py README.md"
    prose = generate.BLOCK.sub("", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    versions = {"3.11", "0.10", "0.12", "2.0"}  # of Python, JAX and the license
    assert set(re.findall(r"\d+\.\d+", prose)) <= versions
    measured = r"\d+(?:\.\d+)? ?(?:s|ms|minutes|hours|k|million|x|times)\b"
    assert not re.findall(measured, prose)


def test_links_and_images_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []


def test_it_is_short():
    assert len(README.splitlines()) <= 165


def run(*wanted):
    """Names that some of the README's Python blocks leave, run one after the other as written; a block by what it holds."""
    names = {}
    for text in wanted:
        (block,) = (block for block in blocks("python") if text in block)
        exec(block, names)
    return names


def test_a_stranger_adapts_a_flax_module():
    """One task's meta-gradient (all eight are equal) with the inner step written out."""
    names = run("meta_gradient")
    loss, params = names["loss"], names["params"]
    (x, y), (x2, y2) = jax.tree.map(lambda leaf: leaf[0], (names["support"], names["query"]))

    def after(params):
        inner = jax.grad(loss)(params, x, y)
        return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, inner), x2, y2)

    value, gradient = jax.jit(jax.value_and_grad(after))(params)
    np.testing.assert_allclose(names["value"], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), names["gradient"], gradient)
    assert float(loss(names["adapted"], x, y)) < float(loss(params, x, y))


def test_the_main_job_in_python(tmp_path, monkeypatch, locomotion_herd, capsys):
    """As written, but for what the experiment does: training is tested elsewhere."""
    import tamherd_jax
    from tamherd_jax.experiments.runner import Progress

    asked = []

    class Recorded:
        def __init__(self, config):
            asked.append(config)

        def run(self):
            yield Progress(**{field.name: field.name for field in dataclasses.fields(Progress)})

    monkeypatch.setattr(tamherd_jax, "Experiment", Recorded, raising=False)
    monkeypatch.chdir(tmp_path)
    locomotion_herd.save("ml2-maml")  # a directory comes before a herd of that name in the package
    names = run("experiment.run()", "Herd.load")
    assert [(config.preset, config.seeds) for config in asked] == [("quick", 1)]
    assert names["assignment"].member in (0, 1)
    assert names["action"].shape == (6,)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "stage epoch"
    assert len(printed) == 3


def test_every_public_name_loads():
    import tamherd_jax

    for name in tamherd_jax.__all__:
        assert getattr(tamherd_jax, name) is not None
    assert set(tamherd_jax.__all__) <= set(dir(tamherd_jax))
