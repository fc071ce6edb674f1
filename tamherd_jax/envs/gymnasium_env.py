"""Gymnasium environments as task environments: batches of steps behind one callback. Needs the package gymnasium.

Every episode has an instance of the environment on the host; a state holds the episode's number and how many steps it has
taken. JAX may step a state any number of times, in any order: the last step is answered from memory, and another action at an
earlier state continues in an instance of its own, which repeats the episode up to there.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.envs._brax import Env, State
from tamherd_jax.types import PyTree

LIVE_BATCHES = 3
"""Batches of episodes that have an instance at a time: those under way, and fresh resets, most of which are never stepped."""

KNOWN_BATCHES = 100
"""Batches of episodes that are remembered and could be repeated."""


class GymnasiumEnv(Env):
    """Any Gymnasium environment of continuous actions as a Brax environment; `TaskedEnv` adds what a task changes.

    Steps are taken on the host, one environment after the other, whatever the device of the program. Actions are from -1 to 1
    and scaled to the environment's bounds. An episode that the environment truncates ends with `info["truncation"]` 1. An
    environment must give the same episode for the same seed and actions.

    Args:
      make: Returns a fresh environment, such as `lambda: gymnasium.make("HalfCheetah-v5")`.
      info: Names of numbers in the environment's info dictionary that states carry in `info`, for rewards of tasks; 0 at reset
        where it has none.
      sys: Names to arrays, the options of every reset. `TaskedEnv(env, system=lambda task, _: {"goal": task})` makes the task
        an option.
      instances: Instances of the environment to keep, by default three times the largest batch. An episode whose instance had
        to serve another one is repeated when it goes on.

    Raises:
      ValueError: Observations or actions are not a box, or `info` names what states have anyway.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        info: Sequence[str] = (),
        sys: Mapping[str, PyTree] | None = None,
        instances: int | None = None,
    ):
        first = make()
        for what, space in (("observations", first.observation_space), ("actions", first.action_space)):
            if not isinstance(space, gymnasium.spaces.Box):
                raise ValueError(f"{what} of a Gymnasium environment must be a Box of numbers, not {space}")
        if "truncation" in info:
            raise ValueError("info names 'truncation', which every state has")
        self.sys = sys
        self._observation_size, self._action_size = (
            gymnasium.spaces.flatdim(s) for s in (first.observation_space, first.action_space)
        )
        self._names = tuple(info)
        # Of the record: observation, reward, terminated, truncated, and the info's numbers.
        record = jax.ShapeDtypeStruct((self._observation_size + 3 + len(self._names),), jnp.float32)
        self._result = {"episode": jax.ShapeDtypeStruct((), jnp.int32), "record": record}
        self._host = _Host(make, self._names, self._observation_size, instances, first)

    def reset(self, rng: jax.Array) -> State:
        """Return the first state of an episode whose seed comes from `rng`."""
        options = {} if self.sys is None else dict(self.sys)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(options)]
        seed = jax.random.bits(rng, (), jnp.uint32)

        def call(seed: np.ndarray, options: PyTree) -> PyTree:
            return self._host.reset(np.asarray(seed), options, shapes)

        out = jax.pure_callback(call, self._result, seed, options, vmap_method="broadcast_all")
        return self._state(out["episode"], jnp.zeros((), jnp.int32), out["record"])

    def step(self, state: State, action: jax.Array) -> State:
        """Return the state after one action `[A]`; the same state, with reward 0, where `state.done` is 1 already."""
        episode, count = state.pipeline_state["episode"], state.pipeline_state["count"]
        over = state.done > 0
        action = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
        out = jax.pure_callback(self._host.step, self._result, episode, count, over, action, vmap_method="broadcast_all")
        after = self._state(out["episode"], count + 1, out["record"])
        kept = state.replace(reward=jnp.zeros_like(state.reward))
        return jax.tree.map(lambda new, old: jnp.where(over, old, jnp.asarray(new, old.dtype)), after, kept)

    def _state(self, episode: jax.Array, count: jax.Array, record: jax.Array) -> State:
        obs, rest = record[: self._observation_size], record[self._observation_size :]
        reward, terminated, truncated = rest[0], rest[1], rest[2]
        info = dict(zip(self._names, rest[3:], strict=True))
        return State(
            pipeline_state={"episode": episode, "count": count},
            obs=obs,
            reward=reward,
            done=jnp.maximum(terminated, truncated),
            metrics={},
            info={**info, "truncation": truncated * (1.0 - terminated)},
        )

    @property
    def observation_size(self) -> int:
        """O, length of an observation."""
        return self._observation_size

    @property
    def action_size(self) -> int:
        """A, length of an action."""
        return self._action_size

    @property
    def backend(self) -> str:
        """Name of the physics: `gymnasium`."""
        return "gymnasium"


@dataclasses.dataclass
class _Episode:
    """An episode on the host: what it takes to repeat it, what its last step returned, and its instance while it has one."""

    seed: int
    options: dict[str, Any] | None
    actions: list[np.ndarray]
    last: np.ndarray
    env: gymnasium.Env[Any, Any] | None


