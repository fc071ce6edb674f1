"""Model-agnostic meta-learning: reusable kernels, the trust-region step, and the learner built from them."""

from tamherd_jax.maml.advantages import discounted_returns, generalized_advantages, masked_mean, normalize_advantages
from tamherd_jax.maml.baseline import linear_baseline, linear_features
from tamherd_jax.maml.kernels import adapt, conjugate_gradient, gauss_newton, hvp, meta_gradient, meta_loss
from tamherd_jax.maml.learner import MAML, MAMLConfig, MAMLState
from tamherd_jax.maml.trpo import TRPOConfig, TRPOInfo, trpo_step

__all__ = [
    "MAML",
    "MAMLConfig",
    "MAMLState",
    "TRPOConfig",
    "TRPOInfo",
    "adapt",
    "conjugate_gradient",
    "discounted_returns",
    "gauss_newton",
    "generalized_advantages",
    "hvp",
    "linear_baseline",
    "linear_features",
    "masked_mean",
    "meta_gradient",
    "meta_loss",
    "normalize_advantages",
    "trpo_step",
]
