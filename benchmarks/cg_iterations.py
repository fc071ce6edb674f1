"""Do ten iterations of conjugate gradient teach more than three? `python -m benchmarks.cg_iterations --into results.csv`.

On a CPU, `JAX_NUM_CPU_DEVICES=2` in the environment trains learners on two cores.

One MAML learner a seed trains on each choice of tasks with each number of iterations. Seeds are rows of the learner axis and
share a compiled program. Learners that differ in iterations alone share initial parameters, tasks and random numbers. Every
epoch of every seed is recorded. The end prints the mean return after adaptation over the last epochs, and its difference to
that of the largest number of iterations, mean over seeds, both with bootstrap intervals.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro

from benchmarks.csv_files import read_rows
from tamherd_jax.envs import Locomotion, ml2
from tamherd_jax.experiments.presets import get_preset
from tamherd_jax.maml import MAML
from tamherd_jax.parallel import map_learners
from tamherd_jax.reporting.statistics import estimate

COLUMNS = ("tasks", "cg_iterations", "seed", "epoch", "task", "before", "after", "kl")
LAST = 10  # epochs whose mean return a learner is judged by


@dataclasses.dataclass(frozen=True)
class Study:
    """Learning curves by the number of conjugate gradient iterations."""

    iterations: tuple[int, ...] = (3, 5, 10)
    """Numbers of iterations; the last is what the others are compared with."""
    tasks: tuple[str, ...] = ("cheetah", "walker", "all")
    """Choices of training tasks: a body's, all, or a task's name."""
    seeds: int = 6
    """Learners of each kind."""
    epochs: int = 60
    """Of `2 meta_batch_size x 10 x 100` environment steps."""
    meta_batch_size: int = 20
    """M, tasks an epoch."""
    preset: str = "quick"
    """Preset of MAML whose settings of the learner all share."""
    physics: str = "auto"
    """Backend."""
    into: Path = Path("cg_iterations.csv")
    """File of all epochs; learners that it holds whole are not trained again."""


def curves(study: Study, chosen: str, iterations: int) -> Iterator[list[object]]:
    """Train all seeds of one kind and yield a row of `COLUMNS` for each epoch, seed and task."""
    tasks = ml2()
    weights = np.array([chosen == "all" or name.startswith(chosen) for name in tasks.task_names], np.float32)
    if not weights.any():
        raise SystemExit(f"no task of {', '.join(tasks.task_names)} begins with {chosen!r}")
    shared = get_preset(study.preset).maml
    config = dataclasses.replace(shared, trpo=dataclasses.replace(shared.trpo, cg_iterations=iterations))
    learner = MAML(Locomotion(study.physics, 10.0), study.meta_batch_size, config)

    def epoch(key, number, state):
        return learner.train_epoch(jax.random.fold_in(key, number), state, tasks.tasks, weights)

    keys = jax.vmap(jax.random.key)(np.arange(study.seeds))
    program = map_learners(epoch, (0, None, 0), devices=jax.local_devices())
    states = map_learners(learner.init, (0,))(keys)
    for number in range(1, study.epochs + 1):
        states, metrics = program(keys, np.uint32(number), states)
        before, after, kl = (np.asarray(x) for x in (metrics.before, metrics.after, metrics.diagnostics["kl"]))
        for seed, index in itertools.product(range(study.seeds), np.flatnonzero(weights)):
            values = (round(float(x), 4) for x in (before[seed, index], after[seed, index], kl[seed]))
            yield [chosen, iterations, seed, number, tasks.task_names[index], *values]


def run(study: Study) -> None:
    """Train what the file does not hold yet, kind by kind; a kind is written once it is whole."""
    done = {(row["tasks"], int(row["cg_iterations"])) for row in read_rows(study.into)} if study.into.exists() else set()
    for kind in itertools.product(study.tasks, study.iterations):
        if kind in done:
            continue
        rows = list(curves(study, *kind))
        with study.into.open("a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(COLUMNS)
            writer.writerows(rows)
        print(f"{kind[0]}, {kind[1]} iterations: {len(rows)} rows", flush=True)


def scores(rows: list[dict[str, str]]) -> dict[tuple[str, int], np.ndarray]:
    """`[seeds]` mean return after adaptation over tasks and the last epochs, by tasks and number of iterations."""
    found: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    last = max(int(row["epoch"]) for row in rows) - LAST
    for row in rows:
        if int(row["epoch"]) > last:
            found[row["tasks"], int(row["cg_iterations"])][int(row["seed"])].append(float(row["after"]))
    return {kind: np.array([np.mean(values) for _, values in sorted(seeds.items())]) for kind, seeds in found.items()}


def report(rows: list[dict[str, str]]) -> Iterator[str]:
    """Yield a line for each kind: mean return, its interval, and the difference to the largest number of iterations."""
    by_kind = scores(rows)
    for (tasks, iterations), values in sorted(by_kind.items()):
        most = max(number for name, number in by_kind if name == tasks)
        whole, paired = (estimate([x], np.mean) for x in (values, values - by_kind[tasks, most]))
        yield (
            f"{tasks}, {iterations} iterations: {whole.value:.1f} [{whole.low:.1f}, {whole.high:.1f}], "
            f"against {most}: {paired.value:+.1f} [{paired.low:+.1f}, {paired.high:+.1f}]"
        )


def main() -> None:
    """Train, then report."""
    study = tyro.cli(Study)
    if study.seeds < 2:
        raise SystemExit(f"seeds must be at least 2 for intervals, not {study.seeds}")
    run(study)
    print("\n".join(report(read_rows(study.into))))


if __name__ == "__main__":
    main()