class _Host:
    """The episodes of an environment by number, the least recently used first, and its instances."""

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        names: tuple[str, ...],
        observation_size: int,
        limit: int | None,
        first: gymnasium.Env[Any, Any],
    ):
        self._make, self._names, self._size, self._limit = make, names, observation_size, limit
        space = first.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
        self._middle, self._half = ((high + low) / 2).astype(space.dtype), ((high - low) / 2).astype(space.dtype)
        self._known: OrderedDict[int, _Episode] = OrderedDict()
        self._live: OrderedDict[int, None] = OrderedDict()
        self._idle, self._made, self._next, self._largest = [first], 1, 0, 0
        self._one_caller = threading.Lock()  # several devices may call at once

    def reset(self, seed: np.ndarray, options: PyTree, shapes: Sequence[tuple[int, ...]]) -> PyTree:
        """Begin an episode for each of the seeds `[...]`; option leaves have the same leading axes."""
        seeds = seed.reshape(-1).tolist()
        leaves = [np.asarray(x).reshape(-1, *shape) for x, shape in zip(jax.tree.leaves(options), shapes, strict=True)]
        structure = jax.tree.structure(options)
        with self._one_caller:
            self._largest = max(self._largest, len(seeds))
            begun = [
                self._begin(one, jax.tree.unflatten(structure, [x[i] for x in leaves]) or None) for i, one in enumerate(seeds)
            ]
            records = np.stack([self._known[number].last for number in begun])
        return {"episode": np.asarray(begun, np.int32).reshape(seed.shape), "record": records.reshape(*seed.shape, -1)}

    def step(self, episode: np.ndarray, count: np.ndarray, over: np.ndarray, action: np.ndarray) -> PyTree:
        """Take step `count` of each episode `[...]` that is not over, by its action `[..., A]`."""
        episode, count, over, action = (np.asarray(x) for x in (episode, count, over, action))
        # Actions are kept, and the memory of a callback's arguments is JAX's.
        numbers, flat = episode.reshape(-1).copy(), action.reshape(episode.size, -1).copy()
        records = np.zeros((episode.size, self._size + 3 + len(self._names)), np.float32)
        with self._one_caller:
            self._largest = max(self._largest, len(numbers))
            for i in np.flatnonzero(~over.reshape(-1)).tolist():
                numbers[i], records[i] = self._advance(int(numbers[i]), int(count.reshape(-1)[i]), flat[i])
        return {"episode": numbers.reshape(episode.shape), "record": records.reshape(*episode.shape, -1)}

    def _begin(self, seed: int, options: dict[str, Any] | None, actions: Sequence[np.ndarray] = ()) -> int:
        """Begin an episode, or repeat one by its actions; return its number."""
        number, self._next = self._next, self._next + 1
        self._known[number] = one = _Episode(seed, options, list(actions), np.zeros(0), None)
        self._repeat(number, one)
        if len(self._known) > KNOWN_BATCHES * max(self._largest, 1) + (self._limit or 0):
            forgotten, _ = next(iter(self._known.items()))
            self._release(forgotten)
            del self._known[forgotten]
        return number

    def _repeat(self, number: int, one: _Episode) -> None:
        """Give an episode an instance, in which all its steps are taken."""
        one.env, self._live[number] = self._instance(), None
        obs, info = one.env.reset(seed=one.seed, options=one.options)
        one.last = self._pack(obs, 0.0, False, False, info)
        for action in one.actions:
            self._take(one, action)

    def _advance(self, number: int, count: int, action: np.ndarray) -> tuple[int, np.ndarray]:
        """Take a step of an episode; return the episode's number, a new one where it went on otherwise before."""
        one = self._known.get(number)
        if one is None:
            raise RuntimeError(f"a Gymnasium episode was forgotten: {len(self._known)} others were stepped since")
        if count == len(one.actions) - 1 and np.array_equal(one.actions[-1], action, equal_nan=True):
            return number, one.last
        if count < len(one.actions):
            number = self._begin(one.seed, one.options, one.actions[:count])
            one = self._known[number]
        if one.env is None:
            self._repeat(number, one)
        self._known.move_to_end(number)
        self._live.move_to_end(number)
        self._take(one, action)
        one.actions.append(action)
        if one.last[self._size + 1] or one.last[self._size + 2]:
            self._release(number)
        return number, one.last

    def _instance(self) -> gymnasium.Env[Any, Any]:
        """Return an idle instance, a new one, or that of the episode not used for longest."""
        if not self._idle and self._made < (self._limit or LIVE_BATCHES * self._largest):
            self._made += 1
            return self._make()
        if not self._idle:
            self._release(next(iter(self._live)))
        return self._idle.pop()

    def _release(self, number: int) -> None:
        """Take an episode's instance, if it has one, for others."""
        if number in self._live:
            del self._live[number]
            env, self._known[number].env = self._known[number].env, None
            assert env is not None
            self._idle.append(env)

    def _take(self, one: _Episode, action: np.ndarray) -> None:
        """Step an episode's instance by an action within -1 and 1."""
        assert one.env is not None
        one.last = self._pack(*one.env.step(self._middle + self._half * action.reshape(self._middle.shape)))

    def _pack(self, obs: np.ndarray, reward: Any, terminated: bool, truncated: bool, info: dict[str, Any]) -> np.ndarray:
        """Return observation, reward, terminated, truncated and the info's numbers in one array."""
        record = np.empty(self._size + 3 + len(self._names), np.float32)
        record[: self._size] = obs.reshape(-1)
        record[self._size :] = (reward, terminated, truncated, *(info.get(name, 0.0) for name in self._names))
        return record
