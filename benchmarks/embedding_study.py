"""When do task embeddings find the bodies? `python -m benchmarks.embedding_study [--seeds N] [--work DIR]`.

For every seed a probe is trained on ML2 and kept at several lengths; at each length its experience in training draws and in
short test probes is embedded in every way, clustered into K = 2 and used to assign the test probes. A killed study goes on
where it stopped: probes and Gram matrices are kept in the working directory, one file a seed (and length).
Axes: S seeds, D training draws, B test probes, n transitions of a draw, R = 4 reward normalisations.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tamherd_jax.envs import Locomotion, TaskSet, ml2
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.learners import make_probe_learner
from tamherd_jax.experiments.presets import get_preset
from tamherd_jax.herd import clustering
from tamherd_jax.herd.algorithm import stratified_tasks
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.herd.diagnostics import majority_modes
from tamherd_jax.herd.embeddings import CHOICES, Embedding, EmbeddingConfig, Features
from tamherd_jax.maml import MAML
from tamherd_jax.registry.choices import PROBES

LENGTHS = (0, 1, 5, 10, 20, 40)
EMBEDDINGS = {
    "fisher": EmbeddingConfig(),
    "fisher diagonal": EmbeddingConfig(form="diagonal"),
    "fisher diagonal, closed form": EmbeddingConfig(form="diagonal", expectation="closed_form"),
    "fisher last layer": EmbeddingConfig(form="last_layer"),
    "fisher kronecker": EmbeddingConfig(form="kronecker"),
    "fisher projection": EmbeddingConfig(form="projection"),
    "transition": EmbeddingConfig(kind="transition"),
    "gradient": EmbeddingConfig(kind="gradient"),
    "gradient of log": EmbeddingConfig(kind="gradient", density="log"),
}
REWARDS = CHOICES["reward"]
METRICS = ("euclidean", "cosine")
LINKAGES = ("ward", "average", "complete", "single")
TEST_PROBES = 40
STRIDE = 4


@dataclasses.dataclass(frozen=True)
class Study:
    """One preset's probes.

    Attributes:
      config: of the preset whose probes are studied.
      work: working directory.
      stride: of the transitions of training draws that enter the exact Gram matrices.
      embeddings: names of `EMBEDDINGS`.
    """

    config: ExperimentConfig
    work: Path
    stride: int = STRIDE
    embeddings: tuple[str, ...] = tuple(EMBEDDINGS)

    @functools.cached_property
    def task_set(self) -> TaskSet:
        """The tasks."""
        return ml2()

    @functools.cached_property
    def learner(self) -> MAML:
        """The probe's meta-learner."""
        env = Locomotion(self.config.physics, self.config.expected_action_scale)
        learner: MAML = make_probe_learner(self.config, env, len(self.task_set))
        return learner

    @property
    def name(self) -> str:
        """Name of the preset and the kind of probe, in file names and in records."""
        return self.config.preset if self.config.probe == "meta" else f"{self.config.preset}-{self.config.probe}"

    @functools.cached_property
    def unravel(self) -> Callable[[jax.Array], Any]:
        """Parameters from a vector."""
        return ravel_pytree(self.learner.init(jax.random.key(0)))[1]

    @functools.cached_property
    def train_epoch(self) -> Any:
        """Train one seed for an epoch; compiled once, for all seeds."""
        tasks, weights = self.task_set.tasks, jnp.ones(len(self.task_set))
        return jax.jit(lambda key, state: self.learner.train_epoch(key, state, tasks, weights)[0])

    @functools.cached_property
    def embed(self) -> Any:
        """Return the Grams of one probe, compiled."""
        return jax.jit(self._embed)

    def probe_file(self, seed: int) -> Path:
        """Where a seed's probes are kept."""
        return self.work / f"{self.name}-probe-{seed}.npz"

    def gram_file(self, seed: int, length: int) -> Path:
        """Where the Grams of a seed's probe are kept."""
        return self.work / f"{self.name}-gram-{seed}-{length}-stride{self.stride}.npz"

    def train(self, seed: int, lengths: tuple[int, ...]) -> dict[int, np.ndarray]:
        """Probes by length, as vectors; the keys are those of the single learner of `tamherd run`."""
        path, key = self.probe_file(seed), jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), 0)
        probes = {int(name): array for name, array in _load(path).items()}
        if set(lengths) <= set(probes):
            return probes
        start = max((n for n in probes if n < min(set(lengths) - set(probes))), default=0)
        state = self.unravel(jnp.asarray(probes[start])) if probes else self.learner.init(jax.random.fold_in(key, 0))
        probes.setdefault(0, np.asarray(ravel_pytree(state)[0]))
        for epoch in range(start + 1, max(lengths) + 1):
            state = self.train_epoch(jax.random.fold_in(key, epoch), state)
            if epoch in lengths:
                probes[epoch] = np.asarray(ravel_pytree(state)[0])
                _save(path, {str(n): array for n, array in probes.items()})
        return probes

    def grams(self, seed: int, length: int, probe: np.ndarray | None) -> dict[str, np.ndarray]:
        """`NAME/gram [R, D, D]`, `NAME/cross [R, B, D]`, `NAME/norms [R, B]`, and `guard [D]`."""
        path = self.gram_file(seed, length)
        if not path.exists():
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), length)
            _save(path, {name: np.asarray(a) for name, a in self.embed(key, jnp.asarray(probe)).items()})
        return _load(path)

    def _embed(self, key: jax.Array, probe: jax.Array) -> dict[str, jax.Array]:
        state, c = self.unravel(probe), self.config
        train_key, test_key, score_key = jax.random.split(key, 3)
        train, test = (self._draws(count) for count in (c.embedding_tasks, TEST_PROBES))
        collect = jax.vmap(lambda k, task, e: self.learner.probe(k, state, task, e)[1], in_axes=(0, 0, None))
        seen = collect(jax.random.split(train_key, c.embedding_tasks), train, c.embedding_episodes)
        new = collect(jax.random.split(test_key, TEST_PROBES), test, c.probe_test_episodes)
        thin = jax.tree.map(lambda leaf: leaf[:, :, :: self.stride] if leaf.ndim > 2 else leaf, seen)
        out = {}
        for name in self.embeddings:
            config = EMBEDDINGS[name]
            exact = config.kind == "fisher" and config.form in ("gram", "last_layer")
            rows = self._all_rewards(config, state, thin if exact else seen, score_key)
            columns = self._all_rewards(config, state, new, jax.random.fold_in(score_key, 1))
            embedding, axes = Embedding(config), Features(None if exact else 0, 0, 0)
            out[f"{name}/gram"] = jax.vmap(embedding.self_gram, in_axes=(axes,))(rows)
            out[f"{name}/cross"] = jax.vmap(embedding.gram, in_axes=(axes, axes))(columns, rows)
            out[f"{name}/norms"] = jax.vmap(embedding.norms, in_axes=(axes,))(columns)
        guard = Embedding(EmbeddingConfig(kind="transition"))
        one = jax.vmap(lambda e: guard.features(self.learner.distribution, state.params, e, score_key).guard)
        return out | {"guard": one(seen)}

    def _draws(self, count: int) -> Any:
        return stratified_tasks(self.task_set.tasks, count)[0]

    def _all_rewards(self, config: EmbeddingConfig, state: Any, episodes: Any, key: jax.Array) -> Features:
        """Features with an axis of R on the weights, or on the values where the weights are in them."""
        count = episodes.valid.shape[0]
        variants = []
        for reward in REWARDS:
            embedding = Embedding(dataclasses.replace(config, reward=reward))
            features = jax.vmap(lambda k, e, f=embedding.features: f(self.learner.distribution, state.params, e, k))
            variants.append(features(jax.random.split(key, count), episodes))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variants)
        # Scores do not depend on the reward: one copy, so that their products are computed once for all weights.
        return stacked if stacked.weights is None else dataclasses.replace(stacked, values=variants[0].values)


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


