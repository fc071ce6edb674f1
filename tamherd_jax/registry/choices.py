"""Names that configurations and the command line choose from, each with what it stands for, besides algorithms and bodies.

What implements a name is keyed by it elsewhere: `envs.TASK_SETS`, `physics.BACKENDS`, `herd.clustering`,
`herd.embeddings`, `experiments.arms`. Reading the names imports none of these, nor JAX, so that `tamherd --help` and a
misspelt option are answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Choices: TypeAlias = Mapping[str, str]
"""Name to what it stands for; nothing where the name says it."""

TASK_SETS: Choices = {
    "ml2": "cheetah and walker, forward and backward; the default",
    "ml2-vel": "target velocities",
    "ml2-vel-between": "those halfway between, for tests",
    "ml2-params": "perturbed bodies",
    "ml3": "ml2 and the hopper",
}
PHYSICS: Choices = {
    "auto": "the default: planar in the form that suits the device",
    "planar": "this package's own",
    "mujoco": "MuJoCo C",
    "mjx": "MuJoCo XLA",
}
PROBES: Choices = {
    "meta": "the single learner, stopped early",
    "multitask": "the meta-learner without its inner step: one policy for all tasks",
    "discriminative": "a multitask probe that is also rewarded for telling tasks apart",
}
"""Kinds of probe. One that is not `meta` is a learner of its own, an arm with the kind's name."""
CONTROLS: Choices = {
    "random-assignment": "the trained herd, each test task given to a member at random",
    "oracle-assignment": "the trained herd, each test task given to the member that trained most on its body",
    "random-clusters": "a herd whose members train on random halves of the training tasks",
    "untrained-probe": "a herd whose training and test tasks are embedded with a probe that never trained",
    "double-gradient": "a single learner that takes twice the gradient steps, as many as a herd of two",
}
"""Further arms that a run may have."""
REWARD_WEIGHTS: Choices = {
    "max": "the paper's r / max r, with a guard",
    "absolute": "r / max |r|",
    "none": "1",
    "raw": "r",
}
"""Reward weights of an embedding."""
METRICS: Choices = {"euclidean": "Frobenius", "cosine": "the same between embeddings scaled to unit norm"}
CLUSTERING_METHODS: Choices = {
    "ward": "",
    "average": "",
    "complete": "",
    "single": "",
    "kmeans": "",
    "spectral": "on a Gaussian affinity",
    "hdbscan": "finds its own number",
}
SELECTIONS: Choices = {
    "silhouette": "",
    "gap": "",
    "stability": "of the clusters of subsamples",
}
"""What `auto` maximises to choose the number of clusters."""
EMBEDDINGS: Choices = {
    "fisher": "the reward-weighted Fisher matrix",
    "fisher-expected": "its expectation over actions in closed form",
    "fisher-diagonal": "its diagonal",
    "fisher-last-layer": "its block of the last layer",
    "fisher-kronecker": "Kronecker factors of its layers",
    "fisher-projection": "of scores projected to few dimensions",
    "transition": "outer products of transitions",
    "gradient": "gradients of the density",
    "log-gradient": "gradients of the log-density",
    "latent": "mean of the learner's posterior",
    "latent-wasserstein": "its 2-Wasserstein distance",
    "latent-kl": "its symmetrised KL divergence",
}
