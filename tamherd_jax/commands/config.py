"""`tamherd config`: every setting with its value and meaning."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from tamherd_jax.commands import mistakes_of_the_user
from tamherd_jax.commands.options import one_of, option
from tamherd_jax.commands.run_options import ALGORITHM, PRESET
from tamherd_jax.registry.algorithms import ALGORITHMS, PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """Print every setting of an experiment with its value and meaning, as TOML that tamherd run --config reads."""

    preset: Annotated[str | None, one_of(PRESETS), option("NAME", PRESET)] = None
    algorithm: Annotated[str | None, one_of(ALGORITHMS), option("NAME", ALGORITHM)] = None
    config: Annotated[Path | None, option("FILE")] = None
    """Settings in place of the preset's: a TOML file, or a JSON file such as a run's config.json."""
    set: Annotated[tuple[str, ...], option("NAME=VALUE"), tyro.conf.UseAppendAction] = ()
    """A setting by its dotted name, in place of the preset's and the file's; may be given several times."""


def show_config(options: Config) -> None:
    """Run `tamherd config`.

    Raises:
      UserError: There is no such preset, algorithm, file or setting.
    """
    from tamherd_jax.experiments.presets import get_preset, preset_name
    from tamherd_jax.experiments.settings import describe_settings, parse_assignments, read_settings, with_settings

    with mistakes_of_the_user():
        config = get_preset(preset_name(options.preset, options.algorithm), algorithm=options.algorithm)
        if options.config is not None:
            config = with_settings(config, read_settings(options.config))
        config = with_settings(config, parse_assignments(options.set, config))
        text = describe_settings(config)
    sys.stdout.write(text)
