"""The belief about a task: a product of Gaussian factors, one for each transition seen."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

MIN_FACTOR_VARIANCE = 1e-7
"""Of one transition's factor (oyster)."""


def product_of_gaussians(
    mean: Float[Array, "n Z"], var: Float[Array, "n Z"], valid: Shaped[Array, " n"] | None = None
) -> tuple[Float[Array, " Z"], Float[Array, " Z"]]:
    """Normalised product of n diagonal Gaussians: `1/v = sum_n 1/v_n`, `m = v sum_n m_n/v_n`, with each `v_n` at least 1e-7.

    Args:
      mean: `[n, Z]` of the factors.
      var: `[n, Z]` of the factors.
      valid: `[n]` 1 for the factors that count, all if None.

    Returns:
      Mean and variance, each `[Z]`; of the prior N(0, I) where no factor counts. There is no prior factor otherwise.

    Source: oyster `rlkit/torch/sac/agent.py`; Rakelly et al. (2019), equation 4.
    """
    precision = 1.0 / jnp.maximum(var, MIN_FACTOR_VARIANCE)
    if valid is not None:
        precision = jnp.where(valid[:, None] > 0, precision, 0.0)
        mean = jnp.where(valid[:, None] > 0, mean, 0.0)
    total = jnp.sum(precision, axis=0)
    known = total > 0
    scale = 1.0 / jnp.where(known, total, 1.0)
    return jnp.where(known, scale * jnp.sum(precision * mean, axis=0), 0.0), scale


def kl_from_prior(mean: Float[Array, "*b Z"], var: Float[Array, "*b Z"]) -> Float[Array, " *b"]:
    """Divergence `KL(N(mean, diag var) || N(0, I)) = sum_z (var + mean^2 - 1 - log var) / 2`, `[..., Z]` to `[...]`."""
    return 0.5 * jnp.sum(var + mean**2 - 1.0 - jnp.log(var), axis=-1)


def latent_from_noise(
    mean: Float[Array, "*#b Z"], var: Float[Array, "*#b Z"], noise: Float[Array, "*#b Z"]
) -> Float[Array, "... Z"]:
    """Reparameterised draw `z = mean + sqrt(var) noise` with standard normal `noise`, all `[..., Z]`."""
    return mean + jnp.sqrt(var) * noise
