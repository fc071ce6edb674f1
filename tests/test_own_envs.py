"""Users' own environments and tasks: the adapter, mixtures, and the task sets that ship."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from goal_mass import GoalMass
from point_mass import PointMass, PointTask
from toy import toy_config

from tamherd_jax.envs import (
    Locomotion,
    MixedEnv,
    MixedTask,
    Task,
    TaskedEnv,
    collect_episodes,
    get_task_set,
    make_environment,
    make_task_set,
    ml2_params,
    ml2_vel,
    take_tasks,
)
from tamherd_jax.envs._brax import Env, State
from tamherd_jax.envs.episodes import collect_autoreset_steps
from tamherd_jax.envs.tasks import mean_by_task
from tamherd_jax.experiments.herds import trained_herd
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.physics import DEFAULT_BODIES, frame_skips, get_physics, init_state, load_model, perturbed_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from brax.envs.wrappers.training import EpisodeWrapper


class Slider(Env):
    """A Brax environment that knows nothing of tasks: `v' = v + gain clip(a)`, paid by v, over beyond abs(x) = 1."""

    class System:
        gain = 0.1

    def __init__(self):
        self.sys = self.System()

    def reset(self, rng):
        x = jnp.append(0.01 * jax.random.normal(rng, (1,)), 0.0)
        return State(x, x, jnp.zeros(()), jnp.zeros(()), {"speed": jnp.zeros(())}, {"age": jnp.zeros((), jnp.int32)})

    def step(self, state, action):
        v = state.pipeline_state[1] + self.sys.gain * action[0]
        x = jnp.stack([state.pipeline_state[0] + v, v])
        state.metrics.update(speed=v)  # in place, as Brax's own do
        state.info["age"] = state.info["age"] + 1
        return state.replace(pipeline_state=x, obs=x, reward=v, done=jnp.where(jnp.abs(x[0]) > 1, 1.0, 0.0))

    observation_size = property(lambda self: pytest.fail("runs the environment"))
    action_size = 1
    backend = "none"


def gain(task, sys):
    heavier = Slider.System()
    heavier.gain = sys.gain * task["gain"]
    return heavier


def slider(**options):
    return TaskedEnv(Slider(), **options)


SLIDES = make_task_set(
    "Slide",
    {
        f"{way}-{gain}": {"way": np.float32(sign), "gain": np.float32(gain)}
        for way, sign in (("left", -1), ("right", 1))
        for gain in (1, 2)
    },
    modes={"left-1": "left", "left-2": "left", "right-1": "right", "right-2": "right"},
)


def directed(task, before, action, after):
    """Paid for the way gone in the task's direction."""
    return task["way"] * (after.pipeline_state[0] - before.pipeline_state[0])


# The adapter ----------------------------------------------------------------------------------------------------------


