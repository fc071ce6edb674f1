"""What the paper reports, and how it was read where it leaves something open."""

from __future__ import annotations

from tamherd_jax.registry.algorithms import ALGORITHMS

PAPER = {name: entry.paper.returns for name, entry in ALGORITHMS.items() if entry.paper is not None}
"""Tables 1 and 2 by algorithm: median over 10 seeds of the best return, by body and arm."""

PAPER_SEEDS = 10

AMBIGUITIES = (
    (
        "meta-batch",
        "5 sampled tasks per task and epoch (10 in `tuned-maml`): 20 for the single learner (40); a herd shares as many among "
        "its members, whatever their clusters hold",
    ),
    ("probe", "the single learner stopped after 10 epochs (8 in `quick`): the same key, so one training serves both"),
    (
        "size of the Fisher embedding",
        "exact: everything follows from inner products `sum_ts w_t w_s (g_t . g_s)^2`; no d x d matrix, no approximation",
    ),
    (
        "reward weight `r / max r`",
        "literal in the paper's presets; where the largest reward is at most 5% of the largest magnitude, `r / max abs(r)`, "
        "and how often is reported; none in `quick`, which finds the bodies",
    ),
    (
        "clustering",
        "Ward linkage on exact coordinates, K = 2; 40 training tasks; centroids are means; Frobenius distance in the paper's "
        "presets, of matrices scaled to unit norm in `quick`",
    ),
    ("test budget", "single and oracle learners explore 10 episodes; the herd 2 with the probe and 8 with the member"),
    ("steps", "the herd's curve starts after the probe's and the embedding's steps; the oracle is not charged for a probe"),
    (
        "baseline",
        "linear features, fitted per task and batch; garage's value network, which its code never trains, is "
        '`baseline="frozen"`',
    ),
    ("advantages", "divided by the standard deviation in `quick`; by the variance, as garage does, in the literal presets"),
    (
        "outer loss",
        "importance-weighted surrogate in `quick`; garage's log-likelihood in the literal presets (equal gradients)",
    ),
    (
        "action scale",
        "garage's 10: motors get `clip(a / 10, -1, 1)`, so that exploration starts at a tenth of full torque",
    ),
    (
        "walker",
        "alive bonus 1 a step, ends outside 0.8 to 2 m or beyond 1 rad, 4 x 0.002 s a step: **standing still scores 100**",
    ),
)
"""What the paper leaves open and what is done here; the report and the documentation show it as a table."""
