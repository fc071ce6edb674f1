"""Replay rings: order, wrap, fullness, isolation of tasks, uniformity, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from tamherd_jax.pearl import replay

EXAMPLE = {"x": jnp.zeros(()), "y": jnp.zeros(2)}


def rows(values):
    values = jnp.asarray(values, jnp.float32)
    return {"x": values, "y": jnp.stack([values, -values], 1)}


def contents(buffer, task):
    """What a task's ring holds, oldest first."""
    size, cursor = int(buffer.size[task]), int(buffer.cursor[task])
    ring = np.asarray(buffer.experience["x"][task])
    order = (cursor - size + np.arange(size)) % ring.size
    np.testing.assert_array_equal(buffer.experience["y"][task, order, 1], -ring[order])
    return ring[order].tolist()


def filled(values, tasks, capacity=5, valid=None, count=3):
    buffer = replay.init(EXAMPLE, count, capacity)
    valid = jnp.ones(len(values)) if valid is None else jnp.asarray(valid, jnp.float32)
    return replay.add(buffer, rows(values), jnp.asarray(tasks), valid)


def test_transitions_go_to_their_task_in_order():
    buffer = filled([1, 2, 3, 4, 5], [0, 2, 0, 2, 0])
    assert [contents(buffer, n) for n in range(3)] == [[1, 3, 5], [], [2, 4]]
    assert replay.filled(buffer).tolist() == [True, False, True]


def test_ring_wraps_and_never_holds_more_than_its_capacity():
    buffer = filled([1, 2, 3], [0, 0, 0])
    for start in (4, 7, 10):
        buffer = replay.add(buffer, rows([start, start + 1, start + 2]), jnp.zeros(3, int), jnp.ones(3))
    assert contents(buffer, 0) == [8, 9, 10, 11, 12]
    assert buffer.size.tolist() == [5, 0, 0]


def test_more_transitions_at_once_than_the_ring_holds_leave_the_last():
    buffer = filled(range(1, 13), [0] * 12)
    assert contents(buffer, 0) == [8, 9, 10, 11, 12]


def test_invalid_transitions_leave_no_gap():
    buffer = filled([1, np.nan, 3, np.nan, 5], [0, 0, 0, 1, 1], valid=[1, 0, 1, 0, 1])
    assert contents(buffer, 0) == [1, 3]
    assert contents(buffer, 1) == [5]
    assert jnp.isfinite(buffer.experience["x"]).all()


def test_trimmed_and_widened_rings_draw_and_go_on_as_before():
    """Of two learners: rings that wrapped, that are part full and that were cleared after they held more."""
    part, wrapped = filled([1, 2, 3], [0, 0, 1], capacity=6), filled(range(1, 9), [2] * 8, capacity=6)
    cleared = replay.clear(filled([1, 2, 3, 4, 5], [0, 0, 0, 0, 1], capacity=6), jnp.array([True, False, False]))
    for buffers, held in (((part, cleared), 2), ((part, wrapped), 6), ((replay.init(EXAMPLE, 3, 6),) * 2, 0)):
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *buffers)
        trimmed = replay.trim(batch)
        assert replay.capacity_of(trimmed) == held
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(trimmed))
        again = replay.widen(jax.tree.map(jnp.asarray, trimmed), replay.capacity_of(batch))
        for index, buffer in enumerate(buffers):
            ours = jax.tree.map(lambda leaf, index=index: leaf[index], again)
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), ours, buffer)
            ours, theirs = (replay.add(ring, rows([7, 8, 9]), jnp.array([2, 0, 2]), jnp.ones(3)) for ring in (ours, buffer))
            assert [contents(ours, n) for n in range(3)] == [contents(theirs, n) for n in range(3)]
            drawn = (replay.sample(ring, jax.random.key(0), jnp.int32(2), 20) for ring in (ours, theirs))
            jax.tree.map(np.testing.assert_array_equal, *drawn)


