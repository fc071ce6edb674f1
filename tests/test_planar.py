"""The planar physics against MuJoCo C: every kind of state, both forms, both integrators, and what keeps environments apart."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tamherd_jax import simd
from tamherd_jax.physics import parity
from tamherd_jax.physics.base import PhysicsState, init_state
from tamherd_jax.physics.bodies import (
    BODIES,
    FRAME_SKIP,
    common_layout,
    load_model,
    own_coordinates,
    pad_coordinates,
)
from tamherd_jax.physics.planar import PlanarPhysics, SolverOptions, body_table, planar_step, read_tree, stack_trees
from tamherd_jax.registry.bodies import get_body

STATES = 1800  # a body; the benchmark takes ten thousand and more
EXACT = SolverOptions(iterations=50, line_search=20)
EXACT_RK4 = SolverOptions(integrator="rk4", iterations=50, line_search=20)


@pytest.fixture(autouse=True)
def _x64():
    """Double precision throughout: float32 is asked for by the arrays' dtype."""
    with jax.enable_x64(True):
        yield


def _stepper(options, form="xla", table=None):
    table = body_table(BODIES) if table is None else table
    return jax.jit(lambda body, state, control: planar_step(table, body, state, control, options, form))


@pytest.fixture(scope="module")
def float32_step():
    return _stepper(SolverOptions())


@pytest.fixture(scope="module")
def interpreted_step():
    """The kernel, interpreted; call it with 40 environments: more than a block, and not a multiple of it."""
    return _stepper(SolverOptions(), "pallas-interpret")


@pytest.fixture(scope="module")
def steps(float32_step, interpreted_step):
    """Form -> its step, in float32."""
    native = [("native", _stepper(SolverOptions(), "native"))] if simd.availability() is None else []
    return dict([("xla", float32_step), ("pallas-interpret", interpreted_step), *native])


@pytest.fixture(scope="module")
def exact_step():
    return _stepper(EXACT)


@pytest.fixture(scope="module")
def runge_kutta_step():
    return _stepper(EXACT_RK4)


@pytest.fixture(scope="module")
def suite():
    """Per body: all scenarios, concatenated, and the name of each state's."""
    out = {}
    for body in BODIES:
        kinds = parity.scenarios(body, STATES, seed=3)
        states = parity.States(*(np.concatenate(parts) for parts in zip(*kinds.values(), strict=True)))
        out[body] = states, np.repeat(list(kinds), [len(kind.q) for kind in kinds.values()])
    return out


def _form(steps, form):
    if form not in steps:
        pytest.skip(str(simd.availability()))
    return steps[form]


def _step(stepper, body, states, dtype):
    """New positions and velocities of one body's states, in `dtype`."""
    q, qd, control = (jnp.asarray(x, dtype) for x in _padded(body, states))
    bodies = jnp.full(len(q), BODIES.index(body), jnp.int32)
    new_q, new_qd, _ = stepper(bodies, (q, qd, jnp.zeros_like(qd)), control)
    for x in (new_q, new_qd):
        there = own_coordinates(body, np.arange(x.shape[1]), common_layout(BODIES))
        assert not np.delete(np.asarray(x), there, axis=1).any(), "what a body lacks stays at rest"
    return tuple(own_coordinates(body, np.asarray(x, np.float64), common_layout(BODIES)) for x in (new_q, new_qd))


def _padded(body, states):
    """A body's states in the layout that all bodies share."""
    return parity.States(
        *(pad_coordinates(body, x, common_layout(BODIES), root) for x, root in zip(states, (3, 3, 0), strict=True))
    )


