"""The public kernels as a library: any framework's parameters, exact derivatives, every transformation, clear mistakes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads

from tamherd_jax import maml
from tamherd_jax.distributions import gaussian_kl, gaussian_log_prob
from tamherd_jax.maml import (
    MAMLConfig,
    TRPOConfig,
    adapt,
    conjugate_gradient,
    discounted_returns,
    gauss_newton,
    generalized_advantages,
    hvp,
    linear_baseline,
    linear_features,
    masked_mean,
    meta_gradient,
    meta_loss,
    normalize_advantages,
    trpo_step,
)

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 4, 6, 3)), RNG.normal(size=(2, 4, 6, 1))  # support and query of four tasks of six points


# Frameworks -----------------------------------------------------------------------------------------------------------


def linen():
    model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(1)])
    return model.init(jax.random.key(0), jnp.ones(3)), model.apply


def nnx_split():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)  # a key and a counter among the state

        def __call__(self, x):
            return self.out(self.dropout(nnx.tanh(self.hidden(x))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return state, lambda state, x: nnx.merge(graph, state)(x)


def equinox():
    model = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))  # its activation is a leaf
    return model, lambda model, x: jax.vmap(model)(x)


def bare():
    params = [(jnp.asarray(RNG.normal(size=(3, 4))), jnp.zeros(4)), (jnp.asarray(RNG.normal(size=(4, 1))), 0.5)]
    return params, lambda p, x: jnp.tanh(x @ p[0][0] + p[0][1]) @ p[1][0] + p[1][1]


def regression(apply):
    return lambda params, x, y: jnp.mean((apply(params, x) - y) ** 2)


def is_float(leaf):
    return isinstance(leaf, jax.Array | np.ndarray | float) and jax.dtypes.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)


def floats(tree):
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_float(leaf)]


@pytest.mark.parametrize("framework", [linen, nnx_split, equinox, bare])
def test_adapts_the_parameters_of(framework):
    """One step against the gradient taken by other means, then a meta-gradient against a difference quotient."""
    params, apply = framework()
    loss = regression(apply)
    support, query = (X[0], Y[0]), (X[1], Y[1])

    @eqx.filter_jit
    def both(params):
        adaptable, fixed = eqx.partition(params, is_float)
        own = jax.grad(lambda p: loss(eqx.combine(p, fixed), X[0, 0], Y[0, 0]))(adaptable)
        value, meta = meta_gradient(loss, params, support, query, step_size=0.1)
        moved = adapt(lambda p: meta_loss(loss, p, support, query, step_size=0.1), params, step_size=1e-3)
        change = meta_loss(loss, moved, support, query, step_size=0.1) - value
        return adapt(loss, params, X[0, 0], Y[0, 0], step_size=0.1), own, meta, change

    adapted, own, meta, change = both(params)
    assert jax.tree.structure(adapted) == jax.tree.structure(params)
    for after, before, slope in zip(floats(adapted), floats(params), floats(own), strict=True):
        np.testing.assert_allclose(after, before - 0.1 * slope, rtol=1e-5, atol=1e-7)
    rest = [leaf for leaf in jax.tree.leaves(params) if not is_float(leaf)]
    kept = [leaf for leaf in jax.tree.leaves(adapted) if not is_float(leaf)]
    assert len(kept) == len(rest) == {linen: 0, nnx_split: 2, equinox: 2, bare: 0}[framework]
    assert [leaf.shape for leaf in floats(meta)] == [leaf.shape for leaf in floats(params)]
    np.testing.assert_allclose(float(change), -1e-3 * sum(float(jnp.vdot(leaf, leaf)) for leaf in floats(meta)), rtol=0.05)


# Closed forms ---------------------------------------------------------------------------------------------------------

ROOT = RNG.normal(size=(3, 3))
A, C, QUERY, THETA = ROOT @ ROOT.T / 3 + np.eye(3), RNG.normal(size=3), RNG.normal(size=3), RNG.normal(size=3)


def quadratic(theta, centre):
    """Gradient `A (theta - centre)`, Hessian A."""
    return 0.5 * (theta - centre) @ A @ (theta - centre)


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_a_quadratic_has_the_closed_form(steps):
    """`theta' - c = (I - a A)^k (theta - c)`; its derivative is the power, or in first order the identity."""
    alpha, power = 0.1, np.linalg.matrix_power(np.eye(3) - 0.1 * A, steps)
    adapted = C + power @ (THETA - C)
    np.testing.assert_allclose(adapt(quadratic, THETA, C, step_size=alpha, steps=steps), adapted, rtol=1e-12)
    for first_order, jacobian in ((False, power), (True, np.eye(3))):
        options = {"step_size": alpha, "steps": steps, "first_order": first_order}
        gradient = jax.grad(lambda t, o=options: quadratic(adapt(quadratic, t, C, **o), QUERY))(jnp.asarray(THETA))
        np.testing.assert_allclose(gradient, jacobian @ A @ (adapted - QUERY), rtol=1e-10)


def test_learned_step_sizes_receive_gradients():
    """One step: `d/da L(theta - a * g) = -g * grad L(theta')`, entry by entry for one step size a parameter."""
    slope = A @ (THETA - C)
    for alpha in (0.1, np.array([0.1, 0.2, 0.3])):
        outer = A @ (THETA - alpha * slope - QUERY)
        gradient = jax.grad(lambda a: quadratic(adapt(quadratic, THETA, C, step_size=a), QUERY))(jnp.asarray(alpha))
        np.testing.assert_allclose(gradient, -slope * outer if np.ndim(alpha) else -slope @ outer, rtol=1e-10)
    support, query = (jnp.stack([C, C + 1]),), (jnp.stack([QUERY, QUERY - 1]),)
    step = jax.grad(lambda a: meta_loss(quadratic, THETA, support, query, step_size=a))(0.1)

    def one(a, i):
        return quadratic(adapt(quadratic, THETA, support[0][i], step_size=a), query[0][i])

    alone = [jax.grad(one)(0.1, i) for i in (0, 1)]
    np.testing.assert_allclose(step, np.mean(alone), rtol=1e-12)


def test_step_sizes_by_layer_and_masks():
    params, apply = linen()
    loss = regression(apply)
    step = jax.grad(loss)(params, X[0, 0], Y[0, 0])["params"]
    sizes = {"params": {"layers_0": 0.1, "layers_2": {"kernel": np.full((4, 1), 0.2, np.float32), "bias": 0.0}}}
    by_layer = adapt(loss, params, X[0, 0], Y[0, 0], step_size=sizes)["params"]
    before = params["params"]
    np.testing.assert_allclose(by_layer["layers_0"]["bias"], -0.1 * step["layers_0"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(by_layer["layers_2"]["kernel"], before["layers_2"]["kernel"] - 0.2 * step["layers_2"]["kernel"])
    np.testing.assert_array_equal(by_layer["layers_2"]["bias"], before["layers_2"]["bias"])
    head = {"params": {"layers_0": False, "layers_2": True}}
    for mask in (head, lambda p: head):
        adapted = adapt(loss, params, X[0, 0], Y[0, 0], step_size=0.1, mask=mask)["params"]
        jax.tree.map(np.testing.assert_array_equal, adapted["layers_0"], before["layers_0"])
        np.testing.assert_allclose(adapted["layers_2"]["bias"], -0.1 * step["layers_2"]["bias"], rtol=1e-6)
    # what is not adapted is still meta-learned
    gradient = jax.grad(lambda p: loss(adapt(loss, p, X[0, 0], Y[0, 0], mask=head), X[1, 0], Y[1, 0]))(params)
    assert float(jnp.abs(gradient["params"]["layers_0"]["kernel"]).max()) > 1e-3


def test_any_optax_transformation_adapts():
    plain = adapt(quadratic, THETA, C, step_size=0.1, steps=2)
    np.testing.assert_allclose(adapt(quadratic, THETA, C, steps=2, optimizer=optax.sgd(0.1)), plain, rtol=1e-14)
    optimizer, theta = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)), jnp.asarray(THETA)
    state = optimizer.init(theta)
    for _ in range(10):
        updates, state = optimizer.update(jax.grad(quadratic)(theta, C), state, theta)
        theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(adapt(quadratic, THETA, C, steps=10, optimizer=optimizer), theta, rtol=1e-12)
    adam = optax.adam(0.1, eps_root=1e-8)
    check_grads(lambda t: quadratic(adapt(quadratic, t, C, steps=2, optimizer=adam), QUERY), (THETA,), 1, rtol=1e-4)


# Many tasks -----------------------------------------------------------------------------------------------------------


OPTIMIZERS = {"adam": lambda: optax.adam(0.1), "clip": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_meta_gradients_at_a_zero_inner_gradient_are_finite(name):
    """A solved task, and a parameter that the loss does not see: the clipped step is the plain one, Adam's slope 0.1 / eps."""
    optimizer = OPTIMIZERS[name]()
    solved = jax.jacobian(lambda theta: adapt(quadratic, theta, C, optimizer=optimizer))(jnp.asarray(C))
    if name == "clip":
        np.testing.assert_allclose(solved, np.eye(3) - 0.1 * A, rtol=1e-9)
    assert np.isfinite(solved).all()
    np.testing.assert_array_equal(adapt(quadratic, C, C, steps=3, optimizer=optimizer), C)

    def unseen(theta):
        return jnp.sum(theta[:2] ** 2)

    for steps in (1, 3, 9):
        theta = jnp.array([0.4, -0.3, 0.2])
        slopes = jax.jacobian(lambda theta, n=steps: adapt(unseen, theta, steps=n, optimizer=optimizer))(theta)
        assert np.isfinite(slopes).all()
        np.testing.assert_allclose(slopes[2], [0.0, 0.0, 1.0], atol=1e-10)


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parameters_keep_their_dtype(dtype, steps):
    """Whatever the precision of the step size and of the rest of the state, for steps written out and in a loop."""
    theta = {"w": jnp.asarray(THETA, dtype), "b": jnp.zeros((), "float32")}

    def loss(theta):
        return jnp.sum(theta["w"] ** 2) + theta["b"] ** 2

    options = [{"step_size": jnp.asarray(0.1, kind)} for kind in ("float32", "float64")]
    options += [{"optimizer": make()} for make in OPTIMIZERS.values()]
    for option in options:
        adapted = jax.jit(lambda theta, option=option: adapt(loss, theta, steps=steps, **option))(theta)
        assert dtypes(adapted) == dtypes(theta)
        assert float(loss(adapted)) < float(loss(theta))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_conjugate_gradient_keeps_the_dtype_of_the_right_side(dtype):
    b = {"x": jnp.ones(3, dtype), "y": jnp.ones(2, "float32")}
    x = conjugate_gradient(lambda v: jax.tree.map(lambda leaf: jnp.float64(2.0) * leaf.astype("float64"), v), b, 4)
    assert dtypes(x) == dtypes(b)
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf.astype("float32"), 0.5, rtol=1e-2), x)


