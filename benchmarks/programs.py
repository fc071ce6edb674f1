"""The programs that an accelerator runs, with abstract arguments: to be lowered or compiled where there is none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import fisher_gram
from tamherd_jax.envs import Locomotion, ml2, take_tasks
from tamherd_jax.herd.algorithm import EmbeddedTasks, assign_tasks, embed_training_tasks, meta_test, probe_tasks
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig
from tamherd_jax.maml import MAML, MAMLConfig
from tamherd_jax.pearl import PEARL, PEARLConfig
from tamherd_jax.physics.planar import SolverOptions, body_table, planar_step

Shape = jax.ShapeDtypeStruct


class Traceable(NamedTuple):
    """A function and the shapes of its arguments."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the programs are.

    Attributes:
      environments: of a single physics step, each a program of its own.
      draws: tasks of a meta-batch.
      learners: of an epoch, each a program of its own.
      maml, pearl: the learners' settings.
      embedded: training tasks whose embeddings are compared.
      gram: tasks and steps of a Gram matrix.
    """

    environments: tuple[int, ...]
    draws: int
    learners: tuple[int, ...]
    maml: MAMLConfig
    pearl: PEARLConfig
    embedded: int
    gram: tuple[int, int]


SMALL = Sizes(
    environments=(100,),
    draws=4,
    learners=(1, 8),
    maml=MAMLConfig(episodes_per_task=2, horizon=5, hidden_sizes=(8, 8)),
    pearl=PEARLConfig(
        horizon=5, initial_steps=10, prior_steps=5, posterior_steps=10, gradient_steps=2, batch_size=4, context_size=4,
        replay_capacity=20, hidden_sizes=(8,), encoder_sizes=(8,),
    ),
    embedded=4,
    gram=(4, 8),
)  # fmt: skip
"""Sizes of a test: the programs have the structure of the real ones."""

PAPER = Sizes((2048, 32768), 20, (1, 8), MAMLConfig(), PEARLConfig(), 40, (40, 1000))
"""Sizes of the presets that reproduce the paper."""


def physics_step(environments: int, integrator: str = "euler", form: str = "auto", literal: bool = True) -> Traceable:
    """One environment step of a batch; the bodies' constants are compiled in, or data."""
    table, options = body_table(), SolverOptions(integrator=integrator)
    batch = (
        Shape((environments,), jnp.int32),
        (Shape((environments, table.dofs), jnp.float32),) * 3,
        Shape((environments, table.motors), jnp.float32),
    )
    if literal:
        return Traceable(lambda *batch: planar_step(table, *batch, options, form), batch)
    data = jax.tree.map(lambda x: Shape(x.shape, jnp.float32 if x.dtype.kind == "f" else x.dtype), table)
    return Traceable(lambda *args: planar_step(*args, options, form), (data, *batch))


def make_learner(algorithm: str, sizes: Sizes) -> Any:
    """A meta-learner on the planar physics."""
    if algorithm == "maml":
        return MAML(Locomotion("planar", 10.0), sizes.draws, sizes.maml)
    return PEARL(Locomotion("planar"), sizes.draws, 4, sizes.pearl)


def epoch(algorithm: str, learners: int, sizes: Sizes) -> Traceable:
    """One epoch of some learners at once."""
    learner, tasks = make_learner(algorithm, sizes), ml2().tasks
    key, state = _key_and_state(learner)

    def one(key: jax.Array, state: Any, weights: jax.Array) -> Any:
        return learner.train_epoch(key, state, tasks, weights)

    args = (key, state, Shape((4,), jnp.float32))
    return Traceable(one, args) if learners == 1 else Traceable(jax.vmap(one), _many(args, learners))


def embed(algorithm: str, sizes: Sizes) -> Traceable:
    """Fisher embeddings of training tasks and their Gram matrix (Algorithm 1)."""
    learner, embedding, tasks = make_learner(algorithm, sizes), Embedding(EmbeddingConfig()), _drawn(sizes.embedded)
    embed = functools.partial(embed_training_tasks, learner, embedding)
    return Traceable(lambda key, state: embed(key, state, tasks, 1), _key_and_state(learner))


