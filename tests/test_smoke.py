"""What must work on every supported Python and JAX, in a minute or two: imports, lowering, an epoch, the command line."""

import importlib
import os
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tamherd_jax
from benchmarks.programs import SMALL, epoch, physics_step
from benchmarks.targets import lowering_for
from tamherd_jax.envs import Locomotion, ml2
from tamherd_jax.maml import MAML


def test_every_module_is_imported():
    for module in pkgutil.walk_packages(tamherd_jax.__path__, "tamherd_jax."):
        importlib.import_module(module.name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("program", [physics_step(8, "rk4"), epoch("maml", 1, SMALL)], ids=["physics", "epoch"])
def test_lowers(program, platform):
    with lowering_for(platform):
        text = jax.jit(program.fn).trace(*program.args).lower(lowering_platforms=(platform,)).as_text()
    assert ("triton" in text) == (platform == "cuda")


def test_an_epoch():
    learner, key = MAML(Locomotion("mujoco", 10.0), 4, SMALL.maml), jax.random.key(0)
    state = learner.init(key)
    after, metrics = jax.jit(lambda *args: learner.train_epoch(*args, ml2().tasks, jnp.ones(4)))(key, state)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
    assert metrics.steps > 0


def test_the_command_line(tmp_path):
    command = [sys.executable, "-m", "tamherd_jax.cli"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    shown = subprocess.run([*command, "config"], capture_output=True, text=True, env=environment, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert "member_epochs" in shown.stdout
    refused = subprocess.run([*command, "run", "--seeds", "0"], capture_output=True, text=True, env=environment, timeout=300)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
