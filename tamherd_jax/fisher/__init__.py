"""Fisher information matrices of a parametric density, and inner products between them, without forming one.

A weighted Fisher matrix is `F = sum_t w_t g_t g_t^T` with scores `g_t = grad_theta log p(y_t | x_t)`. `scores` computes the
scores of samples, `gram` inner products of matrices of samples, `moments` those of expectations over outputs. Nothing here
knows of environments, policies or herds.
"""

from tamherd_jax.fisher.gram import factor_gram, factor_kernel, fisher_gram, gram_norms
from tamherd_jax.fisher.moments import jacobian_gram, moments_are_cheaper
from tamherd_jax.fisher.scores import (
    JacobianFactors,
    ScoreFactors,
    dense_scores,
    depends_on_input,
    diagonal_fisher,
    factor_diagonal,
    flatten_samples,
    gaussian_factors,
    group_rows,
    score_factors,
    score_gradients,
)

__all__ = [
    "JacobianFactors",
    "ScoreFactors",
    "dense_scores",
    "depends_on_input",
    "diagonal_fisher",
    "factor_diagonal",
    "factor_gram",
    "factor_kernel",
    "fisher_gram",
    "flatten_samples",
    "gaussian_factors",
    "gram_norms",
    "group_rows",
    "jacobian_gram",
    "moments_are_cheaper",
    "score_factors",
    "score_gradients",
]
