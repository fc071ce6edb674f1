"""The written-out curvature of adapted policies against automatic differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tamherd_jax.maml import MAML, MAMLConfig, TRPOConfig, gauss_newton, trpo_step
from tamherd_jax.maml.learner import TaskBatch
from tamherd_jax.maml.over_tasks import map_tasks, sum_tasks

pytestmark = pytest.mark.usefixtures("strict_ranks", "float64")
TASKS, EPISODES, STEPS, OBS, ACTIONS = 3, 2, 7, 5, 4
CASES = {
    "default": {},
    "first order": {"first_order": True},
    "ratio, shared standard deviation": {"inner_loss": "ratio", "shared_log_std": True},
    "one layer": {"hidden_sizes": ()},
    "three hidden layers": {"hidden_sizes": (6, 3, 5)},
    "two steps": {"inner_steps": 2, "inner_loss": "ratio", "hidden_sizes": (6,)},
    "no step": {"inner_steps": 0},
    "bounded standard deviations": {"init_log_std": -20.0, "inner_step_size": 1e-14},
}
STEPS_OF = {
    "default": {},
    "entropy, likelihood": {"entropy_coefficient": 0.05, "outer_loss": "likelihood"},
    "ratio, two steps": {"inner_loss": "ratio", "inner_steps": 2, "hidden_sizes": (6,)},
}


class Sizes:
    """Observations and actions of an environment that is never stepped."""

    observation_size, action_size = OBS, ACTIONS


def random_batch(rng):
    shape = (TASKS, EPISODES, STEPS)
    valid = np.ones(shape)
    valid[0, 1, 3:] = valid[2, 0, 1:] = 0.0
    columns = (rng.normal(size=(*shape, OBS)), rng.normal(size=(*shape, ACTIONS)), rng.normal(size=shape) - 5.0)
    return TaskBatch(*map(jnp.asarray, columns), jnp.asarray(rng.normal(size=shape)), jnp.asarray(valid))


def problem(**changes):
    """A learner, random parameters off their initial zeros, and its outer problem."""
    rng = np.random.default_rng(0)
    defaults = {"hidden_sizes": (6, 5), "inner_step_size": 0.7, "trpo": TRPOConfig(cg_damping=0.01)}
    config = MAMLConfig(**{**defaults, **changes})
    learner = MAML(Sizes(), TASKS, config)
    params = learner.init(jax.random.key(0)).params
    scale = 0.0 if "init_log_std" in changes else 0.3
    params = jax.tree.map(lambda p: jnp.asarray(p + scale * rng.normal(size=p.shape), float), params)
    return learner, params, (random_batch(rng), random_batch(rng))


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_products_equal_automatic_differentiation(case):
    learner, params, data = problem(**CASES[case])
    rng, flat = np.random.default_rng(1), ravel_pytree(params)[1]
    vector = flat(jnp.asarray(rng.normal(size=ravel_pytree(params)[0].shape)))
    cotangent = tuple(jnp.asarray(rng.normal(size=(TASKS, EPISODES * STEPS, ACTIONS))) for _ in range(2))

    @jax.jit
    def both(params, vector):
        outer = learner._outer_problem(*data)
        general, fast = gauss_newton(outer.outputs, params, outer.metric), outer.policies.linearize(params)
        pair = [(one.value, one.pullback(cotangent), one.product(vector)) for one in (general, fast)]
        return *pair, (outer.outputs(vector), outer.policies.outputs(vector))

    general, fast, elsewhere = both(params, vector)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-11 * np.abs(a).max()), general, fast)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-11), *elsewhere)
    assert np.abs(ravel_pytree(fast[2])[0]).max() > 1e-3


@pytest.mark.parametrize("case", STEPS_OF)
def test_the_outer_step_equals_the_general_step(case):
    learner, params, data = problem(**STEPS_OF[case])
    outer = learner._outer_problem(*data)
    fast, diagnostics = jax.jit(learner._outer_step)(params, *data)
    general = jax.jit(lambda p: trpo_step(*outer[:4], p, learner.config.trpo))
    slow, info = general(params)
    assert bool(info.accepted)
    moved = np.abs(ravel_pytree(slow)[0] - ravel_pytree(params)[0]).max()
    np.testing.assert_allclose(ravel_pytree(fast)[0], ravel_pytree(slow)[0], rtol=1e-10, atol=1e-10 * moved)
    np.testing.assert_allclose(diagnostics["kl"], info.kl, rtol=1e-9)


def test_many_inner_steps_take_the_general_form():
    learner, params, data = problem(inner_steps=9, inner_step_size=0.05, trpo=TRPOConfig(cg_damping=0.1, cg_iterations=3))
    outer = learner._outer_problem(*data)
    step, _ = jax.jit(learner._outer_step)(params, *data)
    written_out = jax.jit(lambda p: trpo_step(outer.policies.outputs, *outer[1:4], p, learner.config.trpo))
    expected, _ = written_out(params)
    np.testing.assert_allclose(ravel_pytree(step)[0], ravel_pytree(expected)[0], rtol=1e-8)


def test_tasks_in_turn_and_at_once_are_the_same():
    """On a CPU tasks come in turn, in a program for an accelerator all at once; both are lowered from one trace."""
    x, y = jnp.arange(12.0).reshape(4, 3), jnp.arange(4.0)
    np.testing.assert_array_equal(map_tasks(lambda a, b: a * b, x, y), x * y[:, None])
    np.testing.assert_allclose(sum_tasks(lambda a, b: a * b, x, y), jnp.sum(x * y[:, None], 0), rtol=1e-12)
    traced = jax.jit(lambda x, y: sum_tasks(lambda a, b: a * b, x, y)).trace(x, y)
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_settings_mapped_over_are_the_settings_one_by_one():
    """Step sizes, the KL bound and the entropy weight as rows of one program."""
    learner, params, data = problem(entropy_coefficient=0.1)
    base = learner.config
    configs = [
        dataclasses.replace(base, inner_step_size=a, entropy_coefficient=c, trpo=dataclasses.replace(base.trpo, max_kl=d))
        for a, c, d in ((0.1, 0.0, 0.01), (0.5, 0.2, 0.02), (0.9, 0.1, 0.005))
    ]
    grid = jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *configs)
    rows = jax.jit(jax.vmap(lambda config: MAML(Sizes(), TASKS, config)._outer_step(params, *data)[0]))(grid)
    for index, config in enumerate(configs):
        alone = jax.jit(MAML(Sizes(), TASKS, config)._outer_step)(params, *data)[0]
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12), rows, alone)
