import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_mass import PointMass, point_tasks
from toy import toy_config, toy_experiment
from toy_cli import put_toy

from tamherd_jax import cli
from tamherd_jax.codec import sealed
from tamherd_jax.experiments import lifecycle
from tamherd_jax.experiments.checkpoints import Checkpoints
from tamherd_jax.experiments.runner import Experiment
from tamherd_jax.experiments.snapshot import apply_snapshot, join_snapshots, take_snapshot
from tamherd_jax.experiments.state import RunState
from tamherd_jax.experiments.writing import write_results
from tamherd_jax.maml import MAMLConfig, TRPOConfig

TESTS = Path(__file__).parent


def parts(experiment):
    return experiment.plan, experiment.state


@pytest.fixture
def cache(finished_toy, toy_programs, tmp_path):
    """A function that gives each process compiled programs of its own: one that is killed may leave half a file."""
    copies = itertools.count()
    return lambda: shutil.copytree(toy_programs, tmp_path / f"programs-{next(copies)}")


def toy_run(out, cache, *arguments, **options):
    """`toy_run.py` as a process of its own."""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TESTS / "toy_run.py"), str(out), "--cache", str(cache), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


def finish(process):
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert error == ""
    return output


@pytest.fixture(scope="module")
def uninterrupted(finished_toy, tmp_path_factory):
    """Results of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    write_results(finished_toy.plan, finished_toy.state, out)
    return out


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """Checkpoints 5, 6 and 7 of a run that stopped in the herd's third epoch."""
    out = tmp_path_factory.mktemp("half")
    experiment, checkpoints = toy_experiment(), Checkpoints(out / "checkpoints", every=0)
    for _, _ in zip(range(7), experiment.run(), strict=False):
        checkpoints.offer(experiment.plan, experiment.state)
    checkpoints.close()
    return out


@pytest.fixture
def copied(halfway, tmp_path):
    return Path(shutil.copytree(halfway, tmp_path / "run"))


def assert_same_results(directory, reference):
    assert (directory / "results.json").read_bytes() == (reference / "results.json").read_bytes()
    for name in ("curves.npz", "embeddings.npz"):
        ours, theirs = np.load(directory / name), np.load(reference / name)
        assert set(ours.files) == set(theirs.files)
        for key in ours.files:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def assert_close_results(directory, reference):
    """As on another number of devices: the same bits but for means of returns, which XLA may sum in another order."""
    ours, theirs = np.load(directory / "curves.npz"), np.load(reference / "curves.npz")
    assert set(ours.files) == set(theirs.files)
    for key in theirs.files:
        if key.endswith("/after"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-5, err_msg=key)
        else:  # what training did and what it saw
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


# Killed and resumed --------------------------------------------------------------------------------------------------


def kill_after(process, lines, seconds):
    """Kill -9 some time after the n-th event; whether there was something left to kill."""
    for _ in range(lines):
        if not process.stdout.readline():
            break
    time.sleep(seconds)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(uninterrupted, cache, tmp_path):
    out = tmp_path / "run"
    draw = random.Random(4)
    kills = 0
    for _ in range(3):
        kills += kill_after(toy_run(out, cache()), draw.randint(2, 6), draw.uniform(0.0, 0.1))
    assert kills >= 2
    output = finish(toy_run(out, cache()))
    assert "from None" not in output  # the last life did go on from a checkpoint
    assert_same_results(out, uninterrupted)


def test_killed_while_a_checkpoint_is_written(uninterrupted, cache, tmp_path):
    out, killed = tmp_path / "run", 0
    for _ in range(2):
        process = toy_run(out, cache())
        while process.poll() is None:
            if list((out / "checkpoints").glob("*.orbax-checkpoint-tmp")):
                process.kill()
            time.sleep(1e-3)  # the process needs the core more
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 2
    finish(toy_run(out, cache()))
    assert not list((out / "checkpoints").glob("*tmp*"))  # what the killed left half written is cleared
    assert_same_results(out, uninterrupted)


def test_resumed_on_another_number_of_devices_trains_to_the_same_bits(uninterrupted, copied, cache):
    assert "from 7" in finish(toy_run(copied, cache(), "--devices", 2))
    assert_close_results(copied, uninterrupted)


