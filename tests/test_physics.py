import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tamherd_jax.physics import BODIES, FRAME_SKIP, PhysicsState, get_physics, load_model, parity
from tamherd_jax.physics.bodies import common_layout, own_coordinates, pad_coordinates


def random_states(rng, n, speed=1.0):
    q = rng.uniform(-0.1, 0.1, (n, 9)) * np.array([1, 1, 3, 2, 2, 2, 2, 2, 2])
    qd = speed * rng.normal(size=(n, 9))
    return PhysicsState(*(jnp.asarray(x, jnp.float32) for x in (q, qd, np.zeros((n, 9)))))


def step_with_mujoco(body, q, qd, control):
    """One environment step by MuJoCo's own loop, independent of the backend."""
    model = load_model(BODIES[body])
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = q, qd, control
    for _ in range(FRAME_SKIP[body]):
        mujoco.mj_step(model, data)
    return data.qpos.copy(), data.qvel.copy()


@pytest.mark.parametrize("body", [0, 1])
def test_mujoco_backend_is_mujoco(body):
    rng = np.random.default_rng(body)
    states, controls = random_states(rng, 20, 2.0), rng.uniform(-1, 1, (20, 6)).astype(np.float32)
    out = jax.jit(jax.vmap(get_physics("mujoco").step, (None, 0, 0)))(body, states, controls)
    for i in range(20):
        q, qd = step_with_mujoco(body, states.q[i], states.qd[i], controls[i])
        np.testing.assert_allclose(out.q[i], q, atol=1e-6)
        np.testing.assert_allclose(out.qd[i], qd, rtol=1e-6, atol=1e-5)


def test_models_are_gymnasiums():
    from pathlib import Path

    import gymnasium

    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    for body, file in (("cheetah", "half_cheetah.xml"), ("walker", "walker2d.xml"), ("hopper", "hopper.xml")):
        ours, theirs = load_model(body), _load_deprecated(assets / file)
        for name in (
            "body_mass",
            "dof_armature",
            "dof_damping",
            "jnt_stiffness",
            "actuator_gear",
            "geom_friction",
            "geom_size",
        ):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(ours.body_inertia, theirs.body_inertia, rtol=1e-7)
        limits = np.degrees(theirs.jnt_range)
        whole = np.abs(limits - np.round(limits)) < 1e-6
        np.testing.assert_allclose(ours.jnt_range[whole], theirs.jnt_range[whole], rtol=0, atol=1e-15)
        np.testing.assert_array_equal(ours.geom_contype[1:], theirs.geom_contype[1:])  # the floor is only ever hit
        assert ours.opt.timestep == theirs.opt.timestep


def _load_deprecated(path):
    spec = mujoco.MjSpec.from_file(str(path))
    from tamherd_jax.physics.bodies import compile_spec

    return compile_spec(spec)


def test_nested_vmap_and_mixed_bodies_equal_single_calls():
    physics = get_physics("mujoco")
    rng = np.random.default_rng(3)
    states = jax.tree.map(lambda x: x.reshape(2, 3, 9), random_states(rng, 6))
    controls = jnp.asarray(rng.uniform(-1, 1, (2, 3, 6)), jnp.float32)
    bodies = jnp.array([0, 1])
    out = jax.jit(jax.vmap(jax.vmap(physics.step, (None, 0, 0))))(bodies, states, controls)
    for i in range(2):
        for j in range(3):
            one = physics.step(bodies[i], jax.tree.map(lambda x, i=i, j=j: x[i, j], states), controls[i, j])
            np.testing.assert_array_equal(out.q[i, j], one.q)
            np.testing.assert_array_equal(out.qd[i, j], one.qd)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12])
def test_a_diverged_lane_stays_in_its_lane(value, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states, controls = random_states(np.random.default_rng(4), 4), jnp.zeros((4, 6))
    step = jax.jit(jax.vmap(get_physics("mujoco").step, (None, 0, 0)))
    sound = step(0, states, controls)
    broken = step(0, states.replace(qd=states.qd.at[1, 3].set(value)), controls)
    rest = np.array([0, 2, 3])
    np.testing.assert_array_equal(broken.q[rest], sound.q[rest])
    assert not (np.isfinite(broken.qd[1]).all() and np.abs(broken.qd[1]).max() < 1e10)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())  # MuJoCo writes no log


def test_parked_lanes_stay_put():
    states = random_states(np.random.default_rng(5), 3)
    out = jax.vmap(get_physics("mujoco").step)(jnp.array([0, -1, 1]), states, jnp.ones((3, 6)))
    np.testing.assert_array_equal(out.q[1], states.q[1])
    assert np.abs(out.q[0] - states.q[0]).max() > 1e-4


def test_mjx_agrees_with_mujoco_step_for_step():
    rng = np.random.default_rng(6)
    mjx = jax.jit(jax.vmap(get_physics("mjx").step))
    reference = jax.jit(jax.vmap(get_physics("mujoco").step))
    n = 32
    body = jnp.arange(n) % 2
    states = random_states(rng, n, 0.1)
    states = states.replace(q=states.q * jnp.where(body == 0, 1.0, 0.05)[:, None])
    errors = []
    for _ in range(30):
        controls = jnp.asarray(np.clip(rng.normal(size=(n, 6)), -1, 1), jnp.float32)
        ours, theirs = mjx(body, states, controls), reference(body, states, controls)
        error = np.abs(np.asarray(ours.qd - theirs.qd)).max(1) / (1 + np.abs(np.asarray(theirs.qd)).max(1))
        errors.append(error)
        states = ours
    errors = np.concatenate(errors)
    assert np.median(errors) < 1e-5
    assert np.quantile(errors, 0.99) < 2e-2
    # MJX stops after four Newton iterations; what it gains by that is bounded, not zero.
    assert errors.max() < 0.3


@pytest.mark.parametrize("backend", ["mujoco", "mjx"])
def test_a_padded_body_moves_as_its_own_model(backend):
    """Mixed with larger bodies, each state steps as MuJoCo steps the unpadded model; padded joints stay at 0."""
    layout = common_layout(BODIES)
    step = jax.jit(jax.vmap(get_physics(backend, bodies=BODIES).step))
    index = BODIES.index("hopper")
    states = parity.States(*(x[:12] for x in parity.scenarios("hopper", 12 * 9, seed=2)["policy 0.5"]))
    q, qd, control = (
        jnp.asarray(pad_coordinates("hopper", x, layout, n), jnp.float32) for x, n in zip(states, (3, 3, 0), strict=True)
    )
    out = step(jnp.full(len(q), index), PhysicsState(q, qd, jnp.zeros_like(q)), control)
    wanted_q, wanted_qd = parity.reference("hopper", states)
    bound = 1e-6 if backend == "mujoco" else 1e-4
    assert parity.velocity_error(own_coordinates("hopper", np.asarray(out.qd), layout), wanted_qd).max() < bound
    np.testing.assert_allclose(own_coordinates("hopper", np.asarray(out.q), layout), wanted_q, atol=bound)
    np.testing.assert_array_equal(out.q[:, 6:], 0.0)
    np.testing.assert_array_equal(out.qd[:, 6:], 0.0)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown physics backend 'spring'; choose from auto, mujoco, planar, mjx"):
        get_physics("spring")
    with pytest.raises(ValueError, match="unknown body 'ant'"):
        load_model("ant")