@pytest.mark.parametrize("tasks_at_once", [None, 1, 2])
def test_a_meta_gradient_is_the_mean_over_tasks_however_it_is_cut(tasks_at_once):
    params, apply = bare()
    loss = regression(apply)

    def absolute(params, x, y):
        return jnp.mean(jnp.abs(apply(params, x) - y))

    options = {"step_size": 0.2, "steps": 2}
    together = jax.jit(
        lambda p: meta_gradient(
            loss, p, (X[0], Y[0]), (X[1], Y[1]), outer_loss=absolute, tasks_at_once=tasks_at_once, **options
        )
    )
    value, gradient = together(params)

    @jax.jit
    @jax.value_and_grad
    def one(params, support, query):
        return absolute(adapt(loss, params, *support, **options), *query)

    alone = [one(params, (X[0, m], Y[0, m]), (X[1, m], Y[1, m])) for m in range(4)]
    jax.tree.map(
        lambda ours, *theirs: np.testing.assert_allclose(ours, np.mean(np.stack(theirs), 0), rtol=1e-10, atol=1e-14),
        (value, gradient),
        *alone,
    )


def test_meta_gradients_compile_once():
    params, apply = linen()
    traces = []

    @jax.jit
    def step(params, support, query):
        traces.append(1)
        return meta_gradient(regression(apply), params, support, query, tasks_at_once=2)

    for seed in range(3):
        x, y = np.random.default_rng(seed).normal(size=(8, 5, 3)), np.ones((8, 5, 1))
        step(params, (x, y), (x, y))
    assert len(traces) == 1


