"""Clustering tasks and assigning new ones, from inner products alone.

Whatever the embedding, everything here starts from its Gram `G_ij = <phi_i, phi_j>` between the N clustered tasks and, for
B new tasks, the products `cross [B, N]` and squared norms `[B]`. Distances to the mean of a cluster are exact:
`|phi_b - c_k|^2 = |phi_b|^2 - 2 mean_j <phi_b, phi_j> + mean_jj' <phi_j, phi_j'>`, j, j' in k. Host code in float64 with
scikit-learn, except `nearest_centroid`.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Integer

from tamherd_jax.registry.choices import CLUSTERING_METHODS, SELECTIONS

METHODS = tuple(CLUSTERING_METHODS)

# Resampling: pairs of subsamples per K, the share of tasks in each, and the mean agreement that counts as stable.
RESAMPLES, SHARE, STABLE = 20, 0.8, 0.9
# Mean silhouette up to which a partition shows no substantial structure (Kaufman and Rousseeuw 1990, table 4).
NO_STRUCTURE = 0.25
# Largest squared distance, over the largest squared norm, of tasks that only rounding of float32 products tells apart.
COINCIDE = 1e-5
REFERENCES = 20


@dataclasses.dataclass(frozen=True)
class ClusteringConfig:
    """How tasks are clustered. The default is Ward's linkage with K = 2.

    Attributes:
      method: `ward`, `kmeans` on exact coordinates; `average`, `complete`, `single`, `hdbscan` on distances; `spectral` on a
        Gaussian affinity with the median distance as its width.
      clusters: K, or "auto". `hdbscan` finds its own number and takes "auto" only.
      selection: what "auto" maximises: the `silhouette`; the `gap` statistic (Tibshirani et al., 2001); `stability`, the
        agreement of the clusters of subsamples (Ben-Hur et al., 2002). All choose 1 where nothing tells the tasks apart.
      max_clusters: the largest K that "auto" tries.

    Raises:
      ValueError: a value is unknown or does not go with the others.
    """

    method: str = "ward"
    clusters: int | Literal["auto"] = 2
    selection: str = "silhouette"
    max_clusters: int = 8

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"clustering method is one of {', '.join(METHODS)}; not {self.method!r}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"clustering selection is one of {', '.join(SELECTIONS)}; not {self.selection!r}")
        if self.clusters != "auto" and (
            not isinstance(self.clusters, int) or isinstance(self.clusters, bool) or self.clusters < 1
        ):
            raise ValueError(f"clusters is a positive number or 'auto', not {self.clusters!r}")
        if self.method == "hdbscan" and self.clusters != "auto":
            raise ValueError(f"clustering method 'hdbscan' finds its own number: clusters must be 'auto', not {self.clusters}")
        if self.max_clusters < 1:
            raise ValueError(f"max_clusters must be positive, not {self.max_clusters}")


@dataclasses.dataclass(frozen=True)
class Clusters:
    """A partition of N tasks.

    Attributes:
      labels: `[N]` int in 0..k-1, numbered by first appearance.
      k: number of clusters.
      scores: per criterion, its value for every K looked at; the silhouette at K = 2..4 even where K was given
        (with `hdbscan`, at its own K).
    """

    labels: np.ndarray
    k: int
    scores: dict[str, dict[int, float]]


@struct.dataclass
class Assignment:
    """Where B new tasks belong.

    Attributes:
      distances: `[B, K]` squared distances to the clusters' means; infinite for a cluster without tasks.
      nearest: `[B]` int, the nearest cluster, the lowest of equals.
      margin: `[B]` distance to the second nearest mean less that to the nearest (not squared); infinite if there is none.
      confidence: `[B]` in [1/2, 1]: the second distance over the sum of both; 1 if there is no second.
    """

    distances: Any
    nearest: Any
    margin: Any
    confidence: Any


# Geometry from inner products ---------------------------------------------------------------------------------------


def squared_distances(
    gram: Float[np.ndarray | Array, "N N"],
    cross: Float[np.ndarray | Array, "B N"] | None = None,
    norms: Float[np.ndarray | Array, " B"] | None = None,
) -> Float[np.ndarray, "B N"]:
    """Squared distances `[N, N]` between the tasks of a Gram `[N, N]`, or `[B, N]` from others with `cross` and `norms`."""
    gram = np.asarray(gram, np.float64)
    squares = np.diagonal(gram)
    if cross is not None:
        squares_b = np.asarray(norms, np.float64)
        return np.maximum(squares_b[:, None] + squares[None] - 2 * np.asarray(cross, np.float64), 0.0)
    distances = np.maximum(squares[:, None] + squares[None] - gram - gram.T, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def coordinates(gram: Float[np.ndarray | Array, "N N"]) -> Float[np.ndarray, "N rank"]:
    """Points `[N, rank]` with the Gram's distances, principal axes first and centred (classical scaling).

    Exact for inner products; for a Gram made of distances that are not Euclidean the imaginary axes are dropped. The sign
    of each axis makes its largest coordinate positive. There is always at least one axis.
    """
    gram = np.asarray(gram, np.float64)
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = max(int((values > max(values[0], 0.0) * len(gram) * np.finfo(np.float64).eps).sum()), 1)
    points = vectors[:, :rank] * np.sqrt(np.maximum(values[:rank], 0.0))
    largest = np.take_along_axis(points, np.abs(points).argmax(0)[None], 0)
    return points * np.where(largest < 0, -1.0, 1.0)


# Clustering ---------------------------------------------------------------------------------------------------------


def cluster(gram: np.ndarray, config: ClusteringConfig, seed: int = 0) -> Clusters:
    """Partition the N tasks of a Gram `[N, N]`.

    K = 1 puts all tasks together and K >= N each on its own, whatever the method.

    Args:
      gram: `[N, N]` inner products.
      config: method and number of clusters.
      seed: of k-means' starts, the gap's references and the subsamples.

    Raises:
      ValueError: the Gram is not finite.
    """
    gram = np.asarray(gram, np.float64)
    ill = np.flatnonzero(~np.isfinite(np.diagonal(gram)))
    if ill.size or not np.isfinite(gram).all():
        raise ValueError(f"embeddings are not finite for tasks {ill.tolist()}: their probe diverged, nothing can be clustered")
    scores: dict[str, dict[int, float]] = {}
    if config.method == "hdbscan":
        labels = _hdbscan(gram, config.max_clusters)
        scores["silhouette"] = {len(np.unique(labels)): _silhouette(gram, labels)}
    else:
        k, scores = _choose(gram, config, seed) if config.clusters == "auto" else (config.clusters, {})
        labels = partition(gram, config.method, k, seed)
    if "silhouette" not in scores:
        scores["silhouette"] = _silhouettes(gram, config.method, range(2, 5), seed)
    labels = canonical(labels)
    return Clusters(labels, int(labels.max()) + 1, scores)


def partition(gram: Float[np.ndarray, "N N"], method: str, k: int, seed: int = 0) -> Integer[np.ndarray, " N"]:
    """Labels `[N]` of min(k, N) clusters by one method, in no particular order."""
    from sklearn import cluster as sk_cluster  # half a second, which nobody waits for before there is something to cluster
    from sklearn.exceptions import ConvergenceWarning

    tasks = len(gram)
    if k <= 1 or k >= tasks:
        return np.zeros(tasks, int) if k <= 1 else np.arange(tasks)
    if method == "ward":
        return sk_cluster.AgglomerativeClustering(k, linkage="ward").fit_predict(coordinates(gram))
    if method == "kmeans":
        with warnings.catch_warnings():
            # Fewer distinct points than K: fewer clusters are the right answer.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return sk_cluster.KMeans(k, n_init=10, random_state=seed).fit_predict(coordinates(gram))
    squares = squared_distances(gram)
    if method == "spectral":
        width = np.median(squares[~np.eye(tasks, dtype=bool)])
        affinity = np.exp(-squares / (2 * width)) if width > 0 else (squares == 0).astype(float)
        model = sk_cluster.SpectralClustering(k, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
        return model.fit_predict(affinity)
    return sk_cluster.AgglomerativeClustering(k, metric="precomputed", linkage=method).fit_predict(np.sqrt(squares))


def canonical(labels: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """The same partition `[N]` with clusters numbered by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _hdbscan(gram: np.ndarray, max_clusters: int) -> np.ndarray:
    """Labels of at most `max_clusters` density clusters, of at least two tasks each; noise is assigned to the nearest mean.

    If HDBSCAN labels every task as noise, all tasks form one cluster.
    """
    from sklearn.cluster import HDBSCAN

    tasks = len(gram)
    if tasks < 3 or max_clusters < 2:
        return np.zeros(tasks, int)
    smallest = max(2, -(-tasks // max_clusters))
    model = HDBSCAN(min_cluster_size=smallest, metric="precomputed", copy=True)
    labels = model.fit_predict(np.sqrt(squared_distances(gram)))
    core = labels >= 0
    if not core.any():
        return np.zeros(tasks, int)
    inside = gram[np.ix_(core, core)]
    nearest = assign(inside, labels[core], gram[:, core], np.diagonal(gram)).nearest
    return np.where(core, labels, nearest)


# The number of clusters ---------------------------------------------------------------------------------------------


def _choose(gram: np.ndarray, config: ClusteringConfig, seed: int) -> tuple[int, dict[str, dict[int, float]]]:
    """K and the scores by which it was chosen."""
    tasks = len(gram)
    top = min(config.max_clusters, tasks - 1)
    if top < 2 or _coincide(gram):
        return 1, {}
    if config.selection == "gap":
        return _gap(gram, config.method, top, seed)
    if config.selection == "stability":
        stability = _stability(gram, config.method, range(2, top + 1), seed)
        # Nested structure may be equally stable at several K: the finest says most.
        best = max(stability, key=lambda k: (stability[k], k))
        separated = _silhouette(gram, partition(gram, config.method, best, seed)) > NO_STRUCTURE
        return (best if stability[best] >= STABLE and separated else 1), {"stability": stability}
    silhouettes = _silhouettes(gram, config.method, range(2, top + 1), seed)
    best = max(silhouettes, key=lambda k: silhouettes[k])
    return (best if silhouettes[best] > NO_STRUCTURE else 1), {"silhouette": silhouettes}


def _coincide(gram: np.ndarray) -> bool:
    """Whether all tasks are the same point but for the rounding of their products."""
    return bool(squared_distances(gram).max() <= COINCIDE * np.abs(np.diagonal(gram)).max())


def _silhouettes(gram: np.ndarray, method: str, ks: range, seed: int) -> dict[int, float]:
    """Mean silhouette for every K of `ks` below N; fewer clusters than K (coinciding tasks) score as what they are."""
    return {k: _silhouette(gram, partition(gram, method, k, seed)) for k in ks if k < len(gram)}


def _silhouette(gram: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette in [-1, 1]; -1 where it is undefined, for one cluster or one task in each."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(labels)) < len(labels):
        return -1.0
    return float(silhouette_score(np.sqrt(squared_distances(gram)), labels, metric="precomputed"))


def _gap(gram: np.ndarray, method: str, top: int, seed: int) -> tuple[int, dict[str, dict[int, float]]]:
    """Smallest K whose gap is within one standard error of the largest; references uniform in the principal axes' box.

    Not Tibshirani's first K with `gap(K) >= gap(K+1) - s(K+1)`, which stops at 1 before three equidistant groups, because
    cutting them in two gains nothing; the rule here is Dudoit and Fridlyand's (2002).
    """
    rng = np.random.default_rng(seed)
    points = coordinates(gram)
    low, high = points.min(0), points.max(0)
    references = [rng.uniform(low, high, points.shape) for _ in range(REFERENCES)]
    gaps, errors = {}, {}
    for k in range(1, top + 1):
        expected = np.array([_log_dispersion(reference @ reference.T, method, k, seed) for reference in references])
        gaps[k] = float(expected.mean() - _log_dispersion(gram, method, k, seed))
        errors[k] = float(expected.std() * np.sqrt(1 + 1 / REFERENCES))
    best = max(gaps, key=lambda k: gaps[k])
    chosen = min(k for k in gaps if gaps[k] >= gaps[best] - errors[best])
    return chosen, {"gap": gaps, "gap_error": errors}


def _log_dispersion(gram: np.ndarray, method: str, k: int, seed: int) -> float:
    """Log of the summed squared distances of tasks to their cluster's mean."""
    labels = partition(gram, method, k, seed)
    distances = assign(gram, canonical(labels), gram, np.diagonal(gram)).distances
    within = distances[np.arange(len(gram)), canonical(labels)].sum()
    return float(np.log(max(within, np.finfo(float).tiny)))


def _stability(gram: np.ndarray, method: str, ks: range, seed: int) -> dict[int, float]:
    """Mean adjusted Rand index, on the tasks that both hold, of clusterings of pairs of subsamples."""
    rng = np.random.default_rng(seed)
    tasks = len(gram)
    size = max(2, round(SHARE * tasks))
    pairs = [[np.sort(rng.permutation(tasks)[:size]) for _ in range(2)] for _ in range(RESAMPLES)]
    scores = {}
    for k in ks:
        agreements = []
        for pair in pairs:
            labels = [dict(zip(part, partition(gram[np.ix_(part, part)], method, k, seed), strict=True)) for part in pair]
            both = np.intersect1d(pair[0], pair[1])
            agreements.append(adjusted_rand([labels[0][i] for i in both], [labels[1][i] for i in both]))
        scores[k] = float(np.mean(agreements))
    return scores


# Assignment ---------------------------------------------------------------------------------------------------------


def assign(gram: np.ndarray, labels: np.ndarray, cross: np.ndarray, norms: np.ndarray) -> Assignment:
    """Nearest cluster mean of B new tasks, in float64 on the host.

    Args:
      gram: `[N, N]` of the clustered tasks.
      labels: `[N]` int.
      cross: `[B, N]` products of the new tasks with the clustered.
      norms: `[B]` squared norms of the new tasks.
    """
    gram, cross, norms = (np.asarray(array, np.float64) for array in (gram, cross, norms))
    labels = np.asarray(labels)
    return _assignment(np, gram, np.eye(labels.max() + 1)[labels], cross, norms)


def nearest_centroid(
    gram: Float[Array, "N N"], membership: Float[Array, "N K"], cross: Float[Array, "B N"], norms: Float[Array, " B"]
) -> Assignment:
    """`assign` in JAX, for use under jit and vmap; membership `[N, K]` one-hot, and a column of zeros is never nearest."""
    with jax.default_matmul_precision("highest"):
        return _assignment(jnp, gram, membership, cross, norms)


def _assignment(xp: Any, gram: Any, membership: Any, cross: Any, norms: Any) -> Assignment:
    """The equation of the module docstring, in NumPy or JAX."""
    counts = membership.sum(0)
    means = membership / xp.maximum(counts, 1)
    centroids = (means * (gram @ means)).sum(0)
    squares = xp.maximum(norms[:, None] - 2 * (cross @ means) + centroids[None], 0.0)
    squares = xp.where(counts[None] > 0, squares, xp.inf)
    ordered = xp.sqrt(xp.sort(xp.concatenate([squares, xp.full_like(squares[:, :1], xp.inf)], -1), -1))
    first, second = ordered[:, 0], ordered[:, 1]
    alone = ~xp.isfinite(second)
    # 0/0 where both means coincide with the task: neither is the better, 1/2.
    total = xp.where(alone | (first + second == 0), 1.0, first + second)
    confidence = xp.where(alone, 1.0, xp.where(first + second == 0, 0.5, xp.where(alone, 1.0, second) / total))
    return Assignment(squares, squares.argmin(-1), second - first, confidence)


def membership_weights(
    labels: Integer[np.ndarray | Array, " N"], task_ids: Integer[np.ndarray | Array, " N"], n_tasks: int, k: int
) -> Float[np.ndarray, "K n_tasks"]:
    """Compute each member's training distribution, `[K, n_tasks]`: the tasks' shares among the samples in its cluster.

    A member whose cluster is empty (k beyond the clusters found) gets the distribution of all samples; it is never assigned.

    Args:
      labels: `[N]` cluster of each embedded sample.
      task_ids: `[N]` index of the task that each sample is of.
      n_tasks: tasks in the set.
      k: members.

    Raises:
      ValueError: there are more clusters than members.
    """
    labels = np.asarray(labels)
    if labels.max() >= k:
        raise ValueError(f"{labels.max() + 1} clusters do not fit {k} members")
    counts = np.zeros((k, n_tasks))
    np.add.at(counts, (labels, np.asarray(task_ids)), 1.0)
    counts = np.where(counts.sum(1, keepdims=True) > 0, counts, counts.sum(0))
    return counts / counts.sum(1, keepdims=True)


# Diagnostics --------------------------------------------------------------------------------------------------------


def adjusted_rand(labels: Any, truth: Any) -> float:
    """Adjusted Rand index of two partitions `[N]`: 1 if they are equal, about 0 if unrelated."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(truth, labels))


def purity(labels: Integer[np.ndarray | Array, " N"], truth: Integer[np.ndarray | Array, " N"]) -> float:
    """Share of tasks that belong to their cluster's commonest true class."""
    return float(confusion_matrix(labels, truth).max(0).sum() / len(np.asarray(labels)))


def confusion_matrix(labels: Integer[np.ndarray | Array, " N"], truth: Integer[np.ndarray | Array, " N"]) -> np.ndarray:
    """Counts `[true classes, clusters]`, both in sorted order."""
    from sklearn.metrics.cluster import contingency_matrix

    return contingency_matrix(truth, labels)
