"""A meta-learner whose policy carries hidden state goes through training, Algorithms 1 and 2 and a herd like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrent import Recall, RecurrentLearner, Weights, recall_tasks

from tamherd_jax.herd.algorithm import assign_tasks, embed_training_tasks, meta_test, stratified_tasks
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig

PER_STEP = 0.3**2  # what the policy's own noise costs


@pytest.fixture(scope="module")
def learner():
    return RecurrentLearner(Recall())


@pytest.fixture(scope="module")
def members(learner):
    """One learner trained on each task, leaves `[2, ...]`."""
    tasks = jnp.asarray(recall_tasks().tasks)

    def train(key, weights):
        def epoch(state, k):
            return learner.train_epoch(k, state, tasks, weights)

        return jax.lax.scan(epoch, learner.init(key), jax.random.split(key, 300))[0]

    return jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 2), jnp.eye(2))


def test_memory_is_what_recalls_the_cue(learner, members):
    """Each member answers the cue to its last step; the same weights without memory score as badly as saying nothing."""
    tasks = jnp.asarray(recall_tasks().tasks)
    test = jax.jit(lambda states: meta_test(learner, jax.random.key(1), states, jnp.arange(2), tasks, 2, 200).after)
    remembering = test(members)
    forgetting = test(members.replace(keep=jnp.zeros(2)))
    silent = -(learner.horizon) * (1 + PER_STEP)
    assert (remembering > 0.4 * silent).all()
    assert (forgetting < 0.7 * silent).all()


def test_recorded_memory_lets_any_step_be_evaluated_alone(learner):
    """`distribution` at a recorded step is the distribution that the step's action came from."""
    policy = Weights(jnp.asarray(0.9), jnp.asarray(0.7), jnp.asarray(1.3))
    _, episodes = learner.probe(jax.random.key(2), policy, jnp.asarray(1.0), 3)
    assert episodes.obs.shape == (3, learner.horizon, 2)
    mean, _ = learner.distribution(policy, episodes.obs)
    cue = np.asarray(episodes.obs[:, 0, 0])
    wanted = 1.3 * 0.7 * cue[:, None] * 0.9 ** np.arange(learner.horizon)
    np.testing.assert_allclose(mean[..., 0], wanted, rtol=1e-5)


def test_algorithms_1_and_2_run_with_memory(learner, members):
    """The probe's episodes embed tasks, each test task is assigned to a member, and that member is tested in it."""
    task_set, embedding = recall_tasks(), Embedding(EmbeddingConfig(kind="fisher", reward="none"))
    probe = Weights(jnp.asarray(0.9), jnp.asarray(0.5), jnp.asarray(0.5))
    tasks, index = stratified_tasks(task_set.tasks, 4)
    embedded = jax.jit(lambda k: embed_training_tasks(learner, embedding, k, probe, tasks, 8))(jax.random.key(3))
    assert np.isfinite(embedded.gram).all()
    membership = jnp.eye(2)[index]
    tests = jnp.asarray(task_set.tasks)

    @jax.jit
    def test(key):
        assign_key, test_key = jax.random.split(key)
        found, steps = assign_tasks(learner, embedding, assign_key, probe, embedded, membership, tests, 8)
        return found.nearest, steps, meta_test(learner, test_key, members, found.nearest, tests, 2, 2).after

    nearest, steps, after = test(jax.random.key(4))
    assert set(nearest.tolist()) <= {0, 1}
    assert int(steps) == 2 * 8 * learner.horizon
    assert np.isfinite(after).all()
