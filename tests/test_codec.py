"""Documents and arrays on disk: what is written comes back, what is damaged or impossible is refused in one line."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy_experiment

from tamherd_jax.codec import (
    arrays_checksum,
    decode,
    encode,
    read_arrays,
    read_json,
    sealed,
    unsealed,
    write_arrays,
    write_json,
)
from tamherd_jax.experiments.checkpoints import Checkpoints
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.presets import PRESETS
from tamherd_jax.experiments.results import read_run
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.reporting.run_files import read_run_files
from tamherd_jax.validation import at_least

FIRST_RELEASE = Path(__file__).parent / "data" / "written_by_0.1"


@dataclasses.dataclass(frozen=True)
class Inner:
    size: Annotated[int, at_least(1)]
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    sizes: tuple[int, ...] = (1, 2)
    parts: dict[str, Inner] = dataclasses.field(default_factory=dict)
    limit: int | None = None


WHOLE = Outer("a", Inner(3), (4,), {"x": Inner(1, 2.0)}, 7)


def test_settings_come_back_and_missing_ones_get_their_defaults():
    assert decode(Outer, json.loads(json.dumps(encode(WHOLE)))) == WHOLE
    assert decode(Outer, {"name": "a", "inner": {"size": 1}}) == Outer("a", Inner(1))
    assert encode(Inner(np.int32(2), jnp.float32(0.5))) == {"size": 2, "rate": 0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "has a field that is not known: colour"),
        ({"name": None}, "name must be a text, not null"),
        ({"inner": {"size": 0}}, "inner: size must be at least 1, not 0"),
        ({"inner": {"size": True}}, "inner.size must be an integer, not true"),
        ({"inner": {"size": 1, "rate": "x"}}, 'inner.rate must be a number, not "x"'),
        ({"inner": {"size": 1, "rate": float("nan")}}, "rate must be finite"),
        ({"inner": []}, "inner must be an object with named fields, not []"),
        ({"inner": {}}, "inner lacks size"),
        ({"sizes": 3}, "sizes must be a list, not 3"),
        ({"sizes": [1, "2"]}, 'sizes must be an integer, not "2"'),
        ({"parts": {"x": {"size": 1, "tall": 2}}}, "parts.x has a field that is not known: tall"),
        ({"limit": "7"}, "limit must be"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=r"must|lacks|known") as error:
        decode(Outer, encode(WHOLE) | changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_json_does_not_have_is_not_written():
    for value in (jnp.ones(3), float("inf"), object()):
        with pytest.raises(ValueError, match="settings hold"):
            encode({"x": value})


def test_a_changed_document_is_noticed(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, sealed({"format": 2, "a": [1, 2]}))
    document = read_json(path)
    assert unsealed(document, path, {2: True}) == {"a": [1, 2]}
    for damaged in (document | {"a": [1, 3]}, document | {"b": 0}, {"format": 2, "a": [1, 2]}):
        with pytest.raises(ValueError, match="checksum differs"):
            unsealed(damaged, path, {2: True})
    with pytest.raises(ValueError, match="not of this version"):
        unsealed(document, path, {3: True})
    assert unsealed({"a": 1}, path, {0: False, 2: True}) == {"a": 1}  # from before there were formats


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"a": NaN', b"null"])
def test_damaged_json_is_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_every_flipped_byte_of_an_npz_is_noticed_or_harmless(tmp_path):
    """No kind of damage raises anything but a ValueError of one line, and no array comes back changed unnoticed."""
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["x", "yz"])}
    path = tmp_path / "x.npz"
    write_arrays(path, arrays, compress=False)
    content, whole = path.read_bytes(), arrays_checksum(arrays)
    for at in range(len(content)):
        for bit in (1, 0x80):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            try:
                found = read_arrays(path)
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert arrays_checksum(found) == whole or set(found) != set(arrays)


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match=r"x\.npz"):
        write_arrays(tmp_path / "x.npz", {"a": np.ones(2)})
    assert not list(tmp_path.iterdir())


# What earlier versions wrote -----------------------------------------------------------------------------------------


def test_configurations_survive_json():
    for config in PRESETS.values():
        assert ExperimentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", ["real", "real-pearl"])
def test_a_run_of_the_first_release_is_read(name, tmp_path):
    run = read_run_files(FIRST_RELEASE / name)
    assert run.results.seeds.tolist() == [0]
    config = ExperimentConfig.of_run(FIRST_RELEASE / name)
    assert (config.seeds, config.probe, config.walker_frame_skip) == (1, "meta", 4)
    herd = Herd.load(FIRST_RELEASE / name / "herd" / "seed-0")
    assert (herd.size, herd.learner.env.backend) == (2, "mujoco")
    herd.save(tmp_path)
    again = Herd.load(tmp_path)
    assert again.learner.config == herd.learner.config
    assert json.loads((tmp_path / "herd.json").read_text())["format"] == 3


def test_a_checkpoint_of_the_first_release_goes_on(tmp_path):
    directory = Path(shutil.copytree(FIRST_RELEASE / "toy", tmp_path / "run"))
    experiment, checkpoints = toy_experiment(), Checkpoints(directory / "checkpoints")
    assert checkpoints.restore(experiment.plan, experiment.state) == 7
    checkpoints.close()
    assert experiment.state.done == {"probe": 3, "embeddings": 1, "herd and oracle": 3, "single": 0}
    assert len(experiment.curves["herd"].after) == 3


# Herds ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def herd_directory(tmp_path):
    return Path(shutil.copytree(FIRST_RELEASE / "real" / "herd" / "seed-0", tmp_path / "herd"))


DAMAGE = {
    "episodes.probe": -1,
    "episodes.test": None,
    "learner.config.inner_step_size": "x",
    "learner.config.horizon": 10**9,
    "learner.config.colour": 1,
    "learner.sizes.meta_batch_size": 0,
    "learner.sizes": {},
    "learner.name": "ppo",
    "labels": [],
    "seed": None,
    "environment.physics": None,
    "environment.expected_action_scale": 0,
    "members": 10**12,
    "task_set.version": 2,
    "arrays": {},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_impossible_settings_of_a_herd_are_refused_in_one_line(herd_directory, name):
    """Without a checksum, as the first release wrote them, every value is checked by itself."""
    path = herd_directory / "herd.json"
    document = json.loads(path.read_text())
    *parents, last = name.split(".")
    part = document
    for parent in parents:
        part = part[parent]
    part[last] = DAMAGE[name]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"herd") as error:
        Herd.load(herd_directory)
    assert "\n" not in str(error.value)


def test_any_change_of_a_herds_settings_is_noticed(herd_directory):
    Herd.load(herd_directory).save(herd_directory)
    path = herd_directory / "herd.json"
    document = json.loads(path.read_text())
    document["labels"] = document["labels"][::-1]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="checksum differs"):
        Herd.load(herd_directory)
    for missing in ("episodes", "learner", "labels", "checksum"):
        path.write_text(json.dumps({key: value for key, value in document.items() if key != missing}))
        with pytest.raises(ValueError, match="damaged"):
            Herd.load(herd_directory)


# Fuzz ----------------------------------------------------------------------------------------------------------------


def damaged(content, draw):
    """Some bytes of a file flipped, cut off, repeated or replaced."""
    data = bytearray(content)
    kind, at = draw.randrange(4), draw.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + 50]
    else:
        data[at : at + 8] = draw.randbytes(8)
    return bytes(data)


@pytest.mark.parametrize("name", ["results.json", "curves.npz", "embeddings.npz", "config.json"])
def test_damaged_files_of_a_run_never_raise_anything_else(name, tmp_path):
    directory = Path(shutil.copytree(FIRST_RELEASE / "real", tmp_path / "run"))
    content, draw = (directory / name).read_bytes(), random.Random(name)
    for _ in range(60):
        (directory / name).write_bytes(damaged(content, draw))
        try:
            ExperimentConfig.of_run(directory) if name == "config.json" else read_run(directory)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
