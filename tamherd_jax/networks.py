"""Networks of the shipped learners, as Flax Linen modules on unbatched inputs."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]

MIN_LOG_STD = float(np.log(np.float32(1e-6)))
TANH_LOG_STD_RANGE = (-20.0, 2.0)


class MLP(nn.Module):
    """Perceptron `x -> W_n act(... act(W_1 x + b_1)) + b_n` with a linear last layer.

    Attributes:
      sizes: width of every layer, the output's included.
      activation: applied after every layer but the last.
      kernel_init: initialiser of the weights.
      bias_init: initialiser of the biases.
      last_init: initialiser of the last layer's weights and biases, where it differs.
      layer_norm: whether a layer normalisation stands before every activation.
    """

    sizes: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros
    last_init: Initializer | None = None
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Output `[..., sizes[-1]]` for inputs `[..., F]`."""
        for i, size in enumerate(self.sizes):
            last = i + 1 == len(self.sizes)
            inits = (self.last_init, self.last_init) if last and self.last_init else (self.kernel_init, self.bias_init)
            x = nn.Dense(size, kernel_init=inits[0], bias_init=inits[1], name=f"layer_{i}")(x)
            if not last:
                x = nn.LayerNorm(name=f"norm_{i}")(x) if self.layer_norm else x
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


class ContextEncoder(nn.Module):
    """One transition's Gaussian factor of the belief about the task, `N(mean, diag var)`.

    Attributes:
      latent_size: Z.
      hidden_sizes: widths of the relu layers.

    Source: oyster `rlkit/torch/sac/agent.py`, whose floor under the variance is `product_of_gaussians`' here.
    """

    latent_size: int
    hidden_sizes: Sequence[int] = (200, 200, 200)

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance, each `[..., Z]`, for `[..., O]`, `[..., A]` and `[...]`."""
        x = jnp.concatenate([obs, action, reward[..., None]], axis=-1)
        mean, raw = jnp.split(_relu_mlp((*self.hidden_sizes, 2 * self.latent_size))(x), 2, axis=-1)
        return mean, nn.softplus(raw)


class LatentCritic(nn.Module):
    """Function of observation, latent and, for Q, action: `Q(s, a, z)` or `V(s, z)`, or what a value is read from.

    Attributes:
      hidden_sizes: widths of the relu layers.
      outputs: F, of the outputs.
      layer_norm: whether hidden layers are normalised.
    """

    hidden_sizes: Sequence[int] = (300, 300, 300)
    outputs: int = 1
    layer_norm: bool = False

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Outputs `[..., F]` for inputs `[..., F_i]`, concatenated in the order given."""
        x = jnp.concatenate(inputs, axis=-1)
        return _relu_mlp((*self.hidden_sizes, self.outputs), layer_norm=self.layer_norm)(x)


class TanhGaussianPolicy(nn.Module):
    """Gaussian before the squashing of `a = tanh(u)`, `u ~ N(mean(s), diag exp(2 log_std(s)))`.

    Attributes:
      action_size: A.
      hidden_sizes: widths of the relu layers shared by mean and log standard deviation.

    Source: oyster `rlkit/torch/sac/policies.py` (last layers within 1e-3, log standard deviation clipped to [-20, 2]).
    """

    action_size: int
    hidden_sizes: Sequence[int] = (300, 300, 300)

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation, each `[..., A]`, for observations with the latent appended, `[..., O + Z]`."""
        mean, log_std = jnp.split(_relu_mlp((*self.hidden_sizes, 2 * self.action_size), 1e-3)(obs), 2, axis=-1)
        return mean, jnp.clip(log_std, *TANH_LOG_STD_RANGE)


def perceptron_weights(layers: Mapping[str, Mapping[str, jax.Array]], outputs: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays `kernel_i` `[F, F']` and `bias_i` `[F']` of an `MLP`'s parameters.

    Args:
      layers: the parameters by layer.
      outputs: keep only so many outputs of the last layer.
    """
    last = len(layers) - 1
    return {
        f"{part}_{i}": np.asarray(layers[f"layer_{i}"][part])[..., : outputs if i == last else None]
        for i in range(len(layers))
        for part in ("kernel", "bias")
    }


def _relu_mlp(sizes: Sequence[int], last_bound: float = 3e-3, layer_norm: bool = False) -> MLP:
    """PEARL's perceptron: hidden weights within `1 / sqrt(outputs)`, hidden biases 0.1, the last layer within `last_bound`."""
    return MLP(
        sizes,
        activation=nn.relu,
        kernel_init=nn.initializers.variance_scaling(1.0 / 3.0, "fan_out", "uniform"),
        bias_init=nn.initializers.constant(0.1),
        last_init=_symmetric_uniform(last_bound),
        layer_norm=layer_norm,
        name="mlp",
    )


def _symmetric_uniform(bound: float) -> Initializer:
    """Initialiser `U(-bound, bound)`."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
