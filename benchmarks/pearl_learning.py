"""Learning curves of PEARL's oracles under several recipes: `python -m benchmarks.pearl_learning quick layer-norm`.

Recipes that differ in floats alone, their seeds and bodies are rows of one program. All recipes' programs are compiled at the
same time and then take turns, an epoch each, until the epochs or the seconds are over; rows of the CSV are there at once.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.csv_files import write_rows
from tamherd_jax.envs import Locomotion, ml2
from tamherd_jax.envs.episodes import collect_policy_episodes
from tamherd_jax.envs.tasks import take_tasks
from tamherd_jax.pearl import PEARL, PEARLConfig

BASE = PEARLConfig(
    encoder_sizes=(64, 64),
    hidden_sizes=(128, 128),
    learning_rate=1e-3,
    target_rate=0.01,
    reward_scale=25.0,
    prior_steps=600,
    posterior_steps=600,
    gradient_steps=1250,
    batch_size=64,
    context_size=64,
    replay_capacity=60_000,
)
"""`quick-pearl` as it was before this study, but in longer epochs: the same steps for each update, in larger pieces."""
_LAYER = {"critic_norm": "layer", "bootstrap": "q", "squash": "exact"}
_UNIT = {**_LAYER, "reward_unit": "magnitude", "reward_scale": 5.0}
_BINS = {**_UNIT, "critic_loss": "categorical", "value_limit": 1000.0}
_UNIT_98 = {**_UNIT, "discount": 0.98}
_WINDOW = {**_UNIT_98, "context_window": 4000}
_FINE = {**_BINS, "value_bins": 401, "value_limit": 2000.0, "reward_scale": 20.0, "discount": 0.98}
RECIPES: dict[str, dict[str, Any]] = {
    "quick": {},
    "quick-scale-5": {"reward_scale": 5.0},
    "quick-rate-3e-4": {"learning_rate": 3e-4},
    "exact": {"squash": "exact"},
    "target-q": {"bootstrap": "q", "squash": "exact"},
    "layer-v": {"critic_norm": "layer", "squash": "exact"},
    "layer": _LAYER,
    "layer-scale-5": {**_LAYER, "reward_scale": 5.0},
    "layer-scale-10": {**_LAYER, "reward_scale": 10.0},
    "layer-scale-50": {**_LAYER, "reward_scale": 50.0},
    "layer-scale-100": {**_LAYER, "reward_scale": 100.0},
    "layer-rate-3e-4": {**_LAYER, "learning_rate": 3e-4},
    "layer-rate-5e-4": {**_LAYER, "learning_rate": 5e-4},
    "layer-tau-0.005": {**_LAYER, "target_rate": 0.005},
    "layer-tau-0.02": {**_LAYER, "target_rate": 0.02},
    "layer-kl-1": {**_LAYER, "kl_weight": 1.0},
    "layer-kl-10": {**_LAYER, "kl_weight": 10.0},
    "layer-discount-0.97": {**_LAYER, "discount": 0.97},
    "layer-discount-0.98": {**_LAYER, "discount": 0.98},
    "layer-no-mean-weight": {**_LAYER, "mean_weight": 0.0, "log_std_weight": 0.0},
    "layer-delay-2": {**_LAYER, "policy_delay": 2},
    "layer-batch-256": {**_LAYER, "batch_size": 256, "context_size": 128},
    "layer-batch-256-rate-3e-4": {**_LAYER, "batch_size": 256, "context_size": 128, "learning_rate": 3e-4},
    "layer-wide": {**_LAYER, "hidden_sizes": (256, 256), "batch_size": 128},
    "layer-wide-rate-3e-4": {**_LAYER, "hidden_sizes": (256, 256), "batch_size": 128, "learning_rate": 3e-4},
    "unit": _UNIT,
    "unit-scale-2": {**_UNIT, "reward_scale": 2.0},
    "unit-scale-20": {**_UNIT, "reward_scale": 20.0},
    "unit-rate-3e-4": {**_UNIT, "learning_rate": 3e-4},
    "unit-kl-1": {**_UNIT, "kl_weight": 1.0},
    "unit-discount-0.98": _UNIT_98,
    "bins": _BINS,
    "bins-scale-20": {**_BINS, "reward_scale": 20.0, "value_limit": 4000.0},
    "bins-rate-3e-4": {**_BINS, "learning_rate": 3e-4},
    "u98-rate-2e-3": {**_UNIT_98, "learning_rate": 2e-3},
    "u97": {**_UNIT, "discount": 0.97},
    "u98-scale-10": {**_UNIT_98, "reward_scale": 10.0},
    "u98-scale-3": {**_UNIT_98, "reward_scale": 3.0},
    "u98-tau-0.02": {**_UNIT_98, "target_rate": 0.02},
    "u98-kl-1": {**_UNIT_98, "kl_weight": 1.0},
    "u98-rate-2e-3-tau-0.02": {**_UNIT_98, "learning_rate": 2e-3, "target_rate": 0.02},
    "wide-u98": {**_UNIT_98, "hidden_sizes": (256, 256)},
    "wide-u98-rate-5e-4": {**_UNIT_98, "hidden_sizes": (256, 256), "learning_rate": 5e-4},
    "batch-u98": {**_UNIT_98, "batch_size": 256},
    "batch-u98-rate-2e-3": {**_UNIT_98, "batch_size": 256, "learning_rate": 2e-3},
    "contexts-window-2000": {**_UNIT_98, "context_window": 2000},
    "contexts-window-4000": _WINDOW,
    "contexts-window-4000-episodes-1": {**_WINDOW, "context_episodes": 1},
    "contexts-window-4000-episodes-2": {**_WINDOW, "context_episodes": 2},
    "contexts-episodes-1": {**_UNIT_98, "context_episodes": 1},
    "fine": _FINE,
    "fine-rate-2e-3": {**_FINE, "learning_rate": 2e-3},
    "fine-scale-40": {**_FINE, "value_limit": 4000.0, "reward_scale": 40.0},
    "fine-scale-10": {**_FINE, "value_limit": 1000.0, "reward_scale": 10.0},
    "fine-scale-20-d99": {**_FINE, "value_limit": 4000.0, "discount": 0.99},
}
"""What each changes of `BASE`."""
DRAWS = 10
"""Task draws of an epoch, five for each of a body's two tasks."""
COLUMNS = (
    "recipe", "tasks", "seed", "epoch", "updates", "task", "before", "after", "train_before", "train_after", "belief_distance",
    "critic_loss", "mean_q", "entropy", "kl",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
    """Train an oracle of each body and seed by each recipe and print its test returns after every epoch, as CSV."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = tuple(RECIPES)
    """Names of `RECIPES`."""
    bodies: tuple[Literal["cheetah", "walker"], ...] = ("cheetah", "walker")
    """Whose oracles."""
    seeds: int = 3
    """Of each."""
    first_seed: int = 0
    """The first of them."""
    epochs: int = 40
    """Of `gradient_steps` updates."""
    gradient_steps: int = BASE.gradient_steps
    """Of an epoch."""
    seconds: float = float("inf")
    """After which no further epoch starts."""
    repeats: int = 2
    """Tests of each task after an epoch, each of 2 exploration episodes and one test episode."""
    physics: Literal["auto", "planar", "mujoco", "mjx"] = "auto"
    """Backend."""
    precision: Literal["highest", "tensorfloat32", "bfloat16"] = "highest"
    """Of the networks' matrix products."""
    into: Path | None = None
    """A CSV file to append to, in place of printing."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Learners of one program, L rows.

    Attributes:
      names: `[L]` recipe, body and seed of each.
      config: settings, leaves `[L]`.
      tasks: a body's two tasks, leaves `[L, 2, ...]`.
      task_names: `[L]` names of both.
    """

    names: Sequence[tuple[str, str, int]]
    config: PEARLConfig
    tasks: Any
    task_names: Sequence[tuple[str, ...]]


def groups(study: Study) -> list[Rows]:
    """Recipes whose settings differ in leaves alone, together."""
    by_program: dict[Any, list[tuple[str, PEARLConfig]]] = {}
    base = dataclasses.replace(BASE, gradient_steps=study.gradient_steps, matmul_precision=study.precision)
    for name in study.recipes:
        config = dataclasses.replace(base, **RECIPES[name])
        by_program.setdefault(jax.tree.structure(config), []).append((name, config))
    return [_rows(study, members) for members in by_program.values()]


def _rows(study: Study, members: Sequence[tuple[str, PEARLConfig]]) -> Rows:
    """Every recipe of one program with every body and seed."""
    task_set, seeds = ml2(), range(study.first_seed, study.first_seed + study.seeds)
    table = [(name, config, body, seed) for name, config in members for body in study.bodies for seed in seeds]
    own = [np.flatnonzero([name.startswith(body) for name in task_set.task_names]) for _, _, body, _ in table]
    config = jax.tree.map(lambda *leaves: jnp.array(leaves, jnp.float32), *(config for _, config, _, _ in table))
    names = [(name, body, seed) for name, _, body, seed in table]
    task_names = [tuple(task_set.task_names[i] for i in row) for row in own]
    return Rows(names, config, take_tasks(task_set.tasks, np.stack(own)), task_names)


class Program:
    """Compiled start and epoch of the learners of one program."""

    def __init__(self, study: Study, rows: Rows, env: Locomotion):
        self.rows, self._repeats, self._env = rows, study.repeats, env
        self.keys = jax.vmap(jax.random.key)(jnp.array([seed for _, _, seed in rows.names]))
        self._weights = jnp.full(2, 0.5)
        self._start = jax.jit(jax.vmap(self._start_one)).lower(self.keys, rows.config, rows.tasks).compile()
        state = jax.eval_shape(jax.vmap(self._start_one), self.keys, rows.config, rows.tasks)
        epoch = jax.jit(jax.vmap(self._epoch_one), donate_argnums=1)
        self._epoch = epoch.lower(self.keys, state, rows.config, rows.tasks).compile()

    def start(self) -> Any:
        """Return fresh learners with prefilled replay."""
        return self._start(self.keys, self.rows.config, self.rows.tasks)

    def epoch(self, number: int, state: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """The next epoch and its test, `[L]` or `[L, 2]` by column."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, number)
        state, measured = self._epoch(keys, state, self.rows.config, self.rows.tasks)
        return state, jax.tree.map(np.asarray, measured)

    def _learner(self, config: PEARLConfig) -> PEARL:
        return PEARL(self._env, DRAWS, 2, config)

    def _start_one(self, key: jax.Array, config: PEARLConfig, tasks: Any) -> Any:
        learner = self._learner(config)
        init_key, key = jax.random.split(key)
        return learner.prefill(key, learner.init(init_key), tasks, self._weights)[0]

    def _epoch_one(self, key: jax.Array, state: Any, config: PEARLConfig, tasks: Any) -> tuple[Any, dict[str, jax.Array]]:
        learner = self._learner(config)
        train_key, test_key = jax.random.split(key)
        state, metrics = learner.train_epoch(train_key, state, tasks, self._weights)
        probe = learner.without_replay(state)
        test = jax.vmap(lambda k, task: self._test(learner, k, probe, task))
        repeat = jax.vmap(lambda k: test(jax.random.split(k), tasks))
        before, after, mean, var = repeat(jax.random.split(test_key, self._repeats))
        apart = jnp.sqrt(jnp.sum((mean[:, 0] - mean[:, 1]) ** 2 / jnp.mean(var, 1), axis=-1))
        chosen = {name: metrics.diagnostics[name] for name in ("critic_loss", "mean_q", "entropy", "kl")}
        return state, {
            "before": jnp.mean(before, 0), "after": jnp.mean(after, 0), "train_before": metrics.before,
            "train_after": metrics.after, "belief_distance": jnp.mean(apart), **chosen,
        }  # fmt: skip

    def _test(self, learner: PEARL, key: jax.Array, state: Any, task: Any) -> Any:
        """Return returns of exploration and after adaptation, and the belief's mean and variance."""
        explore_key, test_key = jax.random.split(key)
        policy, experience = learner.adapt(explore_key, state, task, 2)
        returns = collect_policy_episodes(learner, policy, task, test_key, 1).returns
        return jnp.mean(experience.returns), jnp.mean(returns), *learner.infer(state, experience)


def lines(study: Study) -> Iterator[list[object]]:
    """Rows of the CSV as they come."""
    begin, env = time.perf_counter(), Locomotion(study.physics)
    with ThreadPoolExecutor(max_workers=8) as pool:
        programs = [pool.submit(Program, study, rows, env) for rows in groups(study)]
        states: list[Any] = [None] * len(programs)
        done, longest = [0] * len(programs), 0.0
        while min(done) < study.epochs and time.perf_counter() - begin + longest < study.seconds:
            turn = _whose_turn(programs, done, study.epochs)
            program, before = programs[turn].result(), time.perf_counter()
            state = program.start() if done[turn] == 0 else states[turn]
            done[turn] += 1
            states[turn], measured = program.epoch(done[turn], state)
            if done[turn] > 1:
                longest = max(longest, time.perf_counter() - before)
            print(f"{time.perf_counter() - begin:.1f} s: program {turn}, epoch {done[turn]}", file=sys.stderr, flush=True)
            yield from _lines_of(program.rows, done[turn], done[turn] * study.gradient_steps, measured)


def _whose_turn(programs: Sequence[Future[Program]], done: Sequence[int], epochs: int) -> int:
    """The program with the fewest epochs of those compiled, or the first one if none is."""
    unfinished = [i for i in range(len(programs)) if done[i] < epochs]
    ready = [i for i in unfinished if programs[i].done()] or unfinished[:1]
    return min(ready, key=lambda i: done[i])


def _lines_of(rows: Rows, epoch: int, updates: int, measured: dict[str, np.ndarray]) -> Iterator[list[object]]:
    """One epoch of every learner, a line for each of its tasks."""
    for row, (recipe, body, seed) in enumerate(rows.names):
        for task, name in enumerate(rows.task_names[row]):
            values = [measured[column][row] for column in COLUMNS[6:]]
            numbers = [float(value[task] if np.ndim(value) else value) for value in values]
            yield [recipe, body, seed, epoch, updates, name, *(f"{number:.4g}" for number in numbers)]


def main() -> None:
    """Write every epoch as soon as it is there."""
    study = tyro.cli(Study)
    write_rows(COLUMNS, lines(study), study.into)


if __name__ == "__main__":
    main()