# Evaluation ---------------------------------------------------------------------------------------------------------


def evaluate(gram: np.ndarray, cross: np.ndarray, norms: np.ndarray, linkage: str, modes: np.ndarray) -> tuple[float, float]:
    """Adjusted Rand index against the bodies, and share of test probes given to their body's cluster; 0 if not finite.

    Args:
      gram: `[D, D]`.
      cross: `[B, D]`.
      norms: `[B]`.
      linkage: a clustering method.
      modes: bodies of D draws and B test probes, in equal shares of the tasks.
    """
    if not np.isfinite(gram).all():
        return 0.0, 0.0
    labels = clustering.canonical(clustering.partition(gram, linkage, 2))
    truth, test_truth = modes[: len(gram)], modes[len(gram) :]
    majority = majority_modes(labels, truth)
    nearest = clustering.assign(gram, labels, cross, norms).nearest
    return clustering.adjusted_rand(labels, truth), float(np.mean(majority[nearest] == test_truth))


def metric_of(arrays: tuple[np.ndarray, ...], metric: str) -> tuple[np.ndarray, ...]:
    """Gram, cross products and squared norms in a metric; those given are Euclidean."""
    gram, cross, norms = (np.asarray(array, np.float64) for array in arrays)
    if metric == "euclidean":
        return gram, cross, norms
    own, new = np.sqrt(np.maximum(np.diagonal(gram), 1e-30)), np.sqrt(np.maximum(norms, 1e-30))
    return gram / np.outer(own, own), cross / np.outer(new, own), np.ones_like(norms)


