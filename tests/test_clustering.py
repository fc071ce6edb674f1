"""Clustering and assignment from the Gram against scikit-learn and explicit vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.metrics.pairwise import euclidean_distances

from tamherd_jax.herd import clustering
from tamherd_jax.herd.clustering import ClusteringConfig, cluster

K, EACH = 3, 6
TRUTH = np.repeat(np.arange(K), EACH)


def blobs(spread=0.3, seed=0, shift=10.0):
    """`[18, 7]` embeddings in three well separated groups, far from the origin."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.eye(7)[:K]
    return centres[TRUTH] + spread * rng.normal(size=(K * EACH, 7)) + shift


def config(method, clusters=K, **options):
    return ClusteringConfig(method, "auto" if method == "hdbscan" else clusters, **options)


def test_coordinates_and_distances_are_those_of_the_vectors():
    x, y = blobs(), blobs(seed=1)[:4]
    expected = euclidean_distances(x, x, squared=True)
    points = clustering.coordinates(x @ x.T)
    assert points.shape == (18, 7)
    np.testing.assert_allclose(euclidean_distances(points, squared=True), expected, atol=1e-9)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-9)
    assert (np.diff(points.var(0)) <= 0).all()
    np.testing.assert_allclose(clustering.squared_distances(x @ x.T), expected, atol=1e-9)
    cross = clustering.squared_distances(x @ x.T, y @ x.T, (y**2).sum(1))
    np.testing.assert_allclose(cross, euclidean_distances(y, x, squared=True), atol=1e-9)


def test_coordinates_of_coinciding_tasks():
    assert clustering.coordinates(np.ones((3, 3))).shape == (3, 1)
    assert np.all(clustering.coordinates(np.zeros((3, 3))) == 0)


@pytest.mark.parametrize("method", ["ward", "average", "complete", "single"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_linkages_equal_sklearn_on_the_vectors(method, k):
    x = blobs(spread=2.0)
    expected = AgglomerativeClustering(k, linkage=method).fit_predict(x)
    assert adjusted_rand_score(expected, cluster(x @ x.T, config(method, k)).labels) == 1


@pytest.mark.parametrize("method", clustering.METHODS)
def test_every_method_finds_separated_groups_and_permutes(method):
    x = blobs()
    found = cluster(x @ x.T, config(method), seed=1)
    np.testing.assert_array_equal(found.labels, TRUTH)
    assert found.k == K
    order = np.random.default_rng(2).permutation(len(x))
    permuted = cluster(x[order] @ x[order].T, config(method), seed=1)
    np.testing.assert_array_equal(permuted.labels, clustering.canonical(TRUTH[order]))


@pytest.mark.parametrize("method", [m for m in clustering.METHODS if m != "hdbscan"])
def test_one_cluster_and_one_each(method):
    x = blobs()[:5]
    for k, labels in ((1, np.zeros(5)), (5, np.arange(5)), (9, np.arange(5))):
        found = cluster(x @ x.T, config(method, k))
        np.testing.assert_array_equal(found.labels, labels)
    alone = cluster(np.ones((1, 1)), config(method, 2))
    assert alone.k == 1
    assert alone.scores == {"silhouette": {}}


CHOICES = [*((m, s) for m in ("ward", "average") for s in clustering.SELECTIONS), ("kmeans", "silhouette")]


@pytest.mark.parametrize(("method", "selection"), CHOICES)
def test_the_number_of_clusters_is_found(method, selection):
    x = blobs()
    found = cluster(x @ x.T, config(method, "auto", selection=selection, max_clusters=5))
    assert found.k == K
    np.testing.assert_array_equal(found.labels, TRUTH)
    assert set(found.scores[selection]) >= {2, 3, 4, 5}


def test_auto_may_find_a_single_cluster():
    x = np.random.default_rng(0).normal(size=(30, 3))
    for selection in ("gap", "stability"):
        assert cluster(x @ x.T, ClusteringConfig("ward", "auto", selection)).k == 1
    assert cluster(x[:2] @ x[:2].T, ClusteringConfig("ward", "auto")).k == 1


@pytest.mark.parametrize("selection", clustering.SELECTIONS)
@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.3])
def test_auto_finds_one_cluster_where_nothing_tells_the_tasks_apart(selection, noise):
    """The same task many times: exactly, up to the rounding of float32 products, and up to the noise of its samples."""
    rng = np.random.default_rng(0)
    x = 1.0 + noise * rng.normal(size=(12, 40)).astype(np.float32)
    assert cluster(x @ x.T, ClusteringConfig("ward", "auto", selection)).k == 1