# Derivatives and transformations of everything public -----------------------------------------------------------------

REWARDS, VALUES, OBS = RNG.normal(size=7), RNG.normal(size=7), RNG.normal(size=(2, 7, 2))
SHORT = np.array([1.0] * 4 + [0.0] * 3)
VALID = np.stack([np.ones(7), SHORT])
MATRIX = A + np.eye(3)


def trpo(theta):
    """A Gaussian with mean theta^2 and log standard deviation theta / 2, one trust-region step."""
    actions = jnp.array([0.3, -0.2, 0.8])

    def loss(old, new):
        return -jnp.mean(jnp.exp(gaussian_log_prob(actions, *new) - gaussian_log_prob(actions, *old)))

    def metric(old, tangent):
        return jnp.exp(-2 * old[1]) * tangent[0], 2 * tangent[1]

    config = TRPOConfig(cg_iterations=2, cg_damping=0.1, max_kl=1e-3)
    return trpo_step(lambda t: (t**2, t / 2), loss, lambda old, new: gaussian_kl(*old, *new), metric, theta, config)[0]


def gauss_newton_product(theta, vector):
    value, pullback, product = gauss_newton(lambda t: jnp.sin(MATRIX @ t), theta, lambda y, tangent: (1 + y**2) * tangent)
    return product(vector) + pullback(value)


