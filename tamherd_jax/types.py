"""Types that all parts share: data that passes between them, and protocols of physics, environments and meta-learners.

This module imports nothing of the package. Axes: S seeds, L learners, K members, N tasks, R episodes, T steps, O and A sizes of
observations and actions.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PyTree: TypeAlias = Any
"""Tree of arrays whose structure only its maker knows: a task, a learner's state, a policy, a policy's carry."""

Params: TypeAlias = Any
"""Tree of a network's parameters."""

Document: TypeAlias = dict[str, Any]
"""JSON object as read from a file, or about to be written to one: field names to values."""


@struct.dataclass
class PhysicsState:
    """State of one body between two environment steps; Q degrees of freedom.

    Attributes:
      q: `[Q]` positions: root x and z (m) relative to the model's rest pose, root pitch, joint angles (rad).
      qd: `[Q]` velocities (m/s, rad/s).
      warmstart: `[Q]` last constrained acceleration, the solver's next guess (m/s^2, rad/s^2). Backends whose solver always
        runs to convergence leave it at zero.
    """

    q: jax.Array
    qd: jax.Array
    warmstart: jax.Array


class Physics(Protocol):
    """Physics backend: moves one body by one environment step. Its bodies share one layout of Q coordinates and U motors."""

    name: str

    def step(self, body: jax.Array, state: PhysicsState, control: jax.Array) -> PhysicsState:
        """Return the state after one environment step.

        Args:
          body: `[]` int32 index into the backend's bodies; data, so a batch may mix bodies.
          state: unbatched; `vmap` this function, to any depth, for more.
          control: `[U]` motor controls, clipped to [-1, 1] by the caller.

        Returns:
          The next state. Where the dynamics diverged it holds non-finite numbers, in this batch element only.
        """
        ...


class TaskEnv(Protocol):
    """Environment as learners see it: Brax's interface with the task as data in `reset`.

    `step` must leave a state whose `done` is 1 unchanged, with reward 0. `metrics["nonfinite"]`, where present, is 1 for a
    step after which the state was no longer finite. `info["truncation"]`, where present, is 1 where `done` is due to a time
    limit, as Brax's `EpisodeWrapper` has it: the episode is over, but its last state has a value.
    """

    def reset(self, rng: jax.Array, task: PyTree) -> PyTree:
        """Return a fresh `brax.envs.State` of a task."""
        ...

    def step(self, state: PyTree, action: jax.Array) -> PyTree:
        """Return the state after one action `[A]`."""
        ...

    @property
    def observation_size(self) -> int:
        """O, length of an observation."""
        ...

    @property
    def action_size(self) -> int:
        """A, length of an action."""
        ...

    @property
    def backend(self) -> str:
        """Name of the physics, as results and saved herds record it."""
        ...


@struct.dataclass
class Episodes:
    """Episodes of T steps; leading axes as the caller vmapped them.

    Attributes:
      obs: `[..., T, O]` observation the action was taken on.
      actions: `[..., T, A]` the policy's own action, before the environment's scaling and clipping.
      rewards: `[..., T]`, 0 where not valid.
      next_obs: `[..., T, O]` observation after the action.
      terminated: `[..., T]` 1 on the step that ended the episode (a fall, a diverged state); a time limit is no termination,
        the environment's own included.
      valid: `[..., T]` 1 while the episode had not terminated before this step, and the step stayed finite.
      nonfinite: `[...]` 1 if the episode was ended because its state stopped being finite.
    """

    obs: jax.Array
    actions: jax.Array
    rewards: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    valid: jax.Array
    nonfinite: jax.Array

    @property
    def returns(self) -> jax.Array:
        """`[...]` undiscounted return of each episode."""
        return jnp.sum(self.rewards, axis=-1)

    @property
    def steps(self) -> jax.Array:
        """`[...]` environment steps really taken in each episode."""
        return jnp.sum(self.valid, axis=-1)


@struct.dataclass
class EpochMetrics:
    """Report of one training epoch of one learner.

    Attributes:
      before: `[N]` mean undiscounted return per task before adaptation, NaN for tasks not sampled.
      after: `[N]` the same after adaptation.
      steps: `[]` environment steps really taken; the budget is `MetaLearner.steps_per_epoch`.
      nonfinite: `[]` episodes ended because their state stopped being finite.
      diagnostics: name to `[]`, further quantities to log.
    """

    before: jax.Array
    after: jax.Array
    steps: jax.Array
    nonfinite: jax.Array
    diagnostics: dict[str, jax.Array]