def evaluations(study: Study, length: int, probes: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """A record for each embedding x reward x metric x linkage, over the seeds' Grams."""
    count = len(study.task_set)
    draws = [np.arange(size) * count // size for size in (study.config.embedding_tasks, TEST_PROBES)]
    modes = study.task_set.modes[np.concatenate(draws)]
    guard = [float(p["guard"].mean()) for p in probes]
    for name, (r, reward), metric in itertools.product(study.embeddings, enumerate(REWARDS), METRICS):
        seeds = [metric_of(tuple(p[f"{name}/{part}"][r] for part in ("gram", "cross", "norms")), metric) for p in probes]
        for linkage in LINKAGES:
            ari, accuracy = np.array([evaluate(*arrays, linkage, modes) for arrays in seeds]).T
            yield {
                "preset": study.name,
                "epochs": length,
                "embedding": name,
                "reward": reward,
                "metric": metric,
                "linkage": linkage,
                "seeds": len(probes),
                "perfect_clusters": round(float(np.mean(ari == 1)), 4),
                "perfect_assignment": round(float(np.mean((ari == 1) & (accuracy == 1))), 4),
                "ari_of_each_seed": _compact(ari),
                "accuracy_of_each_seed": _compact(accuracy),
                "guard_of_each_seed": _compact(guard) if reward == "max" and metric == "euclidean" else "",
            }


def _compact(values: Any) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    """CSV, one record a line; numbers of each seed are separated by spaces."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def choices(study: Study, length: int, probes: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """A record for each criterion that may choose K, by the default embedding and by the paper's: K of each seed."""
    for reward, metric in (("none", "cosine"), ("max", "euclidean")):
        for selection in clustering.SELECTIONS:
            config, found = ClusteringConfig(clusters="auto", selection=selection), []
            for probe in probes:
                parts = tuple(probe[f"fisher/{part}"][REWARDS.index(reward)] for part in ("gram", "cross", "norms"))
                found.append(clustering.cluster(metric_of(parts, metric)[0], config).k)
            yield {
                "preset": study.name,
                "epochs": length,
                "reward": reward,
                "metric": metric,
                "selection": selection,
                "seeds": len(probes),
                "two": round(float(np.mean(np.array(found) == 2)), 4),
                "clusters_of_each_seed": _compact(found),
            }


# Tables -------------------------------------------------------------------------------------------------------------

TABLE = (
    ("Fisher, r / max r, Frobenius (the paper's)", "fisher", "max", "euclidean"),
    ("Fisher, r / max abs(r), Frobenius", "fisher", "absolute", "euclidean"),
    ("Fisher, raw r, Frobenius", "fisher", "raw", "euclidean"),
    ("Fisher, r / max r, cosine", "fisher", "max", "cosine"),
    ("Fisher, unweighted, Frobenius", "fisher", "none", "euclidean"),
    ("**Fisher, unweighted, cosine** (`quick`)", "fisher", "none", "cosine"),
    ("diagonal, unweighted, cosine", "fisher diagonal", "none", "cosine"),
    ("diagonal in closed form, unweighted, cosine", "fisher diagonal, closed form", "none", "cosine"),
    ("last layer, unweighted, cosine", "fisher last layer", "none", "cosine"),
    ("Kronecker factors, unweighted, cosine", "fisher kronecker", "none", "cosine"),
    ("projection, unweighted, cosine", "fisher projection", "none", "cosine"),
    ("transitions, r / max r, Frobenius (the paper's)", "transition", "max", "euclidean"),
    ("transitions, unweighted, cosine", "transition", "none", "cosine"),
    ("policy gradient, r / max r, Frobenius (the paper's)", "gradient", "max", "euclidean"),
    ("policy gradient, unweighted, cosine", "gradient", "none", "cosine"),
    ("gradient of log policy, r / max r, Frobenius", "gradient of log", "max", "euclidean"),
)
"""Rows of the documentation's table: title, embedding, reward weights, metric; Ward's linkage."""


def markdown(path: Path, linkage: str = "ward") -> str:
    """Return a study's table from its CSV file: share of seeds with perfect clusters / and assignment."""
    with open(path, newline="", encoding="utf-8") as file:
        records = {tuple(r[c] for c in ("embedding", "reward", "metric", "linkage", "epochs")): r for r in csv.DictReader(file)}
    lengths = sorted({int(key[-1]) for key in records})
    seeds = {int(key[-1]): record["seeds"] for key, record in records.items()}
    head = ["probe epochs (seeds)", *(f"{length} ({seeds[length]})" for length in lengths)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---", *(["---:"] * len(lengths))])]
    for title, *key in TABLE:
        cells = [title]
        for length in lengths:
            record = records[*key, linkage, str(length)]
            cells.append(" / ".join(f"{100 * float(record[name]):.0f}" for name in ("perfect_clusters", "perfect_assignment")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# Command ------------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="paper-maml")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--probe", default="meta", choices=list(PROBES), help="kind of probe")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--physics", default="planar")
    parser.add_argument("--stride", type=int, default=STRIDE, help="of a draw's transitions in exact Gram matrices")
    parser.add_argument("--embeddings", nargs="+", default=list(EMBEDDINGS), choices=list(EMBEDDINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/embedding-study"))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--present", action="store_true", help="evaluate what the working directory holds; train nothing")
    parser.add_argument("--table", type=Path, default=None, metavar="CSV", help="print a study as Markdown")
    parser.add_argument("--linkage", default="ward", choices=LINKAGES, help="of --table")
    return parser.parse_args()


def collect(study: Study, seeds: int, lengths: tuple[int, ...], train: bool) -> dict[int, list[dict[str, np.ndarray]]]:
    """Length -> the seeds' Grams, computed where they are missing or else left out."""
    found: dict[int, list[dict[str, np.ndarray]]] = {length: [] for length in lengths}
    for seed in range(seeds):
        start = time.perf_counter()
        probes = study.train(seed, lengths) if train else {}
        trained = time.perf_counter()
        for length in lengths:
            if train or study.gram_file(seed, length).exists():
                found[length].append(study.grams(seed, length, probes.get(length)))
        print(f"seed {seed}: {trained - start:.0f} s training, {time.perf_counter() - trained:.0f} s embedding", flush=True)
    return {length: grams for length, grams in found.items() if grams}


def main() -> None:
    """Train, embed, evaluate, write."""
    options = arguments()
    if options.table:
        print(markdown(options.table, options.linkage))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    config = get_preset(options.preset, physics=options.physics, probe=options.probe)
    study = Study(config, options.work, options.stride, tuple(options.embeddings))
    found = collect(study, options.seeds, tuple(sorted(options.lengths)), not options.present)
    out = options.out or options.work / f"{study.name}.csv"
    write_table(out, [record for length, grams in found.items() for record in evaluations(study, length, grams)])
    length = config.probe_epochs
    if "fisher" in study.embeddings and length in found:
        write_table(out.with_suffix(".clusters.csv"), list(choices(study, length, found[length])))
    print(markdown(out) if set(EMBEDDINGS) == set(study.embeddings) else f"written to {out}")


if __name__ == "__main__":
    main()
