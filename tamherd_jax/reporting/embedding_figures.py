"""Figures 3 and 4: embedded tasks in the plane, from Gram matrices alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from tamherd_jax.herd.clustering import coordinates, squared_distances

PERPLEXITY = 30


def embedding_figure(
    grams: Mapping[str, np.ndarray],
    task: np.ndarray,
    task_names: Sequence[str],
    projection: Literal["pca", "tsne"] = "pca",
) -> Figure:
    """Return one panel per embedding, a point per training task, coloured by task.

    Args:
      grams: title of the panel -> `[D, D]` inner products of the embedded training tasks.
      task: `[D]` index of each training task in the set.
      task_names: `[N]`.
      projection: `pca`, the first two principal coordinates; `tsne`, of the distances, with perplexity 30 (or as much
        as their number allows).
    """
    project = {"pca": principal_plane, "tsne": tsne_plane}[projection]
    figure = Figure(figsize=(3.8 * len(grams), 3.8), layout="constrained")
    axes = figure.subplots(1, len(grams), squeeze=False)
    for axis, (title, gram) in zip(axes[0], grams.items(), strict=True):
        points = project(gram)
        for index, name in enumerate(task_names):
            axis.scatter(*points[task == index].T, s=14, alpha=0.7, color=f"C{index}", label=name)
        axis.set(title=title, xticks=[], yticks=[])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(task_names), frameon=False)
    return figure


def principal_plane(gram: np.ndarray) -> np.ndarray:
    """First two principal coordinates `[D, 2]` of the points of a Gram `[D, D]`, by its centred eigenvectors."""
    points = coordinates(gram)[:, :2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def tsne_plane(gram: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE `[D, 2]` of the distances between the points of a Gram `[D, D]`."""
    distances = np.sqrt(squared_distances(gram))
    scale = distances.max()
    perplexity = min(PERPLEXITY, (len(gram) - 1) / 3)
    model = TSNE(metric="precomputed", init="random", perplexity=perplexity, random_state=seed)
    return model.fit_transform(distances / scale if scale > 0 else distances)