def test_scores_are_silhouettes_of_the_vectors():
    x = blobs(spread=1.5)
    scores = cluster(x @ x.T, ClusteringConfig()).scores["silhouette"]
    assert set(scores) == {2, 3, 4}
    labels = AgglomerativeClustering(3).fit_predict(x)
    np.testing.assert_allclose(scores[3], silhouette_score(x, labels))


def test_hdbscan_gives_noise_to_the_nearest_mean():
    x = np.concatenate([blobs(), blobs().mean(0, keepdims=True) + 0.6 * (blobs()[0] - blobs().mean(0))])
    found = cluster(x @ x.T, config("hdbscan"))
    np.testing.assert_array_equal(found.labels, [*TRUTH, 0])
    scattered = np.eye(4) * [1, 10, 100, 1000]
    assert cluster(scattered @ scattered.T, config("hdbscan")).k == 1


def test_coinciding_tasks_do_not_break_a_method():
    x = np.repeat([[0.0, 0.0], [1.0, 1.0]], 3, 0)
    for method in clustering.METHODS:
        np.testing.assert_array_equal(cluster(x @ x.T, config(method, 2)).labels, [0, 0, 0, 1, 1, 1])


def test_a_gram_that_is_not_finite_is_refused():
    gram = np.eye(4)
    gram[2] = gram[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"not finite for tasks \[2\]"):
        cluster(gram, ClusteringConfig())


@pytest.mark.parametrize(
    "options",
    [
        {"method": "wards"},
        {"clusters": 0},
        {"clusters": "two"},
        {"selection": "bic"},
        {"method": "hdbscan"},
        {"max_clusters": 0},
    ],
)
def test_impossible_configurations_are_refused_in_one_line(options):
    with pytest.raises(ValueError, match=r"^[^\n]{10,120}$"):
        ClusteringConfig(**options)


# Assignment ---------------------------------------------------------------------------------------------------------


def new_tasks(seed=5, n=4):
    return np.random.default_rng(seed).normal(size=(n, 7)) * 3 + 11


def explicit(x, labels, y):
    means = np.stack([x[labels == k].mean(0) for k in range(labels.max() + 1)])
    return euclidean_distances(y, means, squared=True)


def test_assignment_equals_distances_to_the_means_of_the_vectors():
    x, y = blobs(), new_tasks()
    found = clustering.assign(x @ x.T, TRUTH, y @ x.T, (y**2).sum(1))
    expected = explicit(x, TRUTH, y)
    np.testing.assert_allclose(found.distances, expected, atol=1e-9)
    np.testing.assert_array_equal(found.nearest, expected.argmin(1))
    first, second = np.sort(np.sqrt(expected), 1)[:, :2].T
    np.testing.assert_allclose(found.margin, second - first)
    np.testing.assert_allclose(found.confidence, second / (first + second))


def test_assignment_inside_jit_and_vmap_equals_the_host():
    x = np.stack([blobs(seed=s, shift=0) for s in range(2)])
    y = np.stack([new_tasks(s) - 11 for s in range(2)])
    labels = np.stack([TRUTH, np.random.default_rng(0).permutation(TRUTH)])
    products = jnp.asarray(x @ x.mT), jax.nn.one_hot(labels, K), jnp.asarray(y @ x.mT), jnp.asarray((y**2).sum(-1))
    found = jax.jit(jax.vmap(clustering.nearest_centroid))(*products)
    for s in range(2):
        alone = clustering.assign(x[s] @ x[s].T, labels[s], y[s] @ x[s].T, (y[s] ** 2).sum(1))
        np.testing.assert_array_equal(found.nearest[s], alone.nearest)
        for name in ("distances", "margin", "confidence"):
            np.testing.assert_allclose(getattr(found, name)[s], getattr(alone, name), rtol=1e-4, atol=1e-3)