def assign(algorithm: str, sizes: Sizes) -> Traceable:
    """The nearest centroid of each test task (Algorithm 2, lines 1 and 2)."""
    learner, embedding, tasks = make_learner(algorithm, sizes), Embedding(EmbeddingConfig()), ml2().tasks
    key, state = _key_and_state(learner)
    drawn = _drawn(sizes.embedded)
    features, steps = jax.eval_shape(lambda k, s: probe_tasks(learner, embedding, k, s, drawn, 1), key, state)
    square = Shape((sizes.embedded, sizes.embedded), jnp.float32)
    embedded, membership = EmbeddedTasks(features, square, steps), Shape((sizes.embedded, 4), jnp.float32)

    def assigned(key: jax.Array, state: Any, embedded: EmbeddedTasks, membership: jax.Array) -> Any:
        return assign_tasks(learner, embedding, key, state, embedded, membership, tasks, 1)

    return Traceable(assigned, (key, state, embedded, membership))


def test(algorithm: str, sizes: Sizes) -> Traceable:
    """Meta-test of a member on each task (Algorithm 2, line 3)."""
    learner, tasks = make_learner(algorithm, sizes), ml2().tasks
    key, state = _key_and_state(learner)
    if algorithm == "pearl":
        state = jax.eval_shape(learner.without_replay, state)

    def tested(key: jax.Array, states: Any, member: jax.Array) -> Any:
        return meta_test(learner, key, states, member, tasks, 2, 2)

    return Traceable(tested, (key, _many(state, 2), Shape((4,), jnp.int32)))


def gram(sizes: Sizes, closed: bool) -> Traceable:
    """Scores and their Gram matrix, of actions that were taken or expected over actions."""
    tasks, steps = sizes.gram
    program = fisher_gram.closed_form_gram(tasks, steps) if closed else fisher_gram.gram(tasks, steps, True)
    return Traceable(program.fn, jax.tree.map(lambda x: Shape(x.shape, x.dtype), program.args))


def programs(sizes: Sizes) -> dict[str, Callable[[], Traceable]]:
    """What makes each program, by name."""
    found: dict[str, Callable[[], Traceable]] = {}
    for count in sizes.environments:
        for integrator in ("euler", "rk4"):
            for literal, kind in ((True, "constants"), (False, "data")):
                name = f"physics step, {integrator}, table as {kind}, {count:,} environments"
                found[name] = functools.partial(physics_step, count, integrator, literal=literal)
        found[f"physics step, euler, XLA form, {count:,} environments"] = functools.partial(physics_step, count, form="xla")
    for algorithm in ("maml", "pearl"):
        for learners in sizes.learners:
            name = f"{algorithm} epoch, {learners} learner{'s' if learners > 1 else ''}"
            found[name] = functools.partial(epoch, algorithm, learners, sizes)
        found[f"{algorithm} embedding"] = functools.partial(embed, algorithm, sizes)
        found[f"{algorithm} assignment"] = functools.partial(assign, algorithm, sizes)
        found[f"{algorithm} meta-test"] = functools.partial(test, algorithm, sizes)
    tasks, steps = sizes.gram
    found[f"Gram matrix, {tasks} x {steps:,}"] = functools.partial(gram, sizes, False)
    found[f"Gram matrix in closed form, {tasks} x {steps:,}"] = functools.partial(gram, sizes, True)
    return found


def _many(tree: Any, count: int) -> Any:
    """Shapes with an axis of learners in front."""
    return jax.tree.map(lambda x: Shape((count, *x.shape), x.dtype), tree)


def _key_and_state(learner: Any) -> tuple[Any, Any]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return key, jax.eval_shape(learner.init, key)


def _drawn(count: int) -> Any:
    """`count` tasks of ML2."""
    return take_tasks(ml2().tasks, jnp.arange(count) * 4 // count)