CASES = {
    "adapt": (lambda t, c, a: adapt(quadratic, t, c, step_size=a, steps=2), (THETA, C, 0.1)),
    "meta_loss": (lambda t, c: meta_loss(quadratic, t, (c,), (c[::-1],)), (THETA, np.stack([C, QUERY]))),
    "meta_gradient": (lambda t, c: meta_gradient(quadratic, t, (c,), (c[::-1],)), (THETA, np.stack([C, QUERY]))),
    "hvp": (lambda t, v: hvp(lambda t: jnp.sum(jnp.sin(t) ** 2) + jnp.prod(t), t, v), (THETA, C)),
    "gauss_newton": (gauss_newton_product, (THETA, C)),
    "conjugate_gradient": (lambda b, s: conjugate_gradient(lambda v: s * (MATRIX @ v), b, 3, 0.0), (C, 1.3)),
    "trpo_step": (trpo, (THETA,)),
    "discounted_returns": (lambda r: discounted_returns(r, 0.9), (REWARDS,)),
    "generalized_advantages": (
        lambda r, v: generalized_advantages(r, v, SHORT, 0.9, 0.8),
        (REWARDS * SHORT, VALUES),
    ),
    "masked_mean": (lambda x: masked_mean(x, SHORT), (REWARDS,)),
    "normalize_advantages": (lambda a: normalize_advantages(a, SHORT), (REWARDS,)),
    "linear_features": (linear_features, (OBS[0],)),
    "linear_baseline": (lambda o, r: linear_baseline(o, r, VALID), (OBS, RNG.normal(size=(2, 7)) * VALID)),
}
CLASSES = {"MAML", "MAMLConfig", "MAMLState", "TRPOConfig", "TRPOInfo"}


def test_the_table_holds_everything_public():
    assert set(CASES) | CLASSES == set(maml.__all__)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_equal_difference_quotients(name):
    function, args = CASES[name]
    modes = ["fwd"] if name == "trpo_step" else ["fwd", "rev"]  # its line search is a while loop
    check_grads(jax.jit(function), args, order=1, modes=modes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_composes_with_jit_vmap_pmap_and_scan(name):
    """One program that pmaps a scan of a vmap, against the plain call: environments differ, and none disturbs another."""
    function, args = CASES[name]
    args = jax.tree.map(lambda leaf: np.asarray(leaf), args)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, args)
    devices = jax.tree.map(lambda *leaves: np.stack(leaves)[None], args, other)

    def nested(args):
        return jax.lax.scan(lambda carry, _: (carry, jax.vmap(function)(*args)), 0, None, length=2)[1]

    results = jax.pmap(nested)(devices)
    for environment, own in enumerate((args, other)):
        expected = jax.jit(function)(*own)
        for repeat in range(2):
            ours = jax.tree.map(lambda leaf, r=repeat, i=environment: leaf[0, r, i], results)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, expected)


# Mistakes -------------------------------------------------------------------------------------------------------------

