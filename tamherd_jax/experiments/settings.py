"""Settings of an experiment by dotted name, such as `maml.trpo.max_kl`: how they are set, read from a file and printed."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamherd_jax.codec import decode, encode, read_json, unsealed
from tamherd_jax.experiments.config import FORMATS, ExperimentConfig
from tamherd_jax.experiments.presets import get_preset, moved_single_epochs


def flat_settings(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a nested document by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def with_settings(config: ExperimentConfig, settings: Mapping[str, Any]) -> ExperimentConfig:
    """Return a configuration with settings replaced.

    Args:
      config: The configuration.
      settings: By dotted name, values as JSON has them. If they change `member_epochs` or `probe_epochs` and not
        `single_epochs`, that one moves along, so that the single learner still covers both.

    Raises:
      ValueError: In one line, if a name is not known or a value impossible.
    """
    document = encode(config)
    known = flat_settings(document)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(unknown_setting(name, list(known)))
        *parents, last = name.split(".")
        part = document
        for parent in parents:
            part = part[parent]
        part[last] = value
    if "single_epochs" in settings or not settings:
        return decode(ExperimentConfig, document)
    probe = document["probe_epochs"]
    enough = max(config.single_epochs, probe if isinstance(probe, int) else 0)
    changed = decode(ExperimentConfig, document | {"single_epochs": enough})
    return dataclasses.replace(changed, single_epochs=moved_single_epochs(config, changed))


def unknown_setting(name: str, known: Sequence[str]) -> str:
    """Return the message for a setting that there is not, with the names that come nearest to it."""
    last = name.rsplit(".", 1)[-1]
    near = [one for one in known if one.rsplit(".", 1)[-1] == last]
    near += [one for one in difflib.get_close_matches(name, known, 3, 0.5) if one not in near]
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else "; tamherd config prints all of them"
    return f"there is no setting {name!r}{hint}"


def parse_assignments(texts: Sequence[str], config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings of `NAME=VALUE` texts; values are numbers, true, false, none, texts, or lists with commas between.

    Raises:
      ValueError: In one line, if a text is no assignment, names no setting or one twice.
    """
    known, found = flat_settings(encode(config)), {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"--set needs NAME=VALUE, not {text!r}")
        if name not in known:
            raise ValueError(unknown_setting(name, list(known)))
        if name in found:
            raise ValueError(f"--set names {name} twice")
        found[name] = parse_value(value, isinstance(known[name], list))
    return found


def parse_value(text: str, as_list: bool) -> Any:
    """Return the value that a text on the command line means."""
    if text.lower() in ("none", "null"):
        return None
    if as_list and not text.startswith("["):
        return [parse_value(part.strip(), False) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except (ValueError, RecursionError):
        return text


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings by dotted name of a TOML file, or of a JSON file such as a run's config.json.

    Raises:
      ValueError: In one line, if there is no such file or it is not of these kinds.
    """
    try:
        if path.suffix == ".toml":
            return flat_settings(tomllib.loads(path.read_text(encoding="utf-8")))
        return flat_settings(unsealed(read_json(path), path, FORMATS))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


# Commands ------------------------------------------------------------------------------------------------------------

OPTIONS = ("tasks", "seeds", "first_seed", "physics", "controls")
"""Settings that `tamherd run` has an option of the same name for, which reads better than `--set`."""


def run_command(config: ExperimentConfig, *, always: Sequence[str] = ()) -> str:
    """Return the command that runs a configuration: its preset, and what differs from the preset.

    Args:
      config: The configuration.
      always: Settings of `OPTIONS` that are told even where they are the preset's.

    Raises:
      ValueError: The configuration comes from no preset, or has another algorithm than its preset.
    """
    usual = get_preset(config.preset, algorithm=config.algorithm, tasks=config.tasks)
    own, expected = flat_settings(encode(config)), flat_settings(encode(usual) | {"tasks": get_preset(config.preset).tasks})
    told = {name: setting_text(own[name]) for name in own if own[name] != expected[name] or name in always}
    parts = ["tamherd", "run", "--preset", config.preset]
    for name in (name for name in OPTIONS if name in told):
        parts += [f"--{name.replace('_', '-')}", told.pop(name).replace("[]", "none")]
    for name, value in told.items():
        parts += ["--set", f"{name}={value}"]
    return shlex.join(parts)


def setting_text(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if isinstance(value, list):
        return ",".join(map(setting_text, value)) or "[]"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


# Printing ------------------------------------------------------------------------------------------------------------


def describe_settings(config: ExperimentConfig) -> str:
    """Return every setting with its value and meaning as TOML, which `--config` reads; those without a value are comments."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(part: Any, prefix: str) -> Iterator[str]:
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    meanings = field_meanings(type(part))
    for name, value in fields.items():
        if not dataclasses.is_dataclass(value):
            text = "# no value" if value is None else _toml(encode(value))
            assignment = f"# {name} =" if value is None else f"{name} = {text}"
            yield f"{assignment:<40}  # {meanings[name]}" if meanings.get(name) else assignment
    for name, value in fields.items():
        if dataclasses.is_dataclass(value):
            yield ""
            yield f"[{prefix}{name}]"
            yield from _lines(value, f"{prefix}{name}.")


def _toml(value: Any) -> str:
    return json.dumps(value)  # of what settings hold, JSON's form is TOML's too


def field_meanings(cls: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says of each field under `Attributes:`."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if not line.startswith(" "):
            break
        if found := re.match(r"  ([a-z_]+(?:, [a-z_]+)*): (.*)", line):
            names = found[1].split(", ")
            meanings |= dict.fromkeys(names, found[2])
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return meanings
