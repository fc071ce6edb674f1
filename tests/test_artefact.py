import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_mass import PointMass, point_tasks
from toy import untrained_herd
from toy_pearl import TINY

from tamherd_jax import cli
from tamherd_jax.codec import sealed
from tamherd_jax.envs import Locomotion, collect_episodes
from tamherd_jax.experiments.herds import trained_herd, write_herds
from tamherd_jax.herd.artefact import Herd
from tamherd_jax.maml import MAML, MAMLConfig
from tamherd_jax.pearl import PEARL
from tamherd_jax.types import acting, without_replay


@pytest.fixture(scope="module")
def herd(finished_toy):
    return trained_herd(finished_toy.plan, finished_toy.state, 1)


@pytest.fixture(scope="module")
def saved(herd, tmp_path_factory):
    directory = tmp_path_factory.mktemp("herd")
    herd.save(directory)
    return directory


@pytest.fixture(scope="module")
def locomotion_run(tmp_path_factory, locomotion_herd):
    """A directory as `tamherd run` leaves it, with the herds of seeds 0 and 2."""
    directory = tmp_path_factory.mktemp("run")
    for seed in (0, 2):
        dataclasses.replace(locomotion_herd, seed=seed).save(directory / "herd" / f"seed-{seed}")
    return directory


def equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# A herd in the hand ---------------------------------------------------------------------------------------------------


def test_a_herd_gives_each_task_to_the_member_that_trained_on_it(herd):
    for index, name in enumerate(herd.task_set.task_names):
        assignment = herd.assign(jax.random.key(index), name)
        assert herd.member_tasks[assignment.member, index] > 0
        assert assignment.distances.shape == (2,)
        assert assignment.member == int(np.argmin(assignment.distances))
        first, second = np.sort(np.sqrt(assignment.distances))
        np.testing.assert_allclose(assignment.margin, second - first, rtol=1e-4)
        np.testing.assert_allclose(assignment.confidence, second / (first + second), rtol=1e-4)
        assert assignment.steps == 2 * 5


def test_a_task_is_a_name_or_the_task_itself(herd):
    task = jax.tree.map(lambda leaf: leaf[3], herd.task_set.tasks)
    a, b = herd.assign(jax.random.key(0), "b-fast"), herd.assign(jax.random.key(0), task)
    np.testing.assert_array_equal(a.distances, b.distances)
    with pytest.raises(ValueError, match="Point has no task 'c'; its tasks are a-slow"):
        herd.adapt(jax.random.key(0), "c")


def test_adapting_is_what_the_learner_does(herd):
    """The adapted policy, its exploration and its test episodes against the learner's own functions."""
    adapted = herd.adapt(jax.random.key(7), "b-slow")
    task = jax.tree.map(lambda leaf: jnp.asarray(leaf[2]), herd.task_set.tasks)
    explore_key, test_key = jax.random.split(jax.random.split(jax.random.key(7))[1])
    state = jax.tree.map(lambda leaf: leaf[adapted.member], herd.members)
    policy, before = herd.learner.adapt(explore_key, state, task, 2)
    after = collect_episodes(
        herd.learner.env, lambda obs, k: herd.learner.act(policy, (), obs, k)[0], task, test_key, 2, herd.learner.horizon
    )
    for ours, theirs in ((adapted.policy, policy), (adapted.before, before), (adapted.after, after)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), ours, theirs)
    assert adapted.steps == adapted.assignment.steps + 2 * 5
    obs, key = jnp.ones(1), jax.random.key(3)
    np.testing.assert_allclose(
        adapted.act(adapted.initial_carry(), obs, key)[0], herd.learner.act(policy, (), obs, key)[0], rtol=1e-5
    )