def test_a_task_changes_reward_system_and_start():
    env = slider(
        reward=directed,
        system=gain,
        start=lambda task, state: state.replace(
            pipeline_state=state.pipeline_state.at[0].set(0.5), obs=state.obs.at[0].set(0.5)
        ),
    )
    assert (env.observation_size, env.action_size, env.backend) == (2, 1, "slider-none")
    tasks = take_tasks(SLIDES.tasks, jnp.arange(4))
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4), tasks)
    np.testing.assert_allclose(states.obs[:, 0], 0.5)
    after = jax.jit(jax.vmap(env.step))(states, jnp.full((4, 1), 3.0))  # clipped to 1
    np.testing.assert_allclose(after.obs[:, 1], [0.1, 0.2, 0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(after.reward, [-0.1, -0.2, 0.1, 0.2], rtol=1e-5)
    assert after.info["inner"][1]["age"].tolist() == [1, 1, 1, 1]
    assert states.info["inner"][1]["age"].tolist() == [0, 0, 0, 0]  # Brax's writing in place reaches nobody
    own = slider().reset(jax.random.key(0), SLIDES.tasks)
    np.testing.assert_allclose(slider().step(own, jnp.ones(1)).reward, 0.1, rtol=1e-6)  # the environment's reward


def test_an_episode_that_is_over_stays_so_and_one_that_diverges_ends():
    env = slider(reward=directed, default_task=take_tasks(SLIDES.tasks, 2))
    step, state, paid = jax.jit(env.step), env.reset(jax.random.key(0)), []
    while not state.done:
        state = step(state, jnp.ones(1))
        paid.append(float(state.reward))
    np.testing.assert_allclose(sum(paid), float(state.obs[0]), atol=0.03)
    stayed = step(state, jnp.ones(1))
    assert (float(stayed.done), float(stayed.reward)) == (1.0, 0.0)
    np.testing.assert_array_equal(stayed.obs, state.obs)
    start = env.reset(jax.random.key(1))
    broken = step(start, jnp.full(1, jnp.nan))
    assert (float(broken.done), float(broken.reward), float(broken.metrics["nonfinite"])) == (1.0, 0.0, 1.0)
    np.testing.assert_array_equal(broken.obs, start.obs)


def test_collected_episodes_equal_a_loop():
    env = slider(reward=directed, system=gain)
    task = take_tasks(SLIDES.tasks, 1)
    episodes = jax.jit(lambda key: collect_episodes(env, lambda obs, k: -jnp.ones(1), task, key, 2, 9))(jax.random.key(0))
    velocity = -0.2 * np.arange(1, 10)
    assert float(episodes.steps[0]) == float(np.argmax(np.abs(np.cumsum(velocity)) > 1)) + 1 == 3
    np.testing.assert_allclose(episodes.rewards[0, :3], -velocity[:3], rtol=1e-5)


@pytest.mark.slow
def test_a_users_environment_goes_through_the_whole_method(tmp_path):
    """A herd on the slider: left and right part, and the trained herd is saved and loaded."""
    env = slider(reward=directed, expected_action_scale=4.0)
    experiment = Experiment(toy_config(seeds=1), env, SLIDES)
    list(experiment.run())
    herd = trained_herd(experiment.plan, experiment.state, 0)
    herd.save(tmp_path)
    loaded = Herd.load(tmp_path, env=env, task_set=SLIDES)
    adapted = [h.adapt(jax.random.key(0), "left-2") for h in (herd, loaded)]
    np.testing.assert_array_equal(adapted[0].after.rewards, adapted[1].after.rewards)
    assert np.isfinite(adapted[0].after.returns).all()


def test_observations_that_are_no_array_are_refused():
    class Sensors(Slider):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(obs={"x": state.obs})

    with pytest.raises(ValueError, match="observations of Sensors are no array but a dict"):
        _ = TaskedEnv(Sensors()).observation_size


@struct.dataclass
class PlaygroundState:
    """Fields of a MuJoCo Playground state: `data` where Brax has `pipeline_state`."""

    data: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Playground(Env):
    def reset(self, rng):
        return PlaygroundState(jnp.zeros(1), jnp.zeros(1), jnp.zeros(()), jnp.zeros(()), {}, {"steps": jnp.zeros(())})

    def step(self, state, action):
        state.info["steps"] += 1
        x = state.data + action
        return state.replace(data=x, obs=x, reward=x[0], done=jnp.where(x[0] > 2, 1.0, 0.0))

    observation_size = action_size = 1
    backend = "mjx"


def test_a_state_without_pipeline_state_will_do():
    env = TaskedEnv(Playground(), reward=lambda task, before, action, after: task * (after.data - before.data)[0])
    collect = jax.jit(lambda key: collect_episodes(env, lambda obs, k: jnp.ones(1), jnp.float32(2.0), key, 2, 5))
    episodes = collect(jax.random.key(0))
    np.testing.assert_array_equal(episodes.rewards, [[2.0, 2.0, 2.0, 0.0, 0.0]] * 2)
    np.testing.assert_array_equal(episodes.terminated, [[0.0, 0.0, 1.0, 0.0, 0.0]] * 2)
    assert env.observation_size == 1


@pytest.mark.parametrize(("limit", "terminates"), [(2, False), (9, True)])
def test_a_time_limit_of_the_environments_own_is_no_termination(limit, terminates):
    """Brax's wrapper sets `done` at its limit; the slider itself ends its third step beyond the edge."""
    last = 3 if terminates else limit
    act, task = lambda obs, k: jnp.ones(1), jnp.float32(0.0)

    def start(task, state):
        return state.replace(pipeline_state=jnp.array([0.5, 0.0]))

    env = TaskedEnv(EpisodeWrapper(Slider(), limit, 1), start=start)
    episodes = jax.jit(lambda k: collect_episodes(env, act, task, k, 1, 5))(jax.random.key(0))
    assert float(episodes.steps[0]) == last
    assert float(episodes.terminated.sum()) == terminates
    mixed = MixedEnv([env, PointMass()])
    point = PointTask(mode=jnp.int32(0), gain=jnp.float32(1.0))
    both = MixedTask(mode=jnp.int32(0), tasks=(task, point))
    episodes = jax.jit(lambda k: collect_episodes(mixed, act, both, k, 1, 5))(jax.random.key(0))
    assert (float(episodes.steps[0]), float(episodes.terminated.sum())) == (last, terminates)
    ahead = (lambda c, obs, k: jnp.ones(1)), (), lambda k, i: ()
    collected = jax.jit(lambda k: collect_autoreset_steps(env, *ahead, task, k, 5, 5))
    assert (float(collected(jax.random.key(0)).terminated.sum()) > 0) == terminates


class BadStart(Slider):
    def reset(self, rng):
        return super().reset(rng).replace(obs=jnp.full(2, jnp.nan))


@pytest.mark.parametrize("env", [TaskedEnv(BadStart()), None], ids=["adapter", "own"])
def test_a_reset_that_is_not_finite_is_counted_and_kept_out(env):
    """Even where the policy does not look, and where the environment itself says nothing."""

    class Own(PointMass):
        def reset(self, rng, task):
            return super().reset(rng, task).replace(obs=jnp.full(1, jnp.nan))

    task = PointTask(mode=jnp.int32(0), gain=jnp.float32(1.0)) if env is None else jnp.float32(0.0)
    episodes = collect_episodes(env or Own(), lambda obs, k: jnp.ones(1), task, jax.random.key(0), 2, 3)
    assert episodes.nonfinite.tolist() == [1.0, 1.0]
    assert float(episodes.valid[:, 0].sum()) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(episodes))


def changed(**parts):
    class Changed(Slider):
        def step(self, state, action):
            after = super().step(state, action)
            for field in ("info", "metrics"):
                if field in parts:
                    getattr(after, field)[parts[field]] = jnp.zeros(())
            return after.replace(reward=after.reward[None]) if "reward" in parts else after

    return Changed()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (changed(reward=1), r"reward of Changed must be a scalar, not of shape \(1,\)"),
        (changed(info="seen"), "step of Changed adds the info key 'seen': reset and step must have the same keys"),
        (changed(metrics="seen"), "step of Changed adds the metrics key 'seen'"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_in_words(env, message):
    env = TaskedEnv(env)
    state = env.reset(jax.random.key(0), jnp.float32(0.0))
    with pytest.raises(ValueError, match=message):
        env.step(state, jnp.ones(1))


def test_discrete_actions_and_unknown_modes_are_refused():
    class Discrete(Slider):
        action_space = type("Space", (), {"n": 3})()

    with pytest.raises(ValueError, match="Discrete has a discrete action space; learners need continuous actions"):
        TaskedEnv(Discrete())
    env = MixedEnv([PointMass(), GoalMass()])
    parts = (PointTask(mode=jnp.int32(0), gain=jnp.float32(1.0)), jnp.zeros(2))
    with pytest.raises(ValueError, match="mode must be 0 to 1, not 5"):
        env.reset(jax.random.key(0), MixedTask(mode=5, tasks=parts))
    with pytest.raises(ValueError, match="needs 2 tasks, one for each environment, not 1"):
        env.reset(jax.random.key(0), MixedTask(mode=0, tasks=parts[:1]))
    traced = jax.jit(env.reset)(jax.random.key(0), MixedTask(mode=jnp.int32(-1), tasks=parts))
    assert np.isnan(traced.obs).all()


def test_debugging_nans_finds_none_of_ours():
    """Tasks that were not drawn have no mean return; the NaN that says so must not stop a user's search for others."""
    index, values = jnp.array([0, 0, 2]), jnp.array([1.0, 3.0, 5.0])
    np.testing.assert_array_equal(jax.jit(lambda v: mean_by_task(index, v, 4))(values), [2.0, np.nan, 5.0, np.nan])
    with jax.debug_nans(True):
        np.testing.assert_array_equal(jax.jit(lambda v: mean_by_task(index, v, 4))(values), [2.0, -np.inf, 5.0, -np.inf])


@pytest.mark.parametrize(
    ("tasks", "modes", "words"),
    [
        ({}, None, "needs at least one task"),
        ({"a": {"x": 1.0}, "b": {"y": 1.0}}, None, "trees of the same structure and shapes"),
        ({"a": np.ones(2), "b": np.ones(3)}, None, "trees of the same structure and shapes"),
        ({"a": 1.0, "b": 2.0}, {"a": "one"}, "modes does not name the mode of task 'b'"),
    ],
)
def test_wrong_task_sets_are_refused(tasks, modes, words):
    with pytest.raises(ValueError, match=words):
        make_task_set("Mine", tasks, modes)


def test_task_sets_are_named_and_have_modes():
    assert SLIDES.task_names == ("left-1", "left-2", "right-1", "right-2")
    assert SLIDES.mode_names == ("left", "right")
    assert SLIDES.modes.tolist() == [0, 0, 1, 1]
    assert make_task_set("One", {"a": 1.0, "b": 2.0}).mode_names == ("One",)


# Mixtures -------------------------------------------------------------------------------------------------------------


def test_environments_of_different_sizes_mix_by_padding():
    """One and two dimensions in one program, each environment against its own environment alone."""
    point, goal = PointMass(), GoalMass(fence=0.5)
    env = MixedEnv([point, goal])
    assert (env.observation_size, env.action_size) == (2, 2)
    parts = (
        PointTask(mode=np.array([1, 1], np.int32), gain=np.ones(2, np.float32)),
        np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
    )
    tasks = MixedTask(mode=np.array([0, 1], np.int32), tasks=parts)
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(env.reset)(keys, jax.tree.map(jnp.asarray, tasks))
    actions = jnp.array([[0.5, 9.0], [0.7, -0.2]])
    step = jax.jit(jax.vmap(env.step))
    after = step(states, actions)
    first = point.step(point.reset(keys[0], jax.tree.map(lambda x: x[0], parts[0])), actions[0, :1])
    second = goal.step(goal.reset(keys[1], parts[1][1]), actions[1])
    np.testing.assert_allclose(after.obs, [[first.obs[0], 0.0], second.obs], rtol=1e-6)
    np.testing.assert_allclose(after.reward, [first.reward, second.reward], rtol=1e-5)
    for _ in range(5):
        after = step(after, jnp.ones((2, 2)))
    assert after.done.tolist() == [0.0, 1.0]  # only the second has a fence


# ML2-Vel and ML2-Params -----------------------------------------------------------------------------------------------


def test_a_target_velocity_is_paid_for_being_kept(mujoco_env):
    task_set = ml2_vel()
    assert len(task_set) == 8
    assert task_set.task_names[:2] == ("cheetah-0.25", "cheetah-0.75")
    np.testing.assert_allclose(task_set.mode_weights().sum(1), 1.0)
    for body in (0, 1):
        nominal = Task(body=jnp.int32(body), direction=jnp.float32(1.0))
        state = mujoco_env.reset(jax.random.key(0), nominal)
        plain = mujoco_env.step(state, jnp.full(6, 0.5))
        cost = (0.05, 1e-3)[body] * 6 * 0.25
        speed = float(plain.reward) + cost - body
        aimed = mujoco_env.reset(jax.random.key(0), Task(jnp.int32(body), jnp.float32(1.0), target=jnp.float32(1.25)))
        after = mujoco_env.step(aimed, jnp.full(6, 0.5))
        np.testing.assert_array_equal(after.obs, plain.obs)
        np.testing.assert_allclose(after.reward, -abs(speed - 1.25) + body - cost, rtol=1e-4, atol=1e-5)


def test_perturbed_bodies_are_what_they_claim():
    models = perturbed_models(3)
    assert len(models) == 6
    for row, model in enumerate(models):
        nominal = load_model(("cheetah", "walker")[row % 2])
        ratio = model.body_mass[1:] / nominal.body_mass[1:]
        assert ((ratio > 1 / 1.5) & (ratio < 1.5)).all()
        assert ratio.std() > 0.02
        np.testing.assert_allclose(model.body_inertia[1:] / nominal.body_inertia[1:], ratio[:, None] * np.ones((1, 3)))
        assert not np.allclose(model.dof_invweight0, nominal.dof_invweight0)
    np.testing.assert_array_equal(perturbed_models(1)[1].body_mass, models[1].body_mass)
    assert load_model("cheetah").body_mass[1] != models[0].body_mass[1]  # the shared model is untouched


def test_planar_moves_perturbed_bodies_as_mujoco_does(float64):
    models = (load_model("cheetah"), load_model("walker"), *perturbed_models(2))
    rng = np.random.default_rng(0)
    rows = jnp.arange(6)
    states = jax.vmap(init_state)(jnp.asarray(0.1 * rng.normal(size=(6, 9))), jnp.asarray(rng.normal(size=(6, 9))))
    control, frames = jnp.asarray(rng.uniform(-1, 1, size=(6, 6))), frame_skips(DEFAULT_BODIES) * 3
    ours, theirs = (jax.vmap(get_physics(name, models, frames).step)(rows, states, control) for name in ("planar", "mujoco"))
    np.testing.assert_allclose(ours.qd, theirs.qd, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.q, theirs.q, rtol=1e-8, atol=1e-8)
    nominal = jax.vmap(get_physics("mujoco").step)(rows % 2, states, control)
    assert (np.abs(np.asarray(nominal.qd - theirs.qd)).max(1) > 1e-3).tolist() == [False, False, True, True, True, True]


def test_each_task_of_ml2_params_has_a_body_of_its_own():
    task_set = ml2_params()
    env = make_environment(task_set, "mujoco", 10.0)
    assert (env.variants, env.expected_action_scale, env.backend) == (4, 10.0, "mujoco")
    tasks = take_tasks(task_set.tasks, jnp.arange(8))
    keys = jnp.stack([jax.random.key(0)] * 8)
    after = jax.vmap(env.step)(jax.vmap(env.reset)(keys, tasks), jnp.full((8, 6), 3.0))
    assert len(np.unique(np.asarray(after.obs), axis=0)) == 8
    nominal = env.step(env.reset(jax.random.key(0), Task(jnp.int32(0), jnp.float32(1.0))), jnp.full(6, 3.0))
    plain = Locomotion("mujoco", 10.0)
    same = plain.step(plain.reset(jax.random.key(0), Task(jnp.int32(0), jnp.float32(1.0))), jnp.full(6, 3.0))
    np.testing.assert_array_equal(nominal.obs, same.obs)
    with pytest.raises(ValueError, match="physics backend 'mjx' takes no other bodies than cheetah, walker"):
        make_environment(task_set, "mjx")
    with pytest.raises(ValueError, match="hopper, nor other time steps"):
        Locomotion("mjx", walker_frame_skip=8)
    with pytest.raises(ValueError, match="unknown task set 'ml4'; choose from ml2, ml2-vel, ml2-vel-between, ml2-params, ml3"):
        get_task_set("ml4")