WRONG = {
    "the value of loss must be a scalar": lambda: adapt(lambda t: t, jnp.ones(3)),
    "steps must not be negative, not -1": lambda: adapt(quadratic, THETA, C, steps=-1),
    "step_size must be one value, or a tree": lambda: adapt(quadratic, THETA, C, step_size={"w": 0.1}),
    r"step_size of shape \(2,\) does not broadcast to parameters of shape \(3,\)": lambda: adapt(
        quadratic, THETA, C, step_size=np.ones(2)
    ),
    "mask must be one value, or a tree": lambda: adapt(quadratic, THETA, C, mask=[True, True]),
    "leaves of support and query must share one leading axis of tasks: support has leaves": lambda: meta_loss(
        quadratic, THETA, (np.ones((4, 3)),), (np.ones((5, 3)),)
    ),
    "share one leading axis": lambda: meta_loss(quadratic, THETA, (0.5,), (0.5,)),
    "the value of outer_loss must be a scalar": lambda: meta_loss(
        quadratic, THETA, (np.ones((4, 3)),), (np.ones((4, 3)),), outer_loss=lambda t, c: t - c
    ),
    "tasks_at_once must divide the number of tasks, 4; 3 does not": lambda: meta_gradient(
        quadratic, THETA, (np.ones((4, 3)),), (np.ones((4, 3)),), tasks_at_once=3
    ),
    "vector must be a tree of the structure of params": lambda: hvp(jnp.sum, jnp.ones(3), [jnp.ones(3)]),
    "vector must have the shapes of params": lambda: hvp(jnp.sum, jnp.ones(3), jnp.ones(2)),
    "the value of f must be a scalar": lambda: hvp(lambda t: t, jnp.ones(3), jnp.ones(3)),
    "what product returns must have the shapes of b": lambda: conjugate_gradient(lambda v: v[:2], jnp.ones(3)),
    "what metric returns must have the shapes of the outputs": lambda: gauss_newton(
        lambda t: t, jnp.ones(3), lambda y, tangent: tangent[:1]
    )[2](jnp.ones(3)),
    "the value of kl must be a scalar": lambda: trpo_step(
        lambda t: t, lambda o, n: jnp.sum(n), lambda o, n: n, lambda o, t: t, jnp.ones(3)
    ),
    "entropy_coefficient must not be negative, not -0.1": lambda: MAMLConfig(entropy_coefficient=-0.1),
    "entropy_decay_steps must be at least 1, not 0": lambda: MAMLConfig(entropy_decay_steps=0),
    "max_kl must be positive": lambda: TRPOConfig(max_kl=0.0),
    "final_max_kl must be positive and at most max_kl": lambda: TRPOConfig(final_max_kl=0.1),
    "decay_steps must be at least 1": lambda: TRPOConfig(decay_steps=0),
    "decay_begin must not be negative": lambda: TRPOConfig(decay_begin=-1),
    "backtrack_ratio must be between 0 and 1, not 1.5": lambda: TRPOConfig(backtrack_ratio=1.5),
    "cg_iterations must be at least 1": lambda: TRPOConfig(cg_iterations=0),
    "cg_damping must not be negative": lambda: TRPOConfig(cg_damping=-1.0),
    "rewards must have rank 1": lambda: discounted_returns(jnp.ones((2, 3)), 0.9),
    r"shapes must be equal: rewards \(7,\), values \(6,\)": lambda: generalized_advantages(
        REWARDS, VALUES[:6], VALID[0], 0.9, 1.0
    ),
    r"shapes must be equal: x \(3,\), valid \(2,\)": lambda: masked_mean(jnp.ones(3), jnp.ones(2)),
    r"shapes must be equal: advantages \(3,\)": lambda: normalize_advantages(jnp.ones(3), jnp.ones(2)),
    "obs must have rank 2": lambda: linear_features(jnp.ones(3)),
    "mask must hold True or False for each parameter, not 'False'": lambda: adapt(
        lambda p: p["w"], {"w": jnp.ones(())}, step_size=0.1, mask={"w": "False"}
    ),
    "obs must have rank 3": lambda: linear_baseline(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((3, 2))),
    r"shapes must be equal: returns \(2, 6\)": lambda: linear_baseline(OBS, jnp.ones((2, 6)), VALID),
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_name_the_argument(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()