def test_the_assigned_member_adapts_and_another_where_told(herd):
    """Members by hand, one that goes right and one that goes left: 10 steps apart whatever the last bit of training.

    Mode b gives a reward of 8 a step for standing and up to 1 more or less for going left or right.
    """
    params = jax.tree.map(jnp.zeros_like, herd.members.params)
    nearest = herd.adapt(jax.random.key(0), "b-fast").member  # the probe alone decides
    bias = jnp.where(jnp.arange(2)[:, None] == nearest, -8.0, 8.0)  # left for the assigned one: mode b turns actions round
    params["params"]["mean"]["layer_1"]["bias"] = bias
    herd = dataclasses.replace(herd, members=dataclasses.replace(herd.members, params=params))
    right = herd.adapt(jax.random.key(0), "b-fast")
    wrong = herd.adapt(jax.random.key(0), "b-fast", member=1 - right.member)
    assert (right.member, wrong.member) == (nearest, 1 - nearest)
    np.testing.assert_allclose(right.after.returns, 5 * (8 + 1.0), atol=0.5)
    np.testing.assert_allclose(wrong.after.returns, 5 * (8 - 1.0), atol=0.5)
    with pytest.raises(ValueError, match="member must be 0 to 1, not 2"):
        herd.adapt(jax.random.key(0), "b-fast", member=2)


# On disk --------------------------------------------------------------------------------------------------------------


def test_a_loaded_herd_is_the_saved_one_to_the_bit(herd, saved):
    loaded = Herd.load(saved, env=PointMass(), task_set=point_tasks())
    equal_trees((loaded.probe, loaded.members, loaded.embedded), (herd.probe, herd.members, herd.embedded))
    assert (loaded.seed, loaded.size, loaded.episodes) == (1, 2, herd.episodes)
    assert loaded.learner.config == herd.learner.config
    np.testing.assert_array_equal(loaded.member_tasks, herd.member_tasks)
    ours, theirs = (h.adapt(jax.random.key(5), "a-fast") for h in (herd, loaded))
    equal_trees((ours.policy, ours.before, ours.after), (theirs.policy, theirs.before, theirs.after))
    assert not list(saved.glob("*.part"))


def test_a_run_saves_the_herds_that_are_sound(finished_toy, tmp_path, monkeypatch):
    write_herds(finished_toy.plan, finished_toy.state, tmp_path)
    assert sorted(path.name for path in (tmp_path / "herd").iterdir()) == ["seed-0", "seed-1"]
    failed = dataclasses.replace(finished_toy.state.clustered["trained"], failures={0: "diverged"})
    monkeypatch.setitem(finished_toy.state.clustered, "trained", failed)
    write_herds(finished_toy.plan, finished_toy.state, tmp_path / "again")
    assert [path.name for path in (tmp_path / "again" / "herd").iterdir()] == ["seed-1"]


def test_a_string_of_pearls_is_saved_without_its_replay(tmp_path):
    learner = PEARL(PointMass(), 4, 4, TINY)
    herd = untrained_herd(learner, point_tasks())
    herd.save(tmp_path)
    loaded = Herd.load(tmp_path, env=PointMass(), task_set=point_tasks())
    assert not any("full" in name or "encoder/data" in name for name in np.load(tmp_path / "arrays.npz").files)
    equal_trees(loaded.members, herd.members)
    assert isinstance(loaded.learner, PEARL)
    assert loaded.learner.config == TINY
    ours, theirs = (h.adapt(jax.random.key(5), "a-fast") for h in (herd, loaded))
    equal_trees(ours.policy, theirs.policy)


def test_a_herd_that_was_saved_with_what_only_training_needs_is_the_same_without(tmp_path):
    learner = PEARL(PointMass(), 4, 4, TINY)
    former, herd = (untrained_herd(learner, point_tasks(), kept) for kept in (without_replay, acting))
    former.save(tmp_path)
    loaded = Herd.load(tmp_path, env=PointMass(), task_set=point_tasks())
    equal_trees(loaded.probe, herd.probe)
    equal_trees(loaded.members, herd.members)
    assert len(jax.tree.leaves(former.members)) > 2 * len(jax.tree.leaves(herd.members))


