"""Diagonal Gaussians over actions, as functions of mean and log standard deviation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LOG_2PI = 1.8378770664093453


def sample_gaussian(key: jax.Array, mean: Float[Array, "*#b A"], log_std: Float[Array, "*#b A"]) -> Float[Array, "*b A"]:
    """Draw `mean + exp(log_std) * eps`, `eps ~ N(0, I)`; shape of `mean`."""
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)


def gaussian_log_prob(x: Float[Array, "*#b A"], mean: Float[Array, "*#b A"], log_std: Float[Array, "*#b A"]) -> jax.Array:
    """Log density `log N(x; mean, diag exp(2 log_std))`, summed over the last axis.

    Args:
      x, mean, log_std: `[..., A]`.

    Returns:
      `[...]`.
    """
    z = (x - mean) * jnp.exp(-log_std)
    return -0.5 * jnp.sum(z**2 + 2.0 * log_std + _LOG_2PI, axis=-1)


def gaussian_entropy(log_std: Float[Array, "*b A"]) -> Float[Array, " *b"]:
    """Differential entropy `sum log_std + log(2 pi e) / 2` in nats, summed over the last axis.

    Args:
      log_std: `[..., A]`.

    Returns:
      `[...]`.
    """
    return jnp.sum(log_std + 0.5 * (_LOG_2PI + 1.0), axis=-1)


def gaussian_kl(
    mean_p: Float[Array, "*#b A"],
    log_std_p: Float[Array, "*#b A"],
    mean_q: Float[Array, "*#b A"],
    log_std_q: Float[Array, "*#b A"],
) -> jax.Array:
    """Divergence `KL(p || q) = sum log(sq/sp) + (sp^2 + (mp - mq)^2) / (2 sq^2) - 1/2` of diagonal Gaussians.

    Args:
      mean_p, log_std_p, mean_q, log_std_q: `[..., A]`.

    Returns:
      `[...]`, zero exactly when both are equal.
    """
    # expm1 keeps the part due to the variances accurate near equality, where the line search reads it.
    delta = 2.0 * (log_std_p - log_std_q)
    variance_part = 0.5 * (jnp.expm1(delta) - delta)
    mean_part = 0.5 * ((mean_p - mean_q) * jnp.exp(-log_std_q)) ** 2
    return jnp.sum(variance_part + mean_part, axis=-1)
