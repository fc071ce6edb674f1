"""Settings by name: --set, --config and tamherd config."""

import dataclasses
import shlex

import pytest
import tyro

from tamherd_jax import cli
from tamherd_jax.commands.run import Run, new_config
from tamherd_jax.commands.run_options import TrainingOptions
from tamherd_jax.experiments.presets import PRESETS, get_preset
from tamherd_jax.experiments.settings import (
    describe_settings,
    field_meanings,
    parse_assignments,
    read_settings,
    run_command,
    with_settings,
)

QUICK = PRESETS["quick"]


def assigned(*texts):
    return with_settings(QUICK, parse_assignments(texts, QUICK))


def test_settings_are_set_by_dotted_name_with_their_types():
    config = assigned("maml.trpo.max_kl=0.1", "maml.hidden_sizes=32, 16", "maml.first_order=true", "clustering.clusters=auto")
    assert config.maml.trpo.max_kl == 0.1
    assert config.maml.hidden_sizes == (32, 16)
    assert config.maml.first_order is True
    assert config.clustering.clusters == "auto"
    assert assigned("controls=random-clusters").controls == ("random-clusters",)
    assert assigned("maml.entropy_decay_steps=none").maml.entropy_decay_steps is None
    assert assigned() == QUICK


def test_the_single_learner_still_covers_probe_and_herd():
    assert assigned(f"member_epochs={QUICK.member_epochs + 5}").single_epochs == QUICK.single_epochs + 5
    assert assigned("probe_epochs=40").single_epochs == QUICK.single_epochs + 32
    assert assigned("member_epochs=25", "single_epochs=34").single_epochs == 34


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("maml.max_kl=0.1", "there is no setting 'maml.max_kl'; did you mean maml.trpo.max_kl"),
        ("member_epoch=3", "did you mean member_epochs"),
        ("zzz=3", "tamherd config prints all of them"),
        ("seeds", "--set needs NAME=VALUE, not 'seeds'"),
        ("seeds=", "--set needs NAME=VALUE"),
        ("seeds=many", 'seeds must be an integer, not "many"'),
        ("seeds=0", "seeds must be at least 1, not 0"),
        ("seeds=2.5", "seeds must be an integer, not 2.5"),
        ("maml.inner_step_size=x", "maml"),
        ("maml.trpo.max_kl=-1", "max_kl must be positive"),
        ("maml=3", "there is no setting 'maml'"),
    ],
)
def test_what_cannot_be_set_is_one_line(text, words):
    with pytest.raises(ValueError, match=r".") as error:
        assigned(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="twice"):
        assigned("seeds=2", "seeds=3")


@pytest.mark.parametrize("name", PRESETS)
def test_what_config_prints_reads_back(name, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(describe_settings(PRESETS[name]), encoding="utf-8")
    assert with_settings(get_preset(name), read_settings(path)) == PRESETS[name]


def test_every_setting_has_a_meaning():
    meanings = field_meanings(type(QUICK))
    assert set(meanings) >= {"seeds", "probe_epochs", "embedding_tasks", "controls"}
    assert meanings["first_seed"].startswith("seeds are `first_seed")


def test_a_file_then_options_then_set(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seeds = 4\nmember_epochs = 7\n[maml.trpo]\nmax_kl = 0.3\n")
    config = new_config(Run(TrainingOptions(config=path, seeds=5, set=("maml.trpo.max_kl=0.2",))))
    assert (config.seeds, config.member_epochs, config.maml.trpo.max_kl) == (5, 7, 0.2)
    QUICK.write(tmp_path)
    assert new_config(Run(TrainingOptions(config=tmp_path / "config.json"))) == QUICK
    for content, words in (("seeds = ", "cannot be read"), ("sed = 3", "there is no setting 'sed'; did you mean")):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            new_config(Run(TrainingOptions(config=path)))


TYPED = (
    {"preset": "quick"},
    {"preset": "tuned-maml", "tasks": "ml3", "seeds": 3, "first_seed": 7, "controls": "none", "physics": "planar"},
    {"preset": "paper-maml", "controls": "random-clusters,oracle-assignment", "clusters": "auto", "probe": "multitask"},
    {"preset": "tuned-pearl", "epochs": 3, "shots": "0,2", "set": ("pearl.hidden_sizes=16", "pearl.discount=0.5")},
    {"preset": "quick", "set": ("maml.entropy_decay_steps=none", "maml.first_order=true", "maml.hidden_sizes=[]")},
)


@pytest.mark.parametrize("options", TYPED, ids=lambda options: options["preset"])
def test_the_command_of_a_configuration_makes_it_again(options):
    typed = [word for name, value in options.items() for word in words_of(name, value)]
    config = new_config(tyro.cli(Run, args=typed))
    command = shlex.split(run_command(config))
    assert command[:4] == ["tamherd", "run", "--preset", options["preset"]]
    assert new_config(tyro.cli(Run, args=command[2:])) == config
    assert len(command) <= 6 + 2 * len(options) + 2, "no more than what differs"


def words_of(name, value):
    """An option as words of a command line."""
    values = value if isinstance(value, tuple) else (value,)
    return [word for one in values for word in (f"--{name.replace('_', '-')}", str(one))]


def test_a_configuration_of_no_preset_has_no_command():
    with pytest.raises(ValueError, match="unknown preset"):
        run_command(dataclasses.replace(QUICK, preset="mine"))
    assert "--seeds 1" in run_command(QUICK, always=("seeds",))
    assert run_command(QUICK) == "tamherd run --preset quick"


def test_the_command_prints_settings(capsys):
    cli.main(["config", "--set", "maml.trpo.max_kl=0.125", "--set", "seeds=3"])
    printed = capsys.readouterr().out
    assert "max_kl = 0.125 " in printed
    assert "# S, number of seeds" in printed
    with pytest.raises(SystemExit) as stop:
        cli.main(["config", "--preset", "nonsense"])
    assert stop.value.code == 2
