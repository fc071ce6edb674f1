"""The documentation: every block of Python runs as written, and Sphinx builds it without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"


def run_blocks(guide):
    """Names that the blocks of a guide leave, run one after the other."""
    names = {"__name__": "guide"}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "guides" / f"{guide}.md").read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_guide_to_the_kernels_learns_sine_waves(capsys):
    """At 4,000 of the paper's 70,000 iterations, which the guide says end at 0.3145."""
    names = run_blocks("kernels")
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
    names = run_blocks("environments")
    assert names["tasks"].task_names == ("east", "north", "west", "south")
    assert np.isfinite(names["metrics"].before).all()
    assert np.isfinite(names["metrics"].after).all()
    assert float(names["metrics"].steps) == 2 * 4 * 2 * 5
    assert capsys.readouterr().out.strip() == "27 8"
    assert names["mixed"].mode_names == ("ant", "pendulum")


def test_the_guide_to_scaling_maps_learners():
    names = run_blocks("scaling")
    alone = jnp.float32(0.3) * jax.random.normal(jax.random.key(2), (3,))
    np.testing.assert_allclose(names["trained"][2], alone, rtol=1e-6)
    assert (names["config"].seeds, names["config"].physics) == (100, "planar")


@pytest.mark.slow
def test_sphinx_builds_without_a_warning(tmp_path):
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
