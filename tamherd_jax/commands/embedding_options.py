"""Options on embeddings and clustering that commands share."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from tamherd_jax.commands.options import listed, one_of, option
from tamherd_jax.registry.choices import CLUSTERING_METHODS, METRICS, REWARD_WEIGHTS, SELECTIONS

NORMALISATION = listed("Reward weights of an embedding", REWARD_WEIGHTS)


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions:
    """How tasks are embedded and clustered. Where an option is left out, the preset or the run decides."""

    normalisation: Annotated[str | None, one_of(REWARD_WEIGHTS), option("NAME", NORMALISATION)] = None
    metric: Annotated[str | None, one_of(METRICS), option("NAME", listed("Distance of embeddings", METRICS))] = None
    linkage: Annotated[str | None, one_of(CLUSTERING_METHODS), option("NAME", listed("Clustering", CLUSTERING_METHODS))] = None
    clusters: Annotated[int | Literal["auto"] | None, option("N|auto")] = None
    """Number of clusters, or auto to choose it from the embeddings, for each seed by itself."""
    choose_by: Annotated[str | None, one_of(SELECTIONS), option("NAME", listed("What auto maximises", SELECTIONS))] = None

    def clustering(self, base: Any) -> Any:
        """`base`, a `ClusteringConfig`, with what was asked for.

        Raises:
          ValueError: a value is unknown or does not go with the others.
        """
        asked = {"method": self.linkage, "clusters": self.clusters, "selection": self.choose_by}
        if self.linkage == "hdbscan" and self.clusters is None:
            asked["clusters"] = "auto"  # the only number it can have
        if self.choose_by is not None and (self.clusters or base.clusters) != "auto":
            raise ValueError("--choose-by says how auto chooses; it needs --clusters auto")
        return dataclasses.replace(base, **{name: value for name, value in asked.items() if value is not None})

    def embedding_config(self, name: str | None, base: Any) -> Any:
        """`base`, an `EmbeddingConfig`, or the embedding called `name` with its reward weights and metric as far as it has any.

        Raises:
          ValueError: a value is unknown or does not go with the others.
        """
        from tamherd_jax.herd.embeddings import named_embedding

        asked = {"reward": self.normalisation, "metric": self.metric}
        if name is None:
            return dataclasses.replace(base, **{field: value for field, value in asked.items() if value is not None})
        if named_embedding(name).kind != "latent":  # a latent has no reward weights, and its metric is in its name
            asked = {field: value or getattr(base, field) for field, value in asked.items()}
        return named_embedding(name, **asked)