def test_clear_forgets_the_marked_tasks_only():
    buffer = replay.clear(filled([1, 2, 3], [0, 1, 1]), jnp.array([False, True, False]))
    assert [contents(buffer, n) for n in range(3)] == [[1], [], []]
    buffer = replay.add(buffer, rows([7]), jnp.array([1]), jnp.ones(1))
    assert contents(buffer, 1) == [7]


def test_adding_equals_a_plain_loop_of_lists():
    rng = np.random.default_rng(0)
    buffer, lists = replay.init(EXAMPLE, 4, 7), [[] for _ in range(4)]
    add = jax.jit(replay.add)
    for step in range(20):
        values, tasks = rng.normal(size=11).astype(np.float32), rng.integers(0, 4, 11)
        valid = rng.random(11) < 0.7
        buffer = add(buffer, rows(values), jnp.asarray(tasks), jnp.asarray(valid, jnp.float32))
        for value, task, keep in zip(values, tasks, valid, strict=True):
            lists[task] = (lists[task] + [value] * bool(keep))[-7:]
        assert [contents(buffer, n) for n in range(4)] == lists, step


def test_sampling_stays_within_the_task_and_what_it_holds():
    buffer = filled([1, 2, 3, 40, 50], [0, 0, 0, 1, 1])
    draw = jax.vmap(replay.sample, in_axes=(None, 0, 0, None))
    drawn = draw(buffer, jax.random.split(jax.random.key(0)), jnp.array([0, 1]), 200)
    assert drawn["x"].shape == (2, 200)
    assert set(drawn["x"][0].tolist()) == {1, 2, 3}
    assert set(drawn["x"][1].tolist()) == {40, 50}


@pytest.mark.parametrize("added", [23, 37, 100])
def test_sampling_is_uniform(added):
    buffer = replay.init(EXAMPLE, 2, 37)
    buffer = replay.add(buffer, rows(range(added)), jnp.ones(added, int), jnp.ones(added))
    drawn = replay.sample(buffer, jax.random.key(1), jnp.array(1), 40_000)["x"]
    held = np.asarray(contents(buffer, 1))
    counts = np.array([(np.asarray(drawn) == value).sum() for value in held])
    assert counts.sum() == 40_000
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("added", [24, 60])
def test_a_draw_from_few_episodes_holds_whole_episodes_and_all_alike_often(added):
    horizon, capacity = 6, 36
    buffer = replay.init(EXAMPLE, 2, capacity)
    buffer = replay.add(buffer, rows(range(added)), jnp.ones(added, int), jnp.ones(added))

    def draw(key, episodes):
        return replay.sample_episodes(buffer, key, jnp.array(1), 40, episodes, horizon)["x"]

    key = jax.random.key(2)
    np.testing.assert_array_equal(draw(key, 0), replay.sample(buffer, key, jnp.array(1), 40)["x"])
    keys = jax.random.split(jax.random.key(1), 600)
    held = np.asarray(contents(buffer, 1))
    for episodes in (1, 2):
        drawn = np.asarray(jax.vmap(lambda key, episodes=episodes: draw(key, episodes))(keys))
        assert max(len(set(row // horizon)) for row in drawn) == episodes
        assert min(len(set(row // horizon)) for row in drawn) == 1
    first = np.asarray(jax.vmap(lambda key: draw(key, 1)[0])(keys))
    counts = np.array([(first == value).sum() for value in held])
    assert counts.sum() == 600, "nothing but what the ring holds"
    assert chisquare(counts).pvalue > 0.01


def test_bytes_are_what_is_allocated():
    buffer = replay.init(EXAMPLE, 3, 50)
    assert replay.buffer_bytes(jax.eval_shape(lambda: EXAMPLE), 3, 50) == sum(leaf.nbytes for leaf in jax.tree.leaves(buffer))


def test_memory_check_refuses_in_one_line():
    replay.check_memory(2**30, 2**30, "x")
    replay.check_memory(2**60, None, "x")
    with pytest.raises(ValueError, match=r"need 2\.0 GiB but the device has 1\.0 GiB: lower it") as error:
        replay.check_memory(2**31, 2**30, "lower it")
    assert "\n" not in str(error.value)


def test_this_machine_tells_its_memory():
    assert replay.device_memory() > 2**28
