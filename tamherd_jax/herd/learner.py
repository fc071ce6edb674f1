"""Names that moved to `tamherd_jax.types`."""

from tamherd_jax.types import EpochMetrics, LatentLearner, MetaLearner, ReplayLearner

__all__ = ["EpochMetrics", "LatentLearner", "MetaLearner", "ReplayLearner"]
