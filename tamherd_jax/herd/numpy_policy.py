"""An adapted policy in NumPy alone: weights by name, and the forward pass.

This file imports nothing but NumPy, so that it can be copied to where a policy has to act without JAX. `weights` is what
`AdaptedPolicy.export()` returns, or `np.load` of a file that `np.savez` made of it:

- `kernel_i` `[F, F']` and `bias_i` `[F']` of layer i;
- `context` `[Z]`, which is appended to the observation: PEARL's latent, empty for MAML;
- `log_std` `[A]`, of the noise of the actions; minus infinity for a policy that acts without noise;
- `rectified` `[]`, whether hidden layers are rectified linear units rather than hyperbolic tangents;
- `squashed` `[]`, whether the hyperbolic tangent of the last layer is the action.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def forward(weights: Mapping[str, np.ndarray], obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation `[..., A]` of the policy's actions at observations `[..., O]`.

    An action is `mean + std * rng.standard_normal(mean.shape)`. The package's environments divide it by their expected action
    scale and clip it to [-1, 1].
    """
    context = weights["context"]
    x = np.concatenate([obs, np.broadcast_to(context, (*np.shape(obs)[:-1], *context.shape))], axis=-1)
    layers = sum(name.startswith("kernel_") for name in weights)
    for layer in range(layers):
        x = x @ weights[f"kernel_{layer}"] + weights[f"bias_{layer}"]
        if layer < layers - 1:
            x = np.maximum(x, 0.0) if weights["rectified"] else np.tanh(x)
    mean = np.tanh(x) if weights["squashed"] else x
    return mean, np.broadcast_to(np.exp(weights["log_std"]), mean.shape)
