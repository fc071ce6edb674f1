"""Join finished runs of different seeds into one, as when seeds were trained on several machines or days."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from tamherd_jax.codec import encode
from tamherd_jax.experiments.results import EPISODES, FinalReturns, Ledger, Results, ReturnRow, Statistic, read_run
from tamherd_jax.experiments.settings import flat_settings
from tamherd_jax.experiments.writing import write_result_files

Arrays = dict[str, np.ndarray]


class FinishedRun(NamedTuple):
    """Result files of one run.

    Attributes:
      directory: Where they are.
      results, curves, embeddings: See `results.read_run`.
    """

    directory: Path
    results: Results
    curves: Arrays
    embeddings: Arrays


def read_runs(directories: Sequence[Path]) -> list[FinishedRun]:
    """Return finished runs in the order of their seeds.

    Raises:
      ValueError: In one line, if there are less than two, one is not finished, they differ in more than their seeds, or their
        seeds do not follow each other.
    """
    if len(directories) < 2:
        raise ValueError("there is nothing to join: name the directories of two runs or more")
    runs = sorted((FinishedRun(where, *read_run(where)) for where in directories), key=lambda run: int(run.results.seeds[0]))
    first = runs[0]
    for before, run in itertools.pairwise(runs):
        wanted, found = int(before.results.seeds[-1]) + 1, int(run.results.seeds[0])
        if found != wanted:
            raise ValueError(f"{run.directory} begins with seed {found}, not {wanted} as after {before.directory}")
        check_alike(first, run)
    return runs


def check_alike(one: FinishedRun, other: FinishedRun) -> None:
    """Check that two runs differ in their seeds alone.

    Raises:
      ValueError: In one line that names the first difference.
    """
    ours, theirs = (flat_settings(_without_seeds(run.results)) for run in (one, other))
    for name in ours | theirs:
        a, b = (values.get(name) for values in (ours, theirs))
        if a != b:
            raise ValueError(f"{other.directory} is not of the same command as {one.directory}: {name} is {b!r}, not {a!r}")
    for kind in ("curves", "embeddings"):
        ours, theirs = (_shapes(getattr(run, kind)) for run in (one, other))
        for name in sorted(ours | theirs):
            if ours.get(name) != theirs.get(name):
                where = f"{name} of its {kind}"
                raise ValueError(f"{other.directory} differs from {one.directory} in epochs, tasks or members: {where}")


def join_runs(runs: Sequence[FinishedRun], directory: Path) -> None:
    """Write the result files of all seeds of `read_runs`, as one run of them leaves them, and copy the trained herds.

    Raises:
      OSError: A file cannot be read or written.
    """
    results = join_results([run.results for run in runs])
    curves, embeddings = (join_arrays([getattr(run, kind) for run in runs]) for kind in ("curves", "embeddings"))
    for run in runs:
        for herd in sorted((run.directory / "herd").glob("seed-*")):
            shutil.copytree(herd, directory / "herd" / herd.name)
    if (episodes := runs[0].directory / EPISODES).exists():  # a run records its first seed
        shutil.copyfile(episodes, directory / EPISODES)
    results.config.write(directory)
    write_result_files(directory, results, curves, embeddings)


def join_results(parts: Sequence[Results]) -> Results:
    """Return the results of all seeds; rows in the order in which one run writes them."""
    first = parts[0]
    arms, bodies, statistics = list(first.nonfinite_episodes), first.task_set.bodies, get_args(Statistic)

    def place(row: ReturnRow) -> tuple[int, int, int, int]:
        return arms.index(row.arm), bodies.index(row.body), row.seed, statistics.index(row.statistic)

    return dataclasses.replace(
        first,
        config=dataclasses.replace(first.config, seeds=sum(part.config.seeds for part in parts)),
        rows=tuple(sorted(_chain(part.rows for part in parts), key=place)),
        excluded=tuple(_chain(part.excluded for part in parts)),
        clusters=tuple(_chain(part.clusters for part in parts)),
        ledger=join_ledgers([part.ledger for part in parts]),
        nonfinite_episodes={arm: sum(part.nonfinite_episodes[arm] for part in parts) for arm in arms},
        final_tests=join_final_tests([part.final_tests for part in parts if part.final_tests is not None]),
    )


def join_ledgers(parts: Sequence[Ledger]) -> Ledger:
    """Return the ledger of all seeds."""
    taken = {name: list(_chain(part.taken[name] for part in parts)) for name in parts[0].taken}
    return dataclasses.replace(parts[0], taken=taken)


def join_final_tests(parts: Sequence[FinalReturns]) -> FinalReturns | None:
    """Return the tests after the last epoch of all seeds; None where there were none."""
    if not parts:
        return None
    returns = {arm: list(_chain(part.returns[arm] for part in parts)) for arm in parts[0].returns}
    return dataclasses.replace(parts[0], returns=returns)


def join_arrays(parts: Sequence[Arrays]) -> Arrays:
    """Return arrays `[S, ...]` of all seeds; those without an axis of seeds are the first run's."""
    return {
        name: array if _is_shared(name) else np.concatenate([part[name] for part in parts]) for name, array in parts[0].items()
    }


def _is_shared(name: str) -> bool:
    """Whether an array of a run is the same for all seeds."""
    return name == "task" or name.endswith("/budget")


def _shapes(arrays: Arrays) -> dict[str, Any]:
    """By name, the shape of one seed's part of an array, or the values that all seeds share."""
    return {name: array.tolist() if _is_shared(name) else array.shape[1:] for name, array in arrays.items()}


def _without_seeds(results: Results) -> dict[str, Any]:
    """What runs of one command have in common, as JSON has it."""
    document = encode(results)
    common = {name: document[name] for name in ("package", "versions", "device", "physics", "task_set")}
    settings = {name: value for name, value in document["config"].items() if name not in ("seeds", "first_seed")}
    final = document["final_tests"] and {name: value for name, value in document["final_tests"].items() if name != "returns"}
    ledger = {name: document["ledger"][name] for name in ("budget", "meta_updates")}
    return {**settings, **common, "ledger": ledger, "final tests": final}


_chain = itertools.chain.from_iterable
