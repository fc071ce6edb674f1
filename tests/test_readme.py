import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_quick_start_is_two_commands():
    commands = [block.strip() for block in blocks("bash")]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert commands[0].endswith("tamherd run")
    assert commands[1].endswith("pytest")


def run(*indices):
    """Names that some of the README's Python blocks leave, run one after the other as written."""
    names = {}
    for index in indices:
        exec(blocks("python")[index], names)
    return names


def test_a_stranger_adapts_a_flax_module():
    """One task's meta-gradient (all eight are equal) with the inner step written out."""
    names = run(0)
    loss, params = names["loss"], names["params"]
    (x, y), (x2, y2) = jax.tree.map(lambda leaf: leaf[0], (names["support"], names["query"]))

    def after(params):
        inner = jax.grad(loss)(params, x, y)
        return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, inner), x2, y2)

    value, gradient = jax.jit(jax.value_and_grad(after))(params)
    np.testing.assert_allclose(names["value"], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), names["gradient"], gradient)
    assert float(loss(names["adapted"], x, y)) < float(loss(params, x, y))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:brax")  # Brax 0.14 on the MJX of this year
def test_a_stranger_turns_a_brax_environment_into_a_task_set():
    names = run(0, 1)
    assert names["tasks"].task_names == ("east", "north", "west", "south")
    states = names["states"]
    assert states.obs.shape == (4, 27)
    velocity = np.asarray(states.info["inner"][0]["x_velocity"]), np.asarray(states.info["inner"][0]["y_velocity"])
    expected = [velocity[0][0], velocity[1][1], -velocity[0][2], -velocity[1][3]]
    np.testing.assert_allclose(states.reward, expected, rtol=1e-4, atol=1e-5)


def test_a_stranger_loads_a_trained_herd(tmp_path, monkeypatch, locomotion_herd, capsys):
    monkeypatch.chdir(tmp_path)
    locomotion_herd.save("runs/quick-1/herd/seed-0")
    names = run(0, 2)
    assert names["assignment"].member in (0, 1)
    assert names["action"].shape == (6,)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert (tmp_path / "my-herd" / "herd.json").read_bytes() == (tmp_path / "runs/quick-1/herd/seed-0/herd.json").read_bytes()


def test_documented_options_and_presets_exist():
    from tamherd_jax.cli import Embed, Evaluate, Report, Run, View
    from tamherd_jax.experiments.presets import PRESETS

    ours = [section for section in README.split("\n## ") if "python -m benchmarks" not in section]
    options = set(re.findall(r"`--([a-z-]+)", "".join(ours)))
    assert {"preset", "log-to", "resume"} <= options
    fields = {name for command in (Run, Embed, Evaluate, Report, View) for name in command.__dataclass_fields__}
    assert {name.replace("-", "_") for name in options} <= fields
    assert set(re.findall(r"`--preset ([a-z-]+)`", README)) == set(PRESETS)


def test_every_public_name_loads():
    import tamherd_jax

    for name in tamherd_jax.__all__:
        assert getattr(tamherd_jax, name) is not None
    assert set(tamherd_jax.__all__) <= set(dir(tamherd_jax))
