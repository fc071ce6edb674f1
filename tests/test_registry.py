"""One entry makes an algorithm known everywhere: each entry against the code it names."""

import dataclasses
import json

import pytest
from goal_mass import GoalMass

from tamherd_jax.experiments.config import ExperimentConfig, all_controls
from tamherd_jax.experiments.learners import make_learner, make_probe_learner
from tamherd_jax.experiments.presets import PRESETS, preset_name
from tamherd_jax.registry import ALGORITHMS, DEFAULT_ALGORITHM, get_algorithm
from tamherd_jax.types import LatentLearner, ReplayLearner

entries = pytest.mark.parametrize("entry", ALGORITHMS.values(), ids=ALGORITHMS)


@entries
def test_an_entrys_capabilities_are_its_learners(entry):
    config = ExperimentConfig(preset="toy", algorithm=entry.name)
    learner = make_learner(config, GoalMass(), 4)
    assert type(learner) is entry.learner
    assert type(config.settings) is entry.config
    assert isinstance(learner, ReplayLearner) == entry.replay
    assert isinstance(learner, LatentLearner) == entry.latent
    assert hasattr(config.settings, "gradient_steps") == entry.gradient_steps
    assert {size: getattr(learner, size) for size in entry.sizes}.keys() == set(entry.sizes)


@entries
def test_an_entrys_presets_are_the_command_lines(entry):
    for name in entry.presets:
        assert PRESETS[name].algorithm == entry.name
        assert ExperimentConfig.from_json(json.loads(json.dumps(PRESETS[name].to_json()))) == PRESETS[name]
    assert preset_name(None, entry.name) == preset_name(preset_name(None, None), entry.name) == entry.default_preset
    assert ("double-gradient" in all_controls(entry.name)) == entry.gradient_steps


@entries
def test_a_plain_probe_is_refused_where_there_is_no_inner_step(entry):
    if not entry.inner_step:
        with pytest.raises(ValueError, match="without its inner step; it needs algorithm maml"):
            ExperimentConfig(preset="toy", algorithm=entry.name, probe="multitask")
        return
    config = ExperimentConfig(preset="toy", algorithm=entry.name, probe="multitask")
    probe = make_probe_learner(config, GoalMass(), 4)
    assert probe.config == dataclasses.replace(config.settings, inner_steps=0)


def test_an_unknown_algorithm_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown algorithm 'ppo'; choose from maml, pearl"):
        get_algorithm("ppo")
    with pytest.raises(ValueError, match="unknown algorithm 'ppo'"):
        ExperimentConfig(preset="toy", algorithm="ppo")
    assert ExperimentConfig(preset="toy").algorithm == DEFAULT_ALGORITHM