def test_a_process_of_another_precision_says_why_it_refuses_a_herd(tmp_path, float64):
    learner = MAML(PointMass(), 4, MAMLConfig(episodes_per_task=2, horizon=3, hidden_sizes=(4,)))
    with jax.enable_x64(False):
        untrained_herd(learner, point_tasks()).save(tmp_path)
    why = r"not float64 .* \(this process has jax_enable_x64 on, the herd was trained without\)"
    with pytest.raises(ValueError, match=why):
        Herd.load(tmp_path, env=PointMass(), task_set=point_tasks())


def edit(directory, change):
    document = json.loads((directory / "herd.json").read_text())
    change(document)
    document.pop("checksum")
    (directory / "herd.json").write_text(json.dumps(sealed(document)))


def truncate(directory):
    data = (directory / "arrays.npz").read_bytes()
    (directory / "arrays.npz").write_bytes(data[: len(data) // 2])


def flip(directory):
    data = bytearray((directory / "arrays.npz").read_bytes())
    data[len(data) // 3] ^= 255
    (directory / "arrays.npz").write_bytes(bytes(data))


def replace(name, array):
    def damage(directory):
        with np.load(directory / "arrays.npz") as file:
            arrays = {key: file[key] for key in file.files}
        np.savez(directory / "arrays.npz", **(arrays | {name: array}))

    return damage


DAMAGE = {
    "no json": (lambda d: (d / "herd.json").unlink(), "holds no trained herd: herd.json is missing"),
    "no arrays": (lambda d: (d / "arrays.npz").unlink(), "holds no trained herd: arrays.npz is missing"),
    "half json": (lambda d: (d / "herd.json").write_text("{"), "herd.json is damaged"),
    "no object": (lambda d: (d / "herd.json").write_text("[1]"), "must hold an object"),
    "half arrays": (truncate, "arrays.npz is damaged"),
    "flipped bits": (flip, "damaged"),
    "other numbers": (replace("embedded/gram", np.zeros((8, 8), np.float32)), "embedded/gram is not what was written"),
    "pickle": (replace("embedded/gram", np.array([{}], object)), "arrays.npz is damaged"),
    "another array": (replace("more", np.zeros(1)), "not of the same herd"),
    "format": (lambda d: edit(d, lambda j: j.update(format=99)), "not of this version"),
    "no learner": (lambda d: edit(d, lambda j: j.pop("learner")), "herd.json is damaged"),
    "other learner": (lambda d: edit(d, lambda j: j["learner"].update(name="os.system")), "'os.system' is none of maml"),
    "other network": (
        lambda d: edit(d, lambda j: j["learner"]["config"].update(hidden_sizes=[4, 4])),
        "is missing or too many: its learner is another than here",
    ),
    "other width": (lambda d: edit(d, lambda j: j["learner"]["config"].update(hidden_sizes=[4])), "not float32"),
    "unknown setting": (lambda d: edit(d, lambda j: j["learner"]["config"].update(x=1)), "has a field that is not known: x"),
    "other tasks": (lambda d: edit(d, lambda j: j["task_set"].update(version=2)), "trained on Point version 2, not Point 1"),
    "labels": (lambda d: edit(d, lambda j: j.update(labels=[5] * 8)), "labels must be at least one, each of 2 members"),
    "members": (lambda d: edit(d, lambda j: j.update(members="two")), "herd.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_in_one_line(saved, tmp_path, kind):
    for name in ("herd.json", "arrays.npz"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    damage, words = DAMAGE[kind]
    damage(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        Herd.load(tmp_path, env=PointMass(), task_set=point_tasks())
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_what_a_file_cannot_name_must_be_handed_over(saved, herd, tmp_path):
    with pytest.raises(ValueError, match=r"its environment PointMass is not the package's: .*env="):
        Herd.load(saved)
    with pytest.raises(ValueError, match=r"its task set Point is not the package's: .*task_set="):
        Herd.load(saved, env=PointMass())

    class Mine(MAML):
        pass

    mine = dataclasses.replace(herd, learner=Mine(PointMass(), 4))
    with pytest.raises(ValueError, match="a herd of Mine cannot be saved: only maml, pearl"):
        mine.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loaded_herd_has_the_environment_it_was_trained_in(locomotion_herd, tmp_path):
    env = Locomotion("mujoco", 5.0, variants=1, walker_frame_skip=8)
    dataclasses.replace(locomotion_herd, learner=MAML(env, 4, locomotion_herd.learner.config)).save(tmp_path)
    loaded = Herd.load(tmp_path).learner.env
    assert (loaded.backend, loaded.expected_action_scale, loaded.variants, loaded.walker_frame_skip) == ("mujoco", 5.0, 1, 8)
    assert [round(loaded.terms(body).dt, 6) for body in (0, 1)] == [0.05, 0.016]


# On the command line --------------------------------------------------------------------------------------------------


def test_evaluate_prints_what_was_done(locomotion_run, capsys, monkeypatch):
    done = []
    adapt = Herd.adapt
    monkeypatch.setattr(Herd, "adapt", lambda herd, key, task: done.append((herd, adapt(herd, key, task))) or done[-1][1])
    cli.main(["evaluate", str(locomotion_run), "--task", "walker-backward", "--seed", "2", "--episodes", "3"])
    printed = capsys.readouterr().out
    ((herd, adapted),) = done
    assert isinstance(herd.learner.env, Locomotion)
    assert (herd.learner.env.backend, herd.learner.env.expected_action_scale) == ("mujoco", 1.0)
    assert herd.member_tasks[adapted.member].max() == 0.5
    for words in (
        "walker-backward (ML2 version 1), herd of seed 2",
        "1 episodes, 6 steps",
        f"to member {adapted.member} of 2, trained on",
        f"confidence {adapted.assignment.confidence:.3f}",
        f"before    return {float(adapted.before.returns.mean()):.1f} over 1 exploration",
        f"after     return {float(adapted.after.returns.mean()):.1f} over 3 test",
        "12 to assign and adapt, 18 to test",
    ):
        assert words in printed


def test_evaluate_measures_other_numbers_of_shots(locomotion_run, capsys):
    command = ["evaluate", str(locomotion_run), "--task", "walker-backward", "--seed", "2"]
    cli.main([*command, "--test-tasks", "ml2", "--shots", "0,1,2"])
    lines = capsys.readouterr().out.splitlines()
    shots = [line for line in lines if line.startswith("shots")]
    assert [line.split()[1] for line in shots] == ["0", "1", "2"]
    (usual,) = [line for line in lines if line.startswith("after")]
    assert shots[1].partition("return")[2] == usual.partition("return")[2], "the run's herd explores for one episode"
    assert len({line.partition("return")[2] for line in shots}) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--task", "walker-forward"], "nowhere holds no trained herd; tamherd run leaves one"),
        (["RUN", "--task", "ant"], "ML2 has no task 'ant'; its tasks are cheetah-forward"),
        (["RUN", "--task", "walker-forward", "--seed", "1"], "holds no trained herd of seed 1, only of 0, 2"),
        (["RUN/herd/seed-2", "--task", "walker-forward", "--seed", "0"], "holds the herd of seed 2, not 0"),
        (["RUN", "--task", "walker-forward", "--episodes", "0"], "episodes must be at least 1, not 0"),
        (["RUN", "--task", "walker-forward", "--shots", "1,x"], "shots are numbers of episodes from 0 to 1000"),
        (["RUN", "--task", "walker-0.5", "--test-tasks", "ml2-vel-between"], "of another kind than those trained on"),
        (["RUN", "--task", "walker-forward", "--test-tasks", "ml5"], "invalid choice 'ml5'"),
        (["RUN"], "--task"),
        (["--task", "walker-forward"], "HERD"),
    ],
)
def test_mistakes_get_one_line_and_status_two(locomotion_run, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *(argument.replace("RUN", str(locomotion_run)) for argument in arguments)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("tamherd: ")
    assert error.count("\n") == 1
    assert words in error
