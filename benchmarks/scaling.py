"""The learner axis: MAML epochs of many learners in one compiled program, and learners dealt to several devices of a CPU.

`python -m benchmarks.scaling DEVICES LEARNERS` is the child that has as many CPU devices: a line in, an epoch, its seconds out.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cases import Call, Case, Child, Mode


@functools.cache
def trainer(draws: int, episodes: int, horizon: int, physics: str, devices: int = 1) -> tuple[Any, Any]:
    """A learner and its training epoch for an axis of learners, over so many devices; programs are shared by all counts."""
    import jax

    from tamherd_jax.envs import Locomotion, ml2
    from tamherd_jax.maml import MAML, MAMLConfig
    from tamherd_jax.parallel import map_learners

    learner = MAML(Locomotion(physics, 10.0), draws, MAMLConfig(episodes_per_task=episodes, horizon=horizon))
    tasks, chosen = ml2().tasks, jax.local_devices()[:devices]
    return learner, map_learners(lambda k, s, w: learner.train_epoch(k, s, tasks, w), (0, 0, 0), devices=chosen)


def epoch_of(learners: int, *size: Any) -> Callable[[], Any]:
    """A function that trains one epoch of so many learners; `size` as of `trainer`."""
    import jax
    import numpy as np

    learner, train = trainer(*size)
    keys = jax.random.split(jax.random.key(0), learners)
    states = jax.jit(jax.vmap(learner.init))(keys)
    weights = np.ones((learners, 4), np.float32)
    return lambda: jax.block_until_ready(train(keys, states, weights))


def steps_of(out: Any) -> float:
    """Environment steps that an epoch of all learners took."""
    return float(out[1].steps.sum())


class Worker:
    """A child process with several CPU devices that runs epochs on demand."""

    def __init__(self, devices: int, learners: int, size: tuple[int, int, int]):
        arguments = [str(x) for x in (devices, learners, *size)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.run()  # compiles

    def run(self) -> Child:
        """Seconds of one epoch of all learners."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with status {self._process.wait()}")
        return Child(*json.loads(line))

    def close(self) -> None:
        """Stop the child process."""
        self._process.communicate()


def cases(mode: Mode) -> list[Case]:
    """Learners in one call, then a fixed number of learners over CPU devices, on `planar` physics, which holds no lock."""
    size = mode.pick((4, 2, 5), (4, 5, 20), (4, 5, 20), (20, 10, 100))
    counts = mode.pick((2,), (1, 10), (1, 10, 100), (1, 10, 100, 1000))
    physics = mode.pick("planar", "auto", "auto")
    text = "{} tasks x {} episodes x {} steps".format(*size)

    def learners(count: int) -> Case:
        job = functools.partial(lambda count: Call(epoch_of(count, *size, physics), compiles=True), count)
        name = f"{count:,} learner{'s' * (count > 1)}, {text}"
        return Case(name, job, "environment step", steps_of, series="learners", size=count, repeats=3 if count >= 100 else None)

    several = mode.pick((), (), (1, 2), (1, 2, 4, 8))
    small, dealt = (4, 5, 20), 8

    def devices(count: int) -> Case:
        def job() -> Call:
            worker = Worker(count, dealt, small)
            return Call(worker.run, own_clock=True, close=worker.close)

        name = f"{dealt} learners over {count} CPU device{'s' * (count > 1)}, planar"
        return Case(name, job, "epoch", dealt, series="CPU devices", size=count)

    return [*map(learners, counts), *map(devices, several)]


def main() -> None:
    """Run the child process: an epoch for each line on standard input."""
    from benchmarks.measure import resident_memory

    devices, learners, *size = (int(x) for x in sys.argv[1:])
    epoch = epoch_of(learners, *size, "planar", devices)
    for _ in sys.stdin:
        start = time.perf_counter()
        epoch()
        print(json.dumps([time.perf_counter() - start, resident_memory()[1]]), flush=True)


if __name__ == "__main__":
    main()
