"""What surrounds the package: one version everywhere, workflows that run the scripts of .ci, an sdist with everything."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tamherd_jax

ROOT = Path(__file__).parent.parent


def check_version(*arguments):
    command = [sys.executable, str(ROOT / ".ci" / "check_version.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_version_is_the_same_everywhere():
    done = check_version()
    assert (done.returncode, done.stderr) == (0, "")
    assert check_version(f"v{tamherd_jax.__version__}").returncode == 0


@pytest.mark.parametrize("tag", ["v9.9.9", tamherd_jax.__version__, "", "v"])
def test_a_tag_that_is_not_the_version_is_refused(tag):
    done = check_version(tag)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert tag in done.stderr


def test_workflows_run_the_scripts_that_exist():
    tests, release = ((ROOT / ".github" / "workflows" / f"{name}.yml").read_text() for name in ("tests", "release"))
    for script in ("run", "package", "lowest"):
        assert f"- run: .ci/{script}\n" in tests
        assert (ROOT / ".ci" / script).stat().st_mode & 0o111
    assert 'check_version.py "$GITHUB_REF_NAME"' in release
    assert release.index("needs: version") < release.index("needs: tests")  # nothing is published before both


def test_the_sdist_holds_what_the_readme_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name.lstrip("/")).exists() for name in include if name != "/examples")
    wanted = {"tamherd_jax", "benchmarks", "docs", "examples", "tests", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert {f"/{name}" for name in wanted} <= set(include)
