"""Networks of the shipped learners, as Flax Linen modules on unbatched inputs."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

MIN_LOG_STD = float(jnp.log(1e-6))


class MLP(nn.Module):
    """Perceptron `x -> W_n act(... act(W_1 x + b_1)) + b_n` with a linear last layer.

    Attributes:
      sizes: width of every layer, the output's included.
      activation: applied after every layer but the last.
      kernel_init: initialiser of the weights; biases start at zero.
    """

    sizes: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    kernel_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Output `[..., sizes[-1]]` for inputs `[..., F]`."""
        for i, size in enumerate(self.sizes):
            x = nn.Dense(size, kernel_init=self.kernel_init, name=f"layer_{i}")(x)
            if i + 1 < len(self.sizes):
                x = self.activation(x)
        return x


class GaussianPolicy(nn.Module):
    """Diagonal Gaussian `N(mean(s), diag exp(2 log_std))` with a state-independent, learned log standard deviation.

    Attributes:
      action_size: A.
      hidden_sizes: widths of the mean network's tanh layers.
      shared_log_std: one log standard deviation for all action dimensions (garage until May 2021) instead of one each.
      init_log_std: where it starts.

    Source: garage `torch/policies/gaussian_mlp_policy.py` (Xavier-uniform weights, zero biases, std clamped at 1e-6).
    """

    action_size: int
    hidden_sizes: Sequence[int] = (64, 64)
    shared_log_std: bool = False
    init_log_std: float = 0.0

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation, each `[..., A]`, for observations `[..., O]`."""
        mean = MLP((*self.hidden_sizes, self.action_size), name="mean")(obs)
        size = 1 if self.shared_log_std else self.action_size
        log_std = self.param("log_std", nn.initializers.constant(self.init_log_std), (size,))
        log_std = jnp.maximum(log_std, MIN_LOG_STD)
        return mean, jnp.broadcast_to(log_std, mean.shape)


class ValueNetwork(nn.Module):
    """State value `V(s)`, a tanh perceptron (garage's untrained MAML baseline has hidden sizes 32, 32)."""

    hidden_sizes: Sequence[int] = (32, 32)

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Values `[...]` for observations `[..., O]`."""
        return MLP((*self.hidden_sizes, 1), name="value")(obs)[..., 0]
