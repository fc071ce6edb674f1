"""The benchmarks by name."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Sequence

from benchmarks.cases import Case, Mode, Quoted


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A module of this package and what it measures; `alone` where it runs only by its own name."""

    name: str
    summary: str
    alone: bool = False

    @property
    def module(self) -> str:
        """Full name of the module."""
        return f"benchmarks.{self.name}"

    @property
    def present(self) -> bool:
        """Whether the module is part of this tree."""
        return importlib.util.find_spec(self.module) is not None

    def cases(self, mode: Mode) -> Sequence[Case | Quoted]:
        """What is measured in a mode."""
        found: Sequence[Case | Quoted] = importlib.import_module(self.module).cases(mode)
        return found


_ALL = (
    Benchmark("machine", "a copy and a matrix product: what the machine can do; always measured, first"),
    Benchmark("maml_epoch", "a MAML epoch, and its sampling, adaptation and update; garage quoted"),
    Benchmark("physics", "environment steps without a policy, by backend and batch; mujoco.rollout"),
    Benchmark("environment", "environment steps with a policy acting, by backend and batch"),
    Benchmark("trust_region", "meta-gradient, curvature product and trust-region step of MAML; PyTorch where it is installed"),
    Benchmark("meta_gradient", "meta-gradients against other ways to compute them", alone=True),
    Benchmark("fisher_gram", "Fisher embeddings of tasks and their Gram matrix"),
    Benchmark("pearl", "a gradient step of PEARL and an epoch; oyster quoted"),
    Benchmark("scaling", "the learner axis, from one learner up, and over CPU devices"),
    Benchmark("startup", "import, help, first progress line and first epoch's line of the command line"),
    Benchmark("peers", "gymnasium, EnvPool, mujoco.rollout, Brax and MJX on the half-cheetah; RLlib quoted"),
    Benchmark("table1", "the whole of Table 1, short, by seeds; its files and their report"),
    Benchmark("physics_accuracy", "error of the planar physics against MuJoCo C", alone=True),
    Benchmark(
        "endurance", "a hundred million random steps of the planar physics, and the memory of a million calls", alone=True
    ),
    Benchmark("embedding_study", "quality of the task embeddings", alone=True),
)


def benchmarks() -> dict[str, Benchmark]:
    """The benchmarks that this tree has, by name, in the order they are run."""
    return {benchmark.name: benchmark for benchmark in _ALL if benchmark.present}


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks to run: the machine's ceilings, then those named, or all that are no programs of their own.

    Raises:
      ValueError: there is no such benchmark, or it is a program of its own.
    """
    known = benchmarks()
    for name in names:
        if name not in known:
            raise ValueError(f"unknown benchmark {name!r}; choose from {', '.join(known)}")
        if known[name].alone:
            raise ValueError(f"{name} is a program of its own: python -m {known[name].module}")
    suite = [benchmark for benchmark in known.values() if not benchmark.alone]
    return [benchmark for benchmark in suite if benchmark.name == "machine" or not names or benchmark.name in names]
