"""How one MAML learner's returns grow under other settings: `python -m benchmarks.learning --body cheetah --max-kl 0.05`."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from tamherd_jax.envs import Locomotion, ml2
from tamherd_jax.maml import MAML, MAMLConfig, TRPOConfig

OneTask = Literal["cheetah-forward", "cheetah-backward", "walker-forward", "walker-backward"]
WINDOW = 10  # epochs that a line is the mean of


@dataclasses.dataclass(frozen=True)
class Learning:
    """Train one learner and print its training returns, means of ten epochs, as CSV."""

    tasks: OneTask | Literal["cheetah", "walker", "all"] = "cheetah"
    """What it trains on: the single learner's tasks, an oracle's, or one."""
    epochs: int = 60
    """Of `2 meta_batch_size x 10 x 100` environment steps."""
    meta_batch_size: int = 20
    """M, tasks an epoch."""
    max_kl: float = 0.01
    """Radius of the trust region."""
    final_max_kl: float | None = None
    """Where it ends if it decays."""
    decay_begin: int = 0
    """Epochs before it decays."""
    decay_steps: int = 1
    """Epochs over which it does."""
    action_scale: float = 10.0
    """Motors get `clip(a / scale, -1, 1)`."""
    inner_step_size: float = 0.1
    """Of the adaptation step; 0 for plain TRPO on twice the episodes it learns from."""
    inner_steps: int = 1
    """Adaptation steps on the same episodes."""
    inner_loss: Literal["likelihood", "ratio"] = "likelihood"
    """Loss of the adaptation step: garage's, or ProMP's LVC."""
    entropy_coefficient: float = 0.0
    """Of the adapted policies' entropy in the outer objective."""
    entropy_decay_steps: int | None = None
    """Epochs over which it falls to 0."""
    gae_lambda: float = 1.0
    """Lambda of the generalised advantages."""
    discount: float = 0.99
    """Gamma."""
    advantage_scale: Literal["std", "variance", "none"] = "std"
    """What centred advantages are divided by."""
    baseline: Literal["linear", "frozen"] = "linear"
    """Of the advantages: fitted linear features, or garage's value network that is never trained."""
    init_log_std: float = MAMLConfig.init_log_std
    """Logarithm of the policy's standard deviation at the start."""
    walker_frame_skip: int = 4
    """Physics steps in an environment step of the walker."""
    physics: Literal["planar", "mujoco", "mjx"] = "planar"
    """Backend."""
    seed: int = 0
    """Of the random numbers."""
    into: Path | None = None
    """A CSV file to append to, beside printing."""


def rows(options: Learning) -> Iterator[list[object]]:
    """Settings, epoch, task, mean return before and after adaptation."""
    config = MAMLConfig(
        inner_step_size=options.inner_step_size,
        inner_steps=options.inner_steps,
        inner_loss=options.inner_loss,
        entropy_coefficient=options.entropy_coefficient,
        entropy_decay_steps=options.entropy_decay_steps,
        gae_lambda=options.gae_lambda,
        discount=options.discount,
        advantage_scale=options.advantage_scale,
        baseline=options.baseline,
        init_log_std=options.init_log_std,
        trpo=TRPOConfig(
            max_kl=options.max_kl,
            final_max_kl=options.final_max_kl,
            decay_begin=options.decay_begin,
            decay_steps=options.decay_steps,
        ),
    )
    env = Locomotion(options.physics, options.action_scale, walker_frame_skip=options.walker_frame_skip)
    learner = MAML(env, options.meta_batch_size, config)
    tasks, key = ml2(), jax.random.key(options.seed)
    weights = np.array([options.tasks == "all" or name.startswith(options.tasks) for name in tasks.task_names], np.float32)
    epoch, state = jax.jit(learner.train_epoch), learner.init(key)
    window: list[tuple[np.ndarray, np.ndarray]] = []
    settings = [getattr(options, field) for field in SETTINGS]
    for number in range(1, options.epochs + 1):
        state, metrics = epoch(jax.random.fold_in(key, number), state, tasks.tasks, weights)
        window.append((np.asarray(metrics.before), np.asarray(metrics.after)))
        if number % WINDOW == 0:
            before, after = np.mean(window, 0)
            for index in np.flatnonzero(weights):
                yield [
                    *settings,
                    number,
                    tasks.task_names[index],
                    round(float(before[index]), 1),
                    round(float(after[index]), 1),
                ]
            window.clear()


SETTINGS = tuple(field.name for field in dataclasses.fields(Learning) if field.name not in ("epochs", "into"))
COLUMNS = (*SETTINGS, "epoch", "task", "before", "after")


def main() -> None:
    """Print and append a row as soon as it is there."""
    options = tyro.cli(Learning)
    writers = [csv.writer(sys.stdout)]
    file = options.into.open("a", newline="") if options.into else None
    if file:
        writers.append(csv.writer(file))
    if file is None or not file.tell():
        for writer in writers:
            writer.writerow(COLUMNS)
    for row in rows(options):
        for writer in writers:
            writer.writerow(row)
        sys.stdout.flush()
    if file:
        file.close()


if __name__ == "__main__":
    main()