def _mixed(suite):
    """All bodies in turn, float32: body, state and control of about `STATES` batch elements."""
    count = len(BODIES)
    parts = [[x[: STATES // count] for x in _padded(body, suite[body][0])] for body in BODIES]
    mixed = [np.stack(p, 1).reshape(-1, p[0].shape[1]) for p in zip(*parts, strict=True)]
    q, qd, control = (jnp.asarray(x, jnp.float32) for x in mixed)
    return jnp.arange(len(q), dtype=jnp.int32) % count, (q, qd, jnp.zeros_like(qd)), control


def _hopper_xml():
    spec = importlib.util.find_spec("brax")
    return (Path(next(iter(spec.submodule_search_locations))) / "envs" / "assets" / "hopper.xml").read_text()


class TestParity:
    @pytest.mark.parametrize("body", BODIES)
    def test_float64_is_mujoco_to_rounding(self, exact_step, suite, body):
        states, kinds = suite[body]
        q, qd = _step(exact_step, body, states, jnp.float64)
        wanted_q, wanted_qd = parity.reference(body, states)
        error = parity.velocity_error(qd, wanted_qd)
        assert error.max() <= 1e-9, kinds[error.argmax()]
        np.testing.assert_allclose(q, wanted_q, atol=1e-9)

    @pytest.mark.parametrize("form", ["xla", "native"])
    @pytest.mark.parametrize("body", BODIES)
    def test_float32_with_the_default_options(self, steps, suite, body, form):
        states, kinds = suite[body]
        _, qd = _step(_form(steps, form), body, states, jnp.float32)
        error = parity.velocity_error(qd, parity.reference(body, states)[1])
        assert np.quantile(error, 0.99) <= 1e-5, {kind: error[kinds == kind].max() for kind in np.unique(kinds)}
        assert np.median(error) <= 1e-6
        settled = parity.well_posed(body, states)
        assert settled.mean() > 0.98
        assert error[settled].max() <= 1e-3

    @pytest.mark.parametrize("body", BODIES)
    def test_native_runge_kutta(self, steps, suite, body):
        _form(steps, "native")
        states, _ = suite[body]
        _, qd = _step(_stepper(SolverOptions(integrator="rk4"), "native"), body, states, jnp.float32)
        error = parity.velocity_error(qd, parity.reference(body, states, "rk4")[1])
        assert np.quantile(error, 0.99) <= 2e-5
        assert np.median(error) <= 1e-6

    @pytest.mark.parametrize("body", BODIES)
    def test_runge_kutta(self, runge_kutta_step, suite, body):
        states, _ = suite[body]
        q, qd = _step(runge_kutta_step, body, states, jnp.float64)
        wanted_q, wanted_qd = parity.reference(body, states, "rk4")
        assert parity.velocity_error(qd, wanted_qd).max() <= 1e-9
        np.testing.assert_allclose(q, wanted_q, atol=1e-9)
        assert parity.velocity_error(parity.reference(body, states)[1], wanted_qd).max() > 1e-6  # Euler differs

    def test_the_states_reach_every_limit_and_the_floor(self, suite):
        for body in BODIES:
            model, (states, _) = load_model(body), suite[body]
            low, high = model.jnt_range[3:].T
            assert ((states.q[:, 3:] < low).any(0) & (states.q[:, 3:] > high).any(0)).all()
            data, touching = mujoco.MjData(model), 0
            for pose in states.q:
                data.qpos[:] = pose
                mujoco.mj_forward(model, data)
                touching += data.ncon > 0
            assert touching > len(states.q) / 4

    def test_warm_start_does_not_move_the_answer(self, exact_step, suite):
        states, _ = suite["walker"]
        q, qd, control = (jnp.asarray(x) for x in _padded("walker", states))
        bodies = jnp.ones(len(q), jnp.int32)
        cold = exact_step(bodies, (q, qd, jnp.zeros_like(qd)), control)
        misled = exact_step(bodies, (q, qd, 1e4 * jnp.ones_like(qd)), control)
        np.testing.assert_allclose(cold[1], misled[1], rtol=1e-9, atol=1e-9)

    def test_other_softness(self):
        """Direct solref, other midpoint and power, impratio, margin, friction: all read from the model, all felt."""
        spec = mujoco.MjSpec.from_string(_hopper_xml())
        spec.option.impratio, spec.option.gravity = 3.0, [0.5, 0.0, -7.0]
        for geom in spec.geoms:
            geom.contype, geom.conaffinity = (0, 1) if geom.type == mujoco.mjtGeom.mjGEOM_PLANE else (1, 0)
            geom.solref, geom.solimp = [-900.0, -40.0], [0.3, 0.9, 0.02, 0.3, 3.0]
        for joint in spec.joints:
            joint.solref_limit, joint.solimp_limit = [0.001, 0.7], [0.5, 0.97, 0.01, 0.4, 1.0]
        _check_hopper(spec.compile())


class TestForms:
    @pytest.mark.parametrize("quadratic", [True, False])
    @pytest.mark.parametrize("literal", [True, False])
    def test_native_tables_as_code_and_as_data(self, float32_step, steps, suite, literal, quadratic):
        """Both ways to pass the table, and impedances whose power is computed, give the XLA form's numbers."""
        _form(steps, "native")
        everything, everywhere, commands = _mixed(suite)
        table = replace(body_table(BODIES) if literal else jax.tree.map(jnp.asarray, body_table(BODIES)), quadratic=quadratic)
        found = _stepper(SolverOptions(), "native", table)(everything, everywhere, commands)
        wanted = float32_step(everything, everywhere, commands)
        error = parity.velocity_error(np.asarray(found[1], np.float64), np.asarray(wanted[1], np.float64))
        assert np.quantile(error, 0.99) <= 1e-5
        assert error.max() <= 1e-3

    def test_native_of_a_tree_of_another_shape(self, suite):
        """One chain, as Hopper has, in float32."""
        if simd.availability() is not None:
            pytest.skip(str(simd.availability()))
        model = mujoco.MjModel.from_xml_string(_hopper_xml())
        _check_hopper(model, "native", jnp.float32, 2e-3)

    def test_interpreted_kernel_is_the_xla_form(self, float32_step, interpreted_step, suite):
        everything, everywhere, commands = _mixed(suite)
        some = slice(None, None, STATES // 40)
        bodies, state, control = everything[some], tuple(x[some] for x in everywhere), commands[some]
        wanted = tuple(x[some] for x in float32_step(everything, everywhere, commands))
        found = interpreted_step(bodies, state, control)
        for x, y in zip(found, wanted, strict=True):
            assert parity.velocity_error(x, np.asarray(y, np.float64)).max() <= 1e-4
        as_data = jax.tree.map(jnp.asarray, body_table(BODIES))
        step = jax.jit(lambda table: planar_step(table, bodies, state, control, SolverOptions(), "pallas-interpret"))
        for x, y in zip(step(as_data), wanted, strict=True):
            assert parity.velocity_error(x, np.asarray(y, np.float64)).max() <= 1e-4

    def test_perturbed_masses_are_data(self, exact_step, suite):
        """A row of the table with a heavier torso is MuJoCo's model with a heavier torso, in the same program."""
        states = parity.States(*(x[:40] for x in suite["cheetah"][0]))
        model = mujoco.MjSpec.from_string(_body_xml("cheetah")).compile()
        model.body_mass[1] *= 2.0  # after compilation, so that the solver's constants stay
        table = jax.tree.map(jnp.asarray, stack_trees([read_tree(load_model("cheetah"), 1), read_tree(model, 1)]))
        state = jnp.asarray(states.q), jnp.asarray(states.qd), jnp.zeros((40, 9))
        both = jax.jit(jax.vmap(lambda t, b: planar_step(t, b, state, jnp.asarray(states.control), EXACT, "xla"), (None, 0)))
        out = both(table, jnp.arange(2)[:, None] * jnp.ones(40, int))
        for row, made in enumerate((load_model("cheetah"), model)):
            wanted = parity.simulate(parity.converged(made), states, 1)[:, -1, 9:]
            assert parity.velocity_error(out[1][row], wanted).max() <= 1e-9
        assert parity.velocity_error(out[1][0], np.asarray(out[1][1])).max() > 1e-3


def _body_xml(body):
    from tamherd_jax.physics import bodies

    spec = mujoco.MjSpec.from_string(bodies._asset(get_body(body).model))
    for geom in spec.geoms:
        if geom.type != mujoco.mjtGeom.mjGEOM_PLANE:
            geom.contype, geom.conaffinity = 1, 0
    spec.compiler.settotalmass = -1.0
    return spec.to_xml() if spec.compile() else ""


def _check_hopper(model, form="xla", dtype=jnp.float64, tolerance=1e-9):
    """A hopper's random states, upright and fallen, against MuJoCo C."""
    rng = np.random.default_rng(0)
    count = 200
    q = np.zeros((count, 6))
    q[:, 1], q[:, 2] = rng.uniform(-1.3, 0.1, count), rng.uniform(-1.5, 1.5, count)
    q[:, 3:] = rng.uniform(*model.jnt_range[3:].T, (count, 3)) * 1.02
    states = parity.States(q, rng.standard_normal((count, 6)), rng.uniform(-1.5, 1.5, (count, 3)))
    wanted = parity.simulate(parity.converged(model), states, 4)[:, -1]
    step = _stepper(EXACT, form, read_tree(model, 4))
    start = tuple(jnp.asarray(x, dtype) for x in (q, states.qd, np.zeros((count, 6))))
    found = step(jnp.zeros(count, jnp.int32), start, jnp.asarray(states.control, dtype))
    assert parity.velocity_error(np.asarray(found[1], np.float64), wanted[:, 6:]).max() <= tolerance
    np.testing.assert_allclose(found[0], wanted[:, :6], atol=tolerance)


class TestData:
    def test_hopper_is_a_matter_of_data(self):
        _check_hopper(mujoco.MjModel.from_xml_string(_hopper_xml()))

    def test_bodies_of_different_shape_do_not_share_a_table(self):
        hopper = read_tree(mujoco.MjModel.from_xml_string(_hopper_xml()), 4)
        with pytest.raises(ValueError, match="different shape"):
            stack_trees([hopper, body_table()])


class TestBatching:
    def test_nested_vmap_is_one_flat_call(self, float32_step, suite):
        bodies, (q, qd, guess), control = _mixed(suite)
        physics, count = PlanarPhysics("xla", table=body_table(BODIES)), len(BODIES)
        wanted = float32_step(bodies, (q, qd, guess), control)

        def nested(q, qd, control):
            step = jax.vmap(jax.vmap(jax.vmap(physics.step)), in_axes=(None, 0, 0))
            body = jnp.broadcast_to(jnp.arange(count), (6, count))
            return step(body, PhysicsState(q, qd, jnp.zeros_like(qd)), control)

        shaped = [x.reshape(100, 6, count, -1) for x in (q, qd, control)]
        found = jax.jit(nested)(*shaped)
        np.testing.assert_array_equal(found.q.reshape(STATES, 9), wanted[0])
        np.testing.assert_array_equal(found.qd.reshape(STATES, 9), wanted[1])
        np.testing.assert_array_equal(found.warmstart.reshape(STATES, 9), wanted[2])
        calls = str(jax.make_jaxpr(nested)(*shaped)).count("custom_vmap_call")
        assert calls <= 1

    def test_under_scan_and_pmap(self, float32_step, suite):
        physics = PlanarPhysics("xla", table=body_table(BODIES))
        bodies, state, control = _mixed(suite)

        def episode(bodies, state, control):
            step = jax.vmap(physics.step)
            return jax.lax.scan(lambda s, _: (step(bodies, s, control), None), state, None, length=3)[0]

        start = jax.vmap(init_state)(*state[:2])
        found = jax.pmap(episode)(*jax.tree.map(lambda x: x[None], (bodies, start, control)))
        for _ in range(3):
            state = float32_step(bodies, state, control)
        np.testing.assert_allclose(found.qd[0], state[1], rtol=1e-5, atol=1e-5)

    def test_more_lanes_than_a_chunk(self, float32_step, suite):
        bodies, state, control = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), _mixed(suite))
        found = float32_step(bodies, state, control)
        wanted = float32_step(*jax.tree.map(lambda x: x[:STATES], (bodies, state, control)))
        np.testing.assert_allclose(found[1][:STATES], wanted[1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1][STATES:], wanted[1][::-1], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("form", ["xla", "native"])
    def test_a_lane_does_not_see_its_neighbours(self, steps, suite, form):
        bodies, state, control = _mixed(suite)
        wanted = _form(steps, form)(bodies, state, control)
        order = np.random.default_rng(0).permutation(STATES)
        again = steps[form](bodies[order], tuple(x[order] for x in state), control[order])
        np.testing.assert_array_equal(again[1], wanted[1][order])

    @pytest.mark.parametrize("form", ["xla", "native", "pallas-interpret"])
    def test_a_lane_that_is_not_finite_stays_in_its_lane(self, steps, suite, form):
        bodies, state, control = _mixed(suite)
        whole = steps["xla" if form == "pallas-interpret" else form] if form in steps else _form(steps, form)
        wanted = [np.asarray(x) for x in whole(bodies, state, control)]
        (q, qd, guess), control = [np.array(x) for x in state], np.array(control)
        q[1, 4], qd[2, 0], control[5, 3], guess[7, 8], qd[11, 5] = np.nan, np.inf, np.nan, -np.inf, 3e37
        some, tolerance = (slice(40), 1e-4) if form == "pallas-interpret" else (slice(None), 0)
        found = steps[form](bodies[some], (q[some], qd[some], guess[some]), control[some])
        sick = np.isin(np.arange(STATES), [1, 2, 5, 7, 11])[some]
        for x, y in zip(found, wanted, strict=True):
            x, y = np.asarray(x), y[some]
            assert np.isnan(x[sick]).all()
            np.testing.assert_allclose(x[~sick], y[~sick], rtol=tolerance, atol=tolerance)


class TestFreeFlight:
    @pytest.mark.parametrize(("form", "dtype", "exact"), [("xla", jnp.float64, 1e-8), ("native", jnp.float32, 2e-4)])
    def test_momentum_and_energy(self, form, dtype, exact):
        """No floor in reach, no spring, damper or motor: horizontal momentum stays, the fall is g, energy drifts as O(h)."""
        if form == "native" and simd.availability() is not None:
            pytest.skip(str(simd.availability()))
        model = mujoco.MjSpec.from_string(_hopper_xml()).compile()
        model.dof_damping[:], model.jnt_stiffness[:] = 0.0, 0.0
        model.opt.timestep = 1e-4
        step = _stepper(SolverOptions(integrator="rk4"), form, read_tree(model, 100))
        q, v = np.array([0, 5.0, 0.3, -1.0, -1.2, 0.1]), np.array([1.0, 2.0, 3.0, -4.0, 2.0, 1.0])
        start = tuple(jnp.asarray(x, dtype)[None] for x in (q, v, 0 * v))
        q1, v1, _ = step(jnp.zeros(1, jnp.int32), start, jnp.zeros((1, 3), dtype))
        before, after = (_mechanics(model, *x) for x in ((q, v), (np.asarray(q1)[0], np.asarray(v1)[0])))
        pull = [0, 0, -9.81 * 0.01 * model.body_mass.sum()]
        np.testing.assert_allclose(after["momentum"], before["momentum"] + pull, atol=exact)
        assert abs(after["energy"] - before["energy"]) < max(1e-7, exact / 10) * abs(before["energy"])


def _mechanics(model, q, v):
    data = mujoco.MjData(model)
    model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    data.qpos[:], data.qvel[:] = q, v
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    return {"momentum": data.subtree_linvel[1] * model.body_mass.sum(), "energy": data.energy.sum()}


_FOOT_MOTOR = '<motor ctrlrange="-1.0 1.0" gear="200.0" joint="foot_joint"/>'
_FOOT = '<body name="foot"'
REFUSALS = {
    "tendons": ("</worldbody>", "</worldbody><tendon><fixed><joint joint='leg_joint' coef='1'/></fixed></tendon>"),
    "elliptic": ("<option ", "<option cone='elliptic' "),
    "integrator": ("<option ", "<option integrator='implicit' "),
    "medium": ("<option ", "<option density='1.2' "),
    "gravity out": ("<option ", "<option gravity='0 1 -9' "),
    "condim 1": ('condim="3" solimp', 'condim="1" solimp'),
    "priority": ('condim="3" solimp', "condim=\"3\" priority='1' solimp"),
    "gap": ('margin="0.001"', "margin=\"0.002\" gap='0.001'"),
    "axis of joint leg_joint": ('pos="0 0 0.25" axis="0 -1 0"', 'pos="0 0 0.25" axis="0 -1 0.1"'),
    "type of joint foot_joint": ('name="foot_joint"', 'name="foot_joint" type="slide"'),
    "body leg out of the plane": ('pos="0 0 -0.7"', 'pos="0 0.1 -0.7"'),
    "limits on root joint rootz": (
        'type="slide" armature="0" damping="0"/>\n      <joint name="rooty"',
        'type="slide" range=\'-1 1\' armature="0" damping="0"/>\n      <joint name="rooty"',
    ),
    "shape of geom foot_geom": ('size="0.06 0.195"', 'size="0.06 0.195 0.1" _box_'),
    "plain motors": (_FOOT_MOTOR, "<position joint='foot_joint' kp='2'/>"),
    "2 actuators": (_FOOT_MOTOR, ""),
    "body leg with 2 children": (_FOOT, "<body><joint axis='0 1 0' limited='false'/><geom size='.1'/></body>" + _FOOT),
    "dry joint friction": ('armature="1" damping', "frictionloss='0.1' armature=\"1\" damping"),
    "contype": ('contype="0" conaffinity="0" condim', 'contype="1" conaffinity="1" condim'),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_name_the_first_unsupported_thing(what):
    old, new = REFUSALS[what]
    xml = _hopper_xml()
    assert old in xml
    xml = xml.replace(old, new)
    if "_box_" in new:
        xml = xml.replace("_box_", "").replace('0 0.1" quat="0.707107 0 -0.707107 0" type="capsule"', '0 0.1" type="box"')
    if what.startswith("limits on"):
        free = 'name="rootz" pos="0 0 0" axis="0 0 1" limited="false"'
        xml = xml.replace(free, free.replace("false", "true"))
    with pytest.raises(ValueError, match=f"^the planar physics does not support .*{what}") as refusal:
        read_tree(mujoco.MjModel.from_xml_string(xml), 4)
    assert "\n" not in str(refusal.value)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="unknown form 'cuda'"):
        PlanarPhysics("cuda")
    with pytest.raises(ValueError, match="unknown integrator"):
        SolverOptions(integrator="heun")
    with pytest.raises(ValueError, match="iterations"):
        SolverOptions(iterations=0)
    with pytest.raises(ValueError, match="frame_skip"):
        read_tree(load_model("cheetah"), 0)
    with pytest.raises(ValueError, match="shapes"):
        planar_step(body_table(), jnp.zeros(2, int), (jnp.zeros((2, 9)),) * 3, jnp.zeros((2, 5)))
    assert body_table(BODIES).frames.tolist() == list(FRAME_SKIP)
