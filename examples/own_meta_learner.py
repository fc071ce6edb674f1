"""A meta-learner of one's own, an evolution strategy over linear policies, and a herd of it. It adapts by playing perturbed
policies and stepping towards those with the higher returns; its meta-parameters move to the mean of the adapted policies.

python examples/own_meta_learner.py [--epochs 30]
"""

import argparse

import jax
import jax.numpy as jnp
from own_environment import Puck, puck_tasks

from tamherd_jax.distributions import sample_gaussian
from tamherd_jax.envs import collect_episode
from tamherd_jax.herd.algorithm import embed_training_tasks, stratified_tasks
from tamherd_jax.herd.artefact import EpisodeCounts, Herd
from tamherd_jax.herd.clustering import ClusteringConfig, cluster, membership_weights
from tamherd_jax.herd.embeddings import Embedding, EmbeddingConfig
from tamherd_jax.types import EpochMetrics


class EvolutionStrategy:
    env, horizon, noise, adapt_rate, rate, episodes = Puck(), 20, 0.3, 3.0, 0.3, 16
    steps_per_epoch = 8 * 2 * episodes * horizon

    def init(self, key):  # a state is a policy: weights [A, O + 1]
        return 0.01 * jax.random.normal(key, (self.env.action_size, self.env.observation_size + 1))

    def distribution(self, policy, obs):
        mean = jnp.concatenate([obs, jnp.ones((*obs.shape[:-1], 1))], -1) @ policy.T
        return mean, jnp.full_like(mean, jnp.log(self.noise))

    def initial_carry(self, policy):
        return ()

    def act(self, policy, carry, obs, key):
        return sample_gaussian(key, *self.distribution(policy, obs)), carry

    def probe(self, key, state, task, episodes):
        return state, self._play(key, jnp.broadcast_to(state, (episodes, *state.shape)), task)

    def adapt(self, key, state, task, episodes):
        half = self.noise * jax.random.normal(key, (episodes // 2, *state.shape))
        noise = jnp.concatenate([half, -half])
        played = self._play(jax.random.fold_in(key, 1), state + noise, task)
        scores = (played.returns - played.returns.mean()) / (played.returns.std() + 1e-6)
        return state + self.adapt_rate * jnp.tensordot(scores, noise, 1) / episodes, played

    def train_epoch(self, key, state, tasks, weights):
        keys = jax.random.split(key, (2, len(weights)))
        policies, before = jax.vmap(lambda k, t: self.adapt(k, state, t, self.episodes))(keys[0], tasks)
        after = jax.vmap(lambda k, p, t: self.probe(k, p, t, self.episodes)[1])(keys[1], policies, tasks)
        state = state + self.rate * jnp.tensordot(weights / weights.sum(), policies - state, 1)
        steps = before.steps.sum() + after.steps.sum()
        return state, EpochMetrics(before.returns.mean(1), after.returns.mean(1), steps, jnp.zeros(()), {})

    def _play(self, key, policies, task):
        def episode(key, policy):
            return collect_episode(self.env, lambda obs, k: self.act(policy, (), obs, k)[0], task, key, self.horizon)

        return jax.vmap(episode)(jax.random.split(key, len(policies)), policies)


def train(learner, tasks, key, weights, epochs):
    keys = jax.random.split(key, epochs)
    return jax.lax.scan(lambda s, k: learner.train_epoch(k, s, tasks, weights), learner.init(key), keys)[0]


def main(epochs):
    learner, task_set = EvolutionStrategy(), puck_tasks()
    keys, every = jax.random.split(jax.random.key(0), 3), jnp.ones((1, len(task_set)))
    train_all = jax.jit(jax.vmap(lambda key, weights: train(learner, task_set.tasks, key, weights, epochs)))
    probe = train_all(keys[:1], every)[0]
    embedding = Embedding(EmbeddingConfig(kind="transition", reward="none", metric="cosine"))
    tasks, index = stratified_tasks(task_set.tasks, 32)
    embedded = embed_training_tasks(learner, embedding, jax.random.key(1), probe, tasks, 8)
    labels = cluster(embedded.gram, ClusteringConfig(clusters=2)).labels
    members = train_all(keys[1:], jnp.asarray(membership_weights(labels, index, len(task_set), 2), jnp.float32))
    herd = Herd(learner, task_set, probe, members, embedding, embedded, labels, EpisodeCounts(8, 8, 16, 8))
    adapted = {name: herd.adapt(jax.random.key(3), name) for name in task_set.task_names}
    for name, policy in adapted.items():
        before, after = policy.before.returns.mean(), policy.after.returns.mean()
        print(f"{name}: member {policy.member}, return {before:.2f} before and {after:.2f} after adaptation")
    return adapted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