def test_an_empty_cluster_is_never_nearest():
    x, y = blobs(shift=0), new_tasks() - 11
    membership = np.eye(K + 1)[TRUTH]
    found = jax.jit(clustering.nearest_centroid)(x @ x.T, membership, y @ x.T, (y**2).sum(1))
    assert np.isinf(found.distances[:, K]).all()
    assert (found.nearest < K).all()
    assert np.isfinite(found.margin).all()


def test_assignment_with_one_cluster_and_at_a_tie():
    x = np.array([[1.0], [-1.0]])
    single = clustering.assign(x @ x.T, np.zeros(2, int), np.array([[2.0, -2.0]]), np.array([4.0]))
    assert (single.nearest[0], single.confidence[0], single.margin[0]) == (0, 1.0, np.inf)
    tie = clustering.assign(x @ x.T, np.arange(2), np.zeros((1, 2)), np.zeros(1))
    assert (tie.nearest[0], tie.confidence[0], tie.margin[0]) == (0, 0.5, 0.0)
    same = clustering.assign(np.ones((2, 2)), np.arange(2), np.ones((1, 2)), np.ones(1))
    assert (same.nearest[0], same.confidence[0], same.margin[0]) == (0, 0.5, 0.0)


def test_distances_in_place_of_inner_products_give_the_same_geometry():
    """A Gram of -D/2 with zero norms: what a distance without inner products uses."""
    x, y = blobs(), new_tasks()
    as_gram = -euclidean_distances(x, squared=True) / 2
    cross = -euclidean_distances(y, x, squared=True) / 2
    np.testing.assert_array_equal(cluster(as_gram, ClusteringConfig(clusters=K)).labels, TRUTH)
    found = clustering.assign(as_gram, TRUTH, cross, np.zeros(len(y)))
    np.testing.assert_allclose(found.distances, explicit(x, TRUTH, y), atol=1e-9)


def test_nan_in_one_new_task_stays_there():
    x, y = blobs(shift=0), new_tasks()
    y[1] = np.nan

    def clean(*others):
        return clustering.nearest_centroid(*map(jnp.asarray, (x @ x.T, np.eye(K)[TRUTH], *others)))

    found = clean(y @ x.T, (y**2).sum(1))
    keep = np.array([0, 2, 3])
    expected = clean(y[keep] @ x.T, (y[keep] ** 2).sum(1))
    np.testing.assert_allclose(found.distances[keep], expected.distances, rtol=1e-6)


def test_membership_weights():
    labels, tasks = np.array([0, 0, 1, 0, 1, 1]), np.array([0, 1, 2, 1, 3, 2])
    weights = clustering.membership_weights(labels, tasks, 5, 2)
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3, 0, 0, 0], [0, 0, 2 / 3, 1 / 3, 0]])
    padded = clustering.membership_weights(labels, tasks, 5, 3)
    np.testing.assert_allclose(padded[2], np.array([1, 2, 2, 1, 0]) / 6)
    with pytest.raises(ValueError, match="2 clusters do not fit 1 members"):
        clustering.membership_weights(labels, tasks, 5, 1)


def test_diagnostics():
    truth, labels = np.array([0, 0, 1, 1, 1]), np.array([1, 1, 0, 0, 1])
    np.testing.assert_array_equal(clustering.confusion_matrix(labels, truth), [[0, 2], [2, 1]])
    assert clustering.purity(labels, truth) == 4 / 5
    assert clustering.adjusted_rand(labels, truth) == adjusted_rand_score(truth, labels)
    assert clustering.adjusted_rand(truth, 1 - truth) == 1
