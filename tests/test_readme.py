import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_quick_start_is_two_commands():
    commands = [block.strip() for block in blocks("bash")]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert commands[0].endswith("tamherd run")
    assert commands[1].endswith("pytest")


def test_python_blocks_run_as_written():
    kernels, environments = blocks("python")
    names = {}
    exec(kernels, names)
    assert names["gradients"]["w"].shape == (8, 3)
    # 8 equal tasks: y = 1, x = 1, w = 0. L = (sum w - 1)^2; the step gives sum w' = 0.1 * 2 * 3 = 0.6, and
    # d/dw (0.6 - 1)^2 through the step = 2 (0.6 - 1) (1 - 0.1 * 2 * 3) = -0.32.
    np.testing.assert_allclose(names["gradients"]["w"], -0.32, rtol=1e-5)
    exec(environments, names)
    assert names["states"].obs.shape == (4, 17)
    assert bool(jnp.isfinite(names["states"].obs).all())


def test_documented_options_and_presets_exist():
    from tamherd_jax.cli import Embed, Evaluate, Report, Run, View
    from tamherd_jax.experiments.config import PRESETS

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
