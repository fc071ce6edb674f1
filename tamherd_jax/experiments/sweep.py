"""A sweep: one experiment at many settings. Those that differ in numbers alone are rows of one plan and share its programs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tamherd_jax.codec import checksum, encode, read_json, sealed, unsealed, write_json
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.herds import write_herds
from tamherd_jax.experiments.learners import number_names
from tamherd_jax.experiments.plan import Plan, make_plan
from tamherd_jax.experiments.programs import state_shapes
from tamherd_jax.experiments.settings import flat_settings, parse_value, unknown_setting, with_settings
from tamherd_jax.experiments.state import ClusteredTasks, RunState
from tamherd_jax.experiments.writing import write_results
from tamherd_jax.types import without_replay

FORMAT = 1
FILE = "sweep.json"
MAX_SETTINGS = 10_000
_RANGE = re.compile(r"(?P<low>[^:]+):(?P<high>[^:]+):(?P<scale>log|lin)(?P<count>\d*)")

Setting = Mapping[str, Any]
"""Values by dotted name, as JSON has them."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of one setting: a list of them, or the ends of a range that values are drawn from."""

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value: uniformly from the list, or from the range or its logarithm."""
        if self.values:
            return self.values[rng.integers(len(self.values))]
        if self.log:
            return float(f"{np.exp(rng.uniform(np.log(self.low), np.log(self.high))):.4g}")
        return float(f"{rng.uniform(self.low, self.high):.4g}")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep runs: V settings, each an experiment of its own. `index` counts them.

    Attributes:
      base: The configuration that all settings start from.
      settings: `[V]` what each of them changes.
    """

    base: ExperimentConfig
    settings: tuple[Setting, ...]

    def config(self, index: int) -> ExperimentConfig:
        """Return the configuration of one setting.

        Raises:
          ValueError: In one line, if it is impossible.
        """
        return with_settings(self.base, self.settings[index])

    def write(self, directory: Path) -> None:
        """Write `sweep.json`."""
        document = {"format": FORMAT, "base": self.base.to_json(), "settings": [dict(one) for one in self.settings]}
        write_json(directory / FILE, sealed(document))

    @classmethod
    def of_directory(cls, directory: Path) -> Sweep:
        """Return the sweep that a directory holds.

        Raises:
          ValueError: In one line, if there is none or its file is damaged.
        """
        path = directory / FILE
        try:
            document = unsealed(read_json(path), path, {FORMAT: True})
        except OSError as error:
            raise ValueError(f"{directory} holds no sweep: {FILE} cannot be read") from error
        return cls(ExperimentConfig.from_json(document["base"]), tuple(document["settings"]))


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings that share a plan and its compiled programs: they differ in numbers of the learner's configuration alone.

    Attributes:
      indices: `[V]` of the sweep's settings.
      config: Of the first of them.
      numbers: What differs, by dotted name within the learner's configuration, `[V]` each.
    """

    indices: tuple[int, ...]
    config: ExperimentConfig
    numbers: Mapping[str, np.ndarray]

    @property
    def seeds(self) -> np.ndarray:
        """`[V S]` the seeds of every setting, setting by setting."""
        c = self.config
        return np.tile(np.arange(c.first_seed, c.first_seed + c.seeds), len(self.indices))

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """The numbers of every seed of every setting, `[V S]` each."""
        return {name: np.repeat(values, self.config.seeds) for name, values in self.numbers.items()}


# What is swept -------------------------------------------------------------------------------------------------------


def parse_axes(texts: Sequence[str], config: ExperimentConfig, sampled: bool) -> dict[str, Axis]:
    """Return what `NAME=VALUES` texts vary.

    Values are `A,B,C` (lists with `;` between them), or a range `LOW:HIGH:logN` or `LOW:HIGH:linN` of N values; where values
    are sampled, N may be missing.

    Raises:
      ValueError: In one line: no assignment, an unknown name or one given twice, or an impossible range.
    """
    known, axes = flat_settings(encode(config)), {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not name or not values:
            raise ValueError(f"--set needs NAME=VALUES, not {text!r}")
        if name not in known:
            raise ValueError(unknown_setting(name, list(known)))
        if name in axes:
            raise ValueError(f"--set names {name} twice")
        axes[name] = parse_axis(name, values, isinstance(known[name], list), sampled)
    return axes


def parse_axis(name: str, text: str, lists: bool, sampled: bool) -> Axis:
    """Return the values of one setting; see `parse_axes`."""
    found = _RANGE.fullmatch(text)
    if found is None:
        values = tuple(parse_value(part.strip(), lists) for part in text.split(";" if lists else ",") if part.strip())
        if len({json.dumps(value) for value in values}) < len(values):
            raise ValueError(f"--set {name} gives a value twice: {text}")
        return Axis(values)
    log = found["scale"] == "log"
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        raise ValueError(f"--set {name}: the ends of a range are numbers, not {text!r}") from None
    if not (np.isfinite([low, high]).all() and low < high and (low > 0 or not log)):
        raise ValueError(f"--set {name}: a range goes from a smaller number to a larger, above 0 with log, not {text!r}")
    if sampled:
        return Axis((), low, high, log)
    if not found["count"] or not 2 <= int(found["count"]) <= MAX_SETTINGS:
        raise ValueError(f"--set {name}: how many values of the range? {low:g}:{high:g}:{found['scale']}5 has five")
    space = np.geomspace if log else np.linspace
    return Axis(tuple(float(f"{value:.6g}") for value in space(low, high, int(found["count"]))))


def make_sweep(base: ExperimentConfig, axes: Mapping[str, Axis], samples: int | None = None) -> Sweep:
    """Return the sweep of all combinations of values, or of some that are drawn at random (the same ones every time).

    A setting of one value is part of the base.

    Raises:
      ValueError: In one line, if there is nothing to vary, too much of it, or a combination is impossible.
    """
    base = with_settings(base, {name: axis.values[0] for name, axis in axes.items() if len(axis.values) == 1})
    axes = {name: axis for name, axis in axes.items() if len(axis.values) != 1}
    for name in axes:
        first, _, rest = name.partition(".")
        if name in ("preset", "algorithm", "seeds", "first_seed", "tasks"):
            raise ValueError(f"{name} is the same for all settings of a sweep: give --{name.replace('_', '-')}")
        if rest and first not in (base.algorithm, "embedding", "clustering"):
            raise ValueError(f"{name} changes nothing: the algorithm is {base.algorithm}")
    if not axes:
        raise ValueError("a sweep needs --set NAME=VALUES with several values, at least once")
    if base.shots:
        raise ValueError("--shots and --test-tasks are for runs: give them to the command that the sweep's report names")
    count = samples or int(np.prod([len(axis.values) for axis in axes.values()]))
    if count > MAX_SETTINGS:
        raise ValueError(f"a sweep has at most {MAX_SETTINGS} settings, not {count}")
    if samples is None:
        settings = [dict(zip(axes, values, strict=True)) for values in itertools.product(*(a.values for a in axes.values()))]
    else:
        rng = np.random.default_rng(0)
        settings = [{name: axis.sample(rng) for name, axis in axes.items()} for _ in range(samples)]
    sweep = Sweep(base, tuple(settings))
    for index in range(count):
        sweep.config(index)
    return sweep


def make_groups(sweep: Sweep, indices: Sequence[int] | None = None) -> list[Group]:
    """Divide settings into groups that share compiled programs, in the order of their first.

    Numbers of the learner's configuration are data, but those that are 0: what they weigh is left out of the program.

    Args:
      sweep: The sweep.
      indices: Some of its settings; all by default.
    """
    by_program: dict[str, list[int]] = {}
    for index in range(len(sweep.settings)) if indices is None else indices:
        numbers = data_numbers(sweep, index)
        rest = {name: value for name, value in flat_settings(encode(sweep.config(index))).items() if name not in numbers}
        by_program.setdefault(checksum({**rest, "data": sorted(numbers)}), []).append(index)
    return [_group(sweep, same) for same in by_program.values()]


def data_numbers(sweep: Sweep, index: int) -> dict[str, float]:
    """Return the numbers of one setting that programs take as data, by dotted name within the whole configuration."""
    config = sweep.config(index)
    document, prefix = flat_settings(encode(config)), config.algorithm
    names = {f"{prefix}.{name}" for name in number_names(config.settings)} & set(sweep.settings[index])
    return {name: float(document[name]) for name in sorted(names) if document[name]}


def _group(sweep: Sweep, indices: Sequence[int]) -> Group:
    values = [data_numbers(sweep, index) for index in indices]
    prefix = len(sweep.base.algorithm) + 1
    numbers = {name[prefix:]: np.array([one[name] for one in values], np.float32) for name in values[0]}
    # What does not differ is part of the program, as in a run.
    varied = {name: array for name, array in numbers.items() if len(set(array.tolist())) > 1}
    return Group(tuple(indices), sweep.config(indices[0]), varied)


# From rows to runs ---------------------------------------------------------------------------------------------------


def group_plan(group: Group, env: Any = None, task_set: Any = None) -> Plan:
    """Return the plan of all settings of a group; arguments as in `make_plan`."""
    return make_plan(group.config, env, task_set, group.seeds, group.rows)


def setting_directory(directory: Path, index: int) -> Path:
    """Return where the results of one setting are."""
    return directory / "settings" / f"{index:03d}"


def write_settings(sweep: Sweep, group: Group, plan: Plan, state: RunState, directory: Path) -> None:
    """Write the results of a finished group, each setting's into a run directory of its own.

    Raises:
      OSError: A file cannot be written.
    """
    count = group.config.seeds
    for position, index in enumerate(group.indices):
        own = make_plan(sweep.config(index), plan.env, plan.task_set)
        state_of_setting = rows_of(plan, state, slice(position * count, (position + 1) * count))
        where = setting_directory(directory, index)
        where.mkdir(parents=True, exist_ok=True)
        own.config.write(where)
        write_herds(own, state_of_setting, where)
        write_results(own, state_of_setting, where)


def rows_of(plan: Plan, state: RunState, rows: slice) -> RunState:
    """Return the run state of some of a plan's seeds, without replay."""

    def cut(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows], tree)

    start, stop, _ = rows.indices(len(plan.seeds))
    clustered = {
        name: ClusteredTasks(
            cut(found.probe),
            cut(found.embedded),
            found.clusters[rows],
            {index - start: why for index, why in found.failures.items() if start <= index < stop},
        )
        for name, found in state.clustered.items()
    }
    curves = {
        arm: type(own)(**{field.name: cut(getattr(own, field.name)) for field in dataclasses.fields(own)})
        for arm, own in state.curves.items()
    }
    learners = {arm: cut(without_replay(plan.learner, states)) for arm, states in state.learners.items()}
    return RunState(dict(state.done), learners, cut(state.probe), clustered, curves)


def state_bytes(plan: Plan) -> int:
    """Return the bytes of the states of all learners of a plan, old and new: what a sweep holds at least."""
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shapes(plan)))
    learners = sum(arm.size for arm in plan.arms.values() if arm.trains)
    return 2 * size * learners * len(plan.seeds)