class MetaLearner(Protocol):
    """Pure functions of one learner; the caller batches them with `vmap` over tasks, members, arms and seeds.

    The *state* is everything that training carries from epoch to epoch. A *policy* is what acts on one task after adaptation. A
    policy may carry hidden state from step to step: `initial_carry` returns it at the start of an episode and `act` returns the
    next one. Policies without memory carry the empty tuple. A learner that trains on stored experience is a `ReplayLearner`,
    one that infers a latent of each task a `LatentLearner` besides.

    A learner whose policy depends on more than the observation (a latent, a carry) appends that to the observations of the
    episodes that `probe` and `adapt` return, so that `distribution` can evaluate any step by itself.
    """

    env: TaskEnv
    horizon: int

    @property
    def steps_per_epoch(self) -> int:
        """Environment steps an epoch of training may take."""
        ...

    def init(self, key: jax.Array) -> PyTree:
        """Return a fresh state."""
        ...

    def train_epoch(self, key: jax.Array, state: PyTree, tasks: PyTree, weights: jax.Array) -> tuple[PyTree, EpochMetrics]:
        """Train one epoch on tasks (leaves `[N, ...]`) sampled in proportion to `weights` `[N]`."""
        ...

    def probe(self, key: jax.Array, state: PyTree, task: PyTree, episodes: int) -> tuple[PyTree, Episodes]:
        """Return policy parameters and `episodes` episodes (leaves `[R, T, ...]`) of one task without adaptation."""
        ...

    def adapt(self, key: jax.Array, state: PyTree, task: PyTree, episodes: int) -> tuple[PyTree, Episodes]:
        """Return the policy adapted to one task after `episodes` exploration episodes, and these (leaves `[R, T, ...]`)."""
        ...

    def initial_carry(self, policy: PyTree) -> PyTree:
        """Return the policy's hidden state at the start of an episode; `()` for a policy without memory."""
        ...

    def act(self, policy: PyTree, carry: PyTree, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, PyTree]:
        """Return the action `[A]` of an adapted policy at `obs` `[O]`, and its next hidden state."""
        ...

    def distribution(self, policy: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and log standard deviation `[..., A]` of the (pre-squashing) Gaussian at `obs` `[..., O]`."""
        ...


@runtime_checkable
class TunableLearner(Protocol):
    """Further functions of a `MetaLearner` whose settings may be data, one value a learner; ask with `isinstance`."""

    config: Any

    def with_config(self, config: Any) -> Any:
        """Return the same learner with other settings: `config` is of the same class, and its numbers may be traced."""
        ...


@runtime_checkable
class ReplayLearner(Protocol):
    """Further functions of a `MetaLearner` with stored experience; ask with `isinstance`.

    Its states are large: donate them to `train_epoch`, and keep only what `without_replay` returns for probing and adapting.
    """

    @property
    def prefill_steps(self) -> int:
        """Environment steps that `prefill` takes in each task."""
        ...

    def prefill(self, key: jax.Array, state: PyTree, tasks: PyTree, weights: jax.Array) -> tuple[PyTree, EpochMetrics]:
        """Prefill the replay buffers; called once, before the first epoch. Not counted in `steps_per_epoch`."""
        ...

    def copy_replay(self, state: PyTree, other: PyTree, weights: jax.Array) -> PyTree:
        """In place of `prefill`: copy `other`'s experience of the tasks with a positive weight in `weights` `[N]`."""
        ...

    def without_replay(self, state: PyTree) -> PyTree:
        """Return the part of a state, or of a batch of them, that `probe` and `adapt` need: the same tree, None elsewhere."""
        ...

    def check_memory(self, learners: int, available: int | None = None) -> None:
        """Raise a ValueError of one line if a device cannot hold so many learners; called before `init`."""
        ...


def without_replay(learner: MetaLearner, state: PyTree) -> PyTree:
    """Return the part of a state, or of a batch of them, that probes, adapts and may become non-finite."""
    return learner.without_replay(state) if isinstance(learner, ReplayLearner) else state


@runtime_checkable
class TrimmingLearner(Protocol):
    """Further function of a `MetaLearner` whose states hold more than it acts on, such as critics; ask with `isinstance`."""

    def acting(self, state: PyTree) -> PyTree:
        """Return the part of a state, or of a batch of them, that `probe` and `adapt` read: the same tree, None elsewhere."""
        ...


def acting(learner: MetaLearner, state: PyTree) -> PyTree:
    """Return the part of a state, or of a batch of them, that a trained herd keeps."""
    return learner.acting(state) if isinstance(learner, TrimmingLearner) else without_replay(learner, state)


@runtime_checkable
class LatentLearner(Protocol):
    """Further functions of a `MetaLearner` that infers a latent of each task; ask with `isinstance`."""

    def infer(self, state: PyTree, episodes: Episodes) -> tuple[jax.Array, jax.Array]:
        """Return the posterior's mean and variance `[Z]` given the episodes (leaves `[R, T, ...]`) of one task."""
        ...

    def observed(self, episodes: Episodes) -> Episodes:
        """Return the episodes as the environment saw them, without the latent."""
        ...


@runtime_checkable
class ExportingLearner(Protocol):
    """Further function of a `MetaLearner` whose policies are perceptrons without memory; ask with `isinstance`."""

    def export(self, policy: PyTree) -> dict[str, np.ndarray]:
        """Return an adapted policy as the weights that `herd.numpy_policy.forward` takes."""
        ...