def test_resumed_at_every_epoch_in_the_same_process(uninterrupted, tmp_path):
    """Every stage's first and last epoch is a moment to stop at."""
    total = 3 + 1 + 5 + 5
    for step in range(1, total + 1):
        experiment, checkpoints = toy_experiment(), Checkpoints(tmp_path / "checkpoints", every=0)
        assert checkpoints.restore(experiment.plan, experiment.state) == (step - 1 or None)
        next(experiment.run())
        checkpoints.offer(experiment.plan, experiment.state)
        checkpoints.close()
    assert experiment.plan.work(experiment.state.done) == 0
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"12", "13", "14"}
    write_results(experiment.plan, experiment.state, tmp_path)
    assert_same_results(tmp_path, uninterrupted)


# Refused -------------------------------------------------------------------------------------------------------------


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def refusal(directory, experiment):
    """The line with which a checkpoint is refused; nothing on the disk or in the experiment may change."""
    before = contents(directory)
    checkpoints = Checkpoints(directory / "checkpoints")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (callers look at the message)
        checkpoints.restore(experiment.plan, experiment.state)
    checkpoints.close()
    assert contents(directory) == before
    assert experiment.state == RunState()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "empty metadata", "no metadata", "cut metadata"])
def test_a_damaged_checkpoint_is_refused_in_one_line(copied, damage):
    newest = copied / "checkpoints" / "7"
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    metadata = newest / "meta" / "metadata"
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 0xFF
        data.write_bytes(content)
    elif damage == "missing":
        data.unlink()
    elif damage == "empty metadata":
        metadata.write_text("{}")
    elif damage == "no metadata":
        metadata.unlink()
    else:
        metadata.write_text(metadata.read_text()[:200])
    line = refusal(copied, toy_experiment())
    assert "7 is damaged" in line
    if "metadata" not in damage:
        assert line.endswith("delete it to go on from 6")


def test_after_deleting_the_damaged_one_the_run_goes_on_from_the_one_before(copied, cache, uninterrupted):
    shutil.rmtree(copied / "checkpoints" / "7")
    assert "from 6" in finish(toy_run(copied, cache()))
    assert_same_results(copied, uninterrupted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": 3}, "another configuration: seeds is 2, not 3"),
        ({"first_seed": 1}, "another configuration: first_seed is 0, not 1"),
        ({"member_epochs": 6, "single_epochs": 9}, "another configuration: member_epochs is 5, not 6"),
        ({"maml": MAMLConfig(hidden_sizes=(9,))}, "another configuration: maml is"),
    ],
)
def test_another_configuration_is_refused(copied, change, words):
    assert words in refusal(copied, toy_experiment(toy_config(**change)))


def test_another_shape_tree_or_type_is_refused_before_anything_is_read(copied, monkeypatch):
    """The same configuration, but a learner of another version of the code."""

    def changed(change):
        experiment = toy_experiment(own_programs=True)
        init = experiment.plan.learner.init
        monkeypatch.setattr(experiment.plan.learner, "init", lambda key: change(init(key)))
        return experiment

    assert "is float32" in refusal(copied, changed(lambda s: jax.tree.map(lambda x: jnp.stack([x, x]), s)))
    assert "float16" in refusal(copied, changed(lambda s: jax.tree.map(lambda x: x.astype(jnp.float16), s)))
    assert "another tree" in refusal(copied, changed(lambda s: {"all": s}))
    newest = max((copied / "checkpoints").iterdir(), key=lambda p: int(p.name))
    document = json.loads((newest / "meta" / "metadata").read_text())
    document["version"] = "0.0.0"
    (newest / "meta" / "metadata").write_text(json.dumps(document))
    assert "is damaged: it is not what was written" in refusal(copied, toy_experiment())
    del document["checksum"]
    (newest / "meta" / "metadata").write_text(json.dumps(sealed(document)))
    experiment, checkpoints = toy_experiment(), Checkpoints(copied / "checkpoints")
    assert checkpoints.restore(experiment.plan, experiment.state) == 7  # another version of the package is no other run
    assert checkpoints.written_by == "0.0.0"
    checkpoints.close()


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(*parts(toy_experiment())) is None
    checkpoints.close()


