"""The one thing the Herd asks of a meta-learner."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from flax import struct

from tamherd_jax.envs.episodes import Episodes


@struct.dataclass
class EpochMetrics:
    """What one epoch of one learner reports.

    Attributes:
      before: `[N]` mean undiscounted return per task before adaptation, NaN for tasks not drawn.
      after: `[N]` the same after adaptation.
      steps: `[]` environment steps really taken; the budget is `MetaLearner.steps_per_epoch`.
      nonfinite: `[]` episodes ended because their state stopped being finite.
      diagnostics: name to `[]`, whatever the algorithm wants logged.
    """

    before: jax.Array
    after: jax.Array
    steps: jax.Array
    nonfinite: jax.Array
    diagnostics: dict[str, jax.Array]


class MetaLearner(Protocol):
    """Pure functions of one learner; the caller batches them with `vmap` over tasks, members, arms and seeds.

    `State` is everything training carries on; `Policy` is what acts on one task after adaptation. A learner that trains on
    stored experience is a `ReplayLearner` besides.
    """

    env: Any
    horizon: int

    @property
    def steps_per_epoch(self) -> int:
        """Environment steps an epoch of training may take."""
        ...

    def init(self, key: jax.Array) -> Any:
        """Fresh `State`."""
        ...

    def train_epoch(self, key: jax.Array, state: Any, tasks: Any, weights: jax.Array) -> tuple[Any, EpochMetrics]:
        """One epoch on tasks (leaves `[N, ...]`) drawn in proportion to `weights` `[N]`."""
        ...

    def probe(self, key: jax.Array, state: Any, task: Any, episodes: int) -> tuple[Any, Episodes]:
        """Policy parameters and `episodes` episodes (leaves `[E, T, ...]`) of one task without adaptation, for embedding it."""
        ...

    def adapt(self, key: jax.Array, state: Any, task: Any, episodes: int) -> tuple[Any, Episodes]:
        """`Policy` adapted to one task after `episodes` exploration episodes, and these."""
        ...

    def act(self, policy: Any, obs: jax.Array, key: jax.Array) -> jax.Array:
        """Action `[A]` of an adapted policy at test time."""
        ...

    def distribution(self, policy: Any, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation `[A]` of the (pre-squashing) Gaussian over actions, for the Fisher embedding."""
        ...


@runtime_checkable
class ReplayLearner(Protocol):
    """What a `MetaLearner` with stored experience has besides; ask with `isinstance`.

    Its states are large: donate them to `train_epoch`, and keep snapshots of those that only probe or adapt.
    """

    @property
    def preparation_steps(self) -> int:
        """Environment steps that `prepare` takes in each task."""
        ...

    def prepare(self, key: jax.Array, state: Any, tasks: Any, weights: jax.Array) -> tuple[Any, EpochMetrics]:
        """Collect what the first epoch needs; called once, before it. Not counted in `steps_per_epoch`."""
        ...

    def inherit(self, state: Any, other: Any, weights: jax.Array) -> Any:
        """In place of `prepare`: `state` with `other`'s experience of the tasks with a positive weight in `weights` `[N]`."""
        ...

    def snapshot(self, state: Any) -> Any:
        """The part of a state, or of a batch of them, that `probe` and `adapt` need: the same tree with None for the rest."""
        ...

    def check_memory(self, learners: int, available: int | None = None) -> None:
        """Refuse, with a ValueError of one line, more learners on a device than it can hold; called before `init`."""
        ...