# Disks and trees -----------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_no_earlier_checkpoint_and_training_goes_on(uninterrupted, tmp_path, monkeypatch):
    lines = []
    experiment, checkpoints = toy_experiment(), Checkpoints(tmp_path / "checkpoints", every=0, warn=lines.append)
    for step, _ in enumerate(experiment.run(), 1):
        if step in (5, 6):  # the disk is full for a while
            with monkeypatch.context() as patch:
                full = OSError(28, "No space left on device")
                patch.setattr(type(checkpoints._manager), "save", lambda *a, full=full, **k: (_ for _ in ()).throw(full))
                checkpoints.offer(experiment.plan, experiment.state)
            assert checkpoints.latest() == 4
        else:
            checkpoints.offer(experiment.plan, experiment.state)
    checkpoints.close()
    (line,) = lines  # told once, until one succeeds again
    assert line.startswith(
        "checkpoint 5 could not be written, earlier ones stay and training goes on: [Errno 28] No space left"
    )
    assert checkpoints.latest() == 14
    write_results(experiment.plan, experiment.state, tmp_path)
    assert_same_results(tmp_path, uninterrupted)


def test_callbacks_into_closed_event_loops_are_not_told(tmp_path, monkeypatch):
    """TensorStore's threads make them after a failed write, many at once, in one of two ways."""
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: told.append(error))
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    Checkpoints(tmp_path / "checkpoints").close()
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("of a user's")
    for error in (closed, other):
        sys.excepthook(RuntimeError, error, None)
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert told == [other, other]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root to mount a small disk")
def test_a_really_full_disk(halfway, tmp_path, capfd):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("no tmpfs here")
    try:
        shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
        before = {name for name in contents(tmp_path) if name.startswith("checkpoints/7/")}
        lines = []
        experiment, checkpoints = toy_experiment(), Checkpoints(tmp_path / "checkpoints", every=0, warn=lines.append)
        assert checkpoints.restore(experiment.plan, experiment.state) == 7
        free = shutil.disk_usage(tmp_path).free
        (tmp_path / "thesis").write_bytes(b"x" * (free - 40_000))
        next(experiment.run())
        checkpoints.offer(experiment.plan, experiment.state)
        checkpoints.close()
        assert len(lines) == 1
        assert "\n" not in lines[0]
        assert before <= set(contents(tmp_path))
        again = Checkpoints(tmp_path / "checkpoints")
        assert again.restore(*parts(toy_experiment())) == 7
        (tmp_path / "thesis").unlink()
        again.save(*parts(experiment))
        again.close()
        assert again.latest() == 8
        assert "Traceback" not in capfd.readouterr().err
    finally:
        subprocess.run(["umount", str(tmp_path)], check=False)


def test_random_keys_and_empty_leaves_in_a_state_survive(tmp_path):
    """What another learner may carry: its own keys, counters, a buffer that is empty."""

    def extended():
        experiment = toy_experiment(own_programs=True)
        init, train = experiment.plan.learner.init, type(experiment.plan.learner).train_epoch

        def wrap(state, key):
            return state, {"key": key, "count": jnp.int32(7), "none": jnp.zeros((0, 3)), "flag": jnp.bool_(1)}

        def train_epoch(key, state, *rest):
            new, metrics = train(experiment.plan.learner, key, state[0], *rest)
            return wrap(new, key), metrics

        experiment.plan.learner.init = lambda key: wrap(init(key), key)
        experiment.plan.learner.train_epoch = train_epoch
        adapt = experiment.plan.learner.adapt
        experiment.plan.learner.adapt = lambda k, s, *rest: adapt(k, s[0], *rest)
        return experiment

    experiment, checkpoints = extended(), Checkpoints(tmp_path / "checkpoints", every=0)
    next(experiment.run())
    checkpoints.offer(experiment.plan, experiment.state)
    checkpoints.close()
    again = extended()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(again.plan, again.state) == 1
    checkpoints.close()
    ours, theirs = experiment.state.learners["single"][1], again.state.learners["single"][1]
    assert jax.random.key_data(ours["key"]).tolist() == jax.random.key_data(theirs["key"]).tolist()
    assert theirs["key"].dtype == ours["key"].dtype
    assert theirs["none"].shape == (2, 1, 0, 3)
    assert theirs["flag"].dtype == bool
    assert theirs["count"].tolist() == [[7], [7]]
    next(again.run())


def test_snapshots_of_shares_join_to_that_of_all_seeds(uninterrupted, tmp_path):
    shares = []
    for seeds in ([0], [1]):
        experiment = Experiment(toy_config(), PointMass(), point_tasks(), seeds=seeds)
        list(experiment.run())
        shares.append(take_snapshot(*parts(experiment), learners=False))
    whole = toy_experiment()
    apply_snapshot(*parts(whole), join_snapshots(shares))
    write_results(*parts(whole), tmp_path)
    assert_same_results(tmp_path, uninterrupted)


# The command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_cli(monkeypatch):
    """The command line with the toy instead of ML2."""
    put_toy(monkeypatch.setattr, monkeypatch.setitem)

    def run(*arguments):
        command = ["run", "--compilation-cache", "off", *map(str, arguments)]
        try:
            cli.main(command)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


class SignalAfter:
    """Sends this process a signal after the n-th event."""

    def __init__(self, monkeypatch, number, events):
        from tamherd_jax.reporting.terminal import ProgressDisplay

        show, left = ProgressDisplay.show, [events]

        def show_and_send(display, event):
            show(display, event)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(ProgressDisplay, "show", show_and_send)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_and_says_how_to_go_on(toy_cli, monkeypatch, capsys, uninterrupted, tmp_path, number, status):
    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        SignalAfter(patch, number, 6)
        assert toy_cli("--out", out) == status
    captured = capsys.readouterr()
    assert captured.err == (f"tamherd: interrupted after herd and oracle 2/5; go on with: tamherd run --resume --out '{out}'\n")
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["6"]
    assert not (out / "results.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert toy_cli("--resume", "--out", out) == 0
    assert "going on from checkpoint 6" in " ".join(capsys.readouterr().out.split())
    stages = [json.loads(line)["stage"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert stages == ["probe"] * 3 + ["embeddings"] + ["herd and oracle"] * 5 + ["single"] * 5
    ours, theirs = (json.loads((d / "results.json").read_text()) for d in (out, uninterrupted))
    assert ours == theirs
    # A finished run that is resumed just reports.
    before = contents(out)
    assert toy_cli("--resume", "--out", out) == 0
    assert "This run was finished" in capsys.readouterr().out
    assert {k: v for k, v in contents(out).items() if "figures" not in k} == {
        k: v for k, v in before.items() if "figures" not in k
    }


def test_what_cannot_be_resumed_gets_one_line(toy_cli, capsys, copied):
    toy_config().write(copied)
    cases = [
        (["--resume"], "--resume needs --out DIR"),
        (["--resume", "--out", copied / "none"], "holds no run: config.json is missing"),
        (["--resume", "--out", copied, "--seeds", 5], "--seeds 5 contradicts"),
        (["--resume", "--out", copied, "--epochs", 9], "--epochs 9 contradicts"),
        (["--resume", "--out", copied, "--walker-frame-skip", 8], "--walker-frame-skip 8 contradicts"),
        (["--out", copied], "or go on with the run in it with --resume"),
        (["--out", copied / "x", "--devices", 0], "devices must be at least 1, not 0"),
        (["--out", copied / "x", "--devices", 99], "99 devices were asked for, but here are"),
        (["--out", copied / "x", "--checkpoint-every", -1], "must be a number of seconds from 0"),
        (["--out", copied / "x", "--learners-per-call", 0], "learners per call must be at least 1"),
        (["--out", copied / "x", "--processes", 2], "need a coordinator"),
        (["--out", copied / "x", "--coordinator", "localhost:1", "--processes", 2], "needs the number of processes"),
    ]
    before = contents(copied)
    for arguments, words in cases:
        assert toy_cli(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error
        assert contents(copied) == before
    settings = toy_config().to_json()
    document = json.loads((copied / "config.json").read_text())
    changed = (settings | {"seeds": "2"}, settings | {"colour": 1}, document | {"seeds": 3}, {"seeds": 2})
    for damage in (b"{", b"[]", b"\xff", b"[" * 100_000, *(json.dumps(one).encode() for one in changed)):
        (copied / "config.json").write_bytes(damage)
        assert toy_cli("--resume", "--out", copied) == 2
        assert "config.json cannot be read" in capsys.readouterr().err
    toy_config(seeds=3).write(copied)
    assert toy_cli("--resume", "--out", copied) == 2
    assert "another configuration: seeds is 2, not 3" in capsys.readouterr().err


def test_a_full_disk_at_the_end_gets_one_line_and_the_run_can_go_on(toy_cli, monkeypatch, capsys, tmp_path):
    from tamherd_jax.experiments import writing

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_results", full)
        assert toy_cli("--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert "No space left on device; make room, then go on with: tamherd run --resume --out" in error
    assert toy_cli("--out", tmp_path, "--resume") == 0
    assert (tmp_path / "results.json").exists()


def test_configurations_survive_json():
    from tamherd_jax.experiments.config import ExperimentConfig
    from tamherd_jax.experiments.presets import PRESETS

    learner = MAMLConfig(inner_loss="ratio", entropy_coefficient=0.01, trpo=TRPOConfig(final_max_kl=0.001))
    for config in (*PRESETS.values(), toy_config(maml=learner)):
        assert ExperimentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


# Processes -----------------------------------------------------------------------------------------------------------


def toy_command(out, cache, *arguments):
    """The command line with the toy, as a process."""
    command = [sys.executable, str(TESTS / "toy_cli.py"), "run", "--out", str(out), "--compilation-cache", str(cache)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], **pipes, env={**os.environ, "PYTHONWARNINGS": "error"})


def test_two_processes_that_share_three_seeds_give_the_results_of_one(cache, tmp_path):
    """Two real processes on loopback, with unequal shares; each keeps checkpoints of its own."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    one = toy_experiment(seeds=3)
    list(one.run())
    (tmp_path / "one").mkdir()
    write_results(*parts(one), tmp_path / "one")
    together = tmp_path / "two"
    shared = ["--seeds", 3, "--devices", 1, "--coordinator", f"localhost:{port}", "--processes", 2]
    processes = [toy_command(together, cache(), *shared, "--process-id", i) for i in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert_same_results(together, tmp_path / "one")
    assert {p.name for p in (together / "checkpoints").iterdir()} == {"process-0", "process-1"}


def test_the_second_process_makes_no_directory_before_the_first_has_found_it_empty(monkeypatch, tmp_path):
    """Process 0 looks and makes it; both meet after that, and here process 1 has nobody to meet."""
    put_toy(monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out, found = tmp_path / "run", []

    @contextlib.contextmanager
    def meeting():
        yield
        found.append(out.exists())
        raise ValueError("process 0 never came")

    monkeypatch.setattr(lifecycle, "barrier", meeting)
    with pytest.raises(SystemExit):
        cli.main(["run", "--seeds", "2", "--out", str(out), "--compilation-cache", "off"])
    assert found == [False]


def test_the_command_on_two_devices_killed_and_resumed(uninterrupted, cache, tmp_path):
    out, options = tmp_path / "run", ["--devices", 2, "--checkpoint-every", 0]
    assert kill_after(toy_command(out, cache(), *options), 7, 0.0)
    output = finish(toy_command(out, cache(), *options, "--resume"))
    assert "going on from checkpoint" in " ".join(output.split())
    assert_close_results(out, uninterrupted)


@pytest.mark.slow
def test_the_real_command_killed_and_resumed_gives_the_same_bytes(quick_run, resumed_run):
    """Three processes: one that nothing disturbed, one killed while the probe trained, one that went on from there."""
    done = resumed_run.process
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "going on from checkpoint" in " ".join(done.stdout.split())
    assert_same_results(resumed_run.directory, quick_run.directory)
