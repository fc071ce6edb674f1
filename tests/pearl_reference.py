"""PEARL's gradient step written again in plain numpy, from oyster's description; derivatives by complex steps.

Every loss is a function of a flat parameter vector. A perturbation of 1e-30 i has no cancellation, so `Im f / 1e-30` is the
derivative to the last digits. `relu`, `min` and `clip` look at the real part.
"""

import numpy as np
from scipy import stats

STEP = 1e-30
LOG_2PI = np.log(2 * np.pi)


def relu(x):
    return x * (x.real > 0)


def layers_of(variables):
    """Kernel and bias of every layer of a network, in order, with scale and offset where a normalisation follows."""
    tree = variables["params"]["mlp"]
    names = [("layer", "kernel"), ("layer", "bias"), ("norm", "scale"), ("norm", "bias")]
    depth = sum(name.startswith("layer") for name in tree)
    return [tuple(np.asarray(tree[f"{kind}_{i}"][n]) for kind, n in names if f"{kind}_{i}" in tree) for i in range(depth)]


def flatten(layers):
    return np.concatenate([array.ravel() for layer in layers for array in layer])


def unflatten(vector, layers):
    out, start = [], 0
    for layer in layers:
        new = []
        for array in layer:
            new.append(vector[start : start + array.size].reshape(array.shape))
            start += array.size
        out.append(tuple(new))
    return out


def normalised(x, scale, offset):
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return scale * centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-6) + offset


def mlp(layers, x):
    for kernel, bias, *norm in layers[:-1]:
        x = x @ kernel + bias
        x = relu(normalised(x, *norm) if norm else x)
    return x @ layers[-1][0] + layers[-1][1]


def gradient(loss, layers):
    """Gradient of `loss(layers)` as a flat vector."""
    start = flatten(layers)
    out = np.zeros(start.size)
    for i in range(start.size):
        moved = start.astype(complex)
        moved[i] += STEP * 1j
        out[i] = loss(unflatten(moved, layers)).imag / STEP
    return out


def posterior(encoder, context):
    """Mean and variance of one task, factor by factor."""
    mean_sum = precision = 0
    for obs, action, reward in zip(context["obs"], context["action"], context["reward"], strict=True):
        out = mlp(encoder, np.concatenate([obs, action, [reward]]))
        size = out.size // 2
        var = np.log1p(np.exp(out[size:]))
        precision = precision + 1 / var
        mean_sum = mean_sum + out[:size] / var
    return mean_sum / precision, 1 / precision


def latents(encoder, batch):
    """Per task: latent, and its divergence from the prior."""
    zs, kl = [], 0
    for m in range(batch["latent_noise"].shape[0]):
        mean, var = posterior(encoder, {name: leaf[m] for name, leaf in batch["context"].items()})
        zs.append(mean + np.sqrt(var) * batch["latent_noise"][m])
        kl = kl + 0.5 * np.sum(var + mean**2 - 1 - np.log(var))
    return np.stack(zs), kl


def flat_data(batch, z):
    """Transitions of all tasks side by side, each with its task's latent."""
    data = {name: leaf.reshape(-1, *leaf.shape[2:]) for name, leaf in batch["transitions"].items()}
    return data, np.repeat(z, batch["transitions"]["reward"].shape[1], axis=0)


def outputs(layers, *inputs):
    return mlp(layers, np.concatenate(inputs, axis=1))


def value_of(out, c):
    """The value that a critic's outputs stand for."""
    if c.critic_loss == "squared":
        return out[:, 0]
    width = 2 * c.value_limit / c.value_bins
    centres = -c.value_limit + width * (np.arange(c.value_bins) + 0.5)
    weight = np.exp(out - np.max(out.real, axis=1, keepdims=True))
    return (weight @ centres) / np.sum(weight, axis=1)


def loss_of(out, target, c):
    """Mean loss of a critic's outputs, bin by bin."""
    if c.critic_loss == "squared":
        return np.mean((out[:, 0] - target) ** 2)
    width = 2 * c.value_limit / c.value_bins
    edges = -c.value_limit + width * np.arange(c.value_bins + 1)
    log_total, total = np.log(np.sum(np.exp(out), axis=1)), 0
    for row, y in enumerate(np.clip(target, -c.value_limit, c.value_limit)):
        mass = np.diff(stats.norm.cdf(edges, y, 0.75 * width))
        total = total - np.sum(mass / mass.sum() * (out[row] - log_total[row]))
    return total / len(target)


def critic_objective(encoder, qs, target, actor, batch, c):
    z, kl = latents(encoder, batch)
    data, z = flat_data(batch, z)
    if c.bootstrap == "value":
        next_value = value_of(outputs(target, data["next_obs"], z.real), c)
    else:
        min_q, log_prob, *_ = fresh(actor, target, data["next_obs"], z.real, batch["next_noise"], c)
        next_value = min_q - c.temperature * log_prob
    reward = c.reward_scale * data["reward"] / batch["reward_unit"]
    y = (reward + (1 - data["terminated"]) * c.discount * next_value).real
    loss = sum(loss_of(outputs(q, data["obs"], data["action"], z), y, c) for q in qs)
    return loss + c.kl_weight * kl


def fresh(actor, qs, obs, z, noise, c):
    """Fresh actions of the policy and what is made of them."""
    out = mlp(actor, np.concatenate([obs, z], axis=1))
    size = out.shape[1] // 2
    mean, log_std = out[:, :size], out[:, size:]
    assert np.all(np.abs(log_std.real) < 2)  # within the clip
    noise = noise.reshape(mean.shape)
    u = mean + np.exp(log_std) * noise
    log_normal = -0.5 * np.sum(noise**2 + 2 * log_std + LOG_2PI, axis=1)
    slope = 1 - np.tanh(u) ** 2 + (1e-6 if c.squash == "clipped" else 0)
    q = [value_of(outputs(layers, obs, np.tanh(u), z), c) for layers in qs]
    return np.where(q[0].real < q[1].real, q[0], q[1]), log_normal - np.sum(np.log(slope), axis=1), mean, log_std, u


def act(actor, qs, z, batch, c):
    """Fresh actions in the batch's own states."""
    data, z = flat_data(batch, z)
    return fresh(actor, qs, data["obs"], z, batch["action_noise"], c)


def actor_objective(actor, qs, z, batch, c):
    min_q, log_prob, mean, log_std, u = act(actor, qs, z, batch, c)
    regular = c.mean_weight * np.mean(mean**2) + c.log_std_weight * np.mean(log_std**2)
    return np.mean(c.temperature * log_prob - min_q) + regular + c.pre_tanh_weight * np.mean(np.sum(u**2, axis=1))


def value_objective(value, min_q, log_prob, z, batch, c):
    data, z = flat_data(batch, z)
    return loss_of(outputs(value, data["obs"], z), (min_q - c.temperature * log_prob).real, c)


class Adam:
    """Adam with its default decays for one network."""

    def __init__(self, rate):
        self.rate, self.count, self.first, self.second = rate, 0, 0.0, 0.0

    def __call__(self, layers, grad):
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * grad
        self.second = 0.999 * self.second + 0.001 * grad**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return unflatten(flatten(layers) - self.rate * first / (np.sqrt(second) + 1e-8), layers)


class Reference:
    """The state of all networks, stepped in place."""

    def __init__(self, state, config):
        params = state.params
        self.config, self.has_value = config, params.value is not None
        self.nets = {name: layers_of(getattr(params, name)) for name in ("encoder", "actor")}
        self.nets |= {f"q{i}": layers_of(row_of(params.critic, i)) for i in range(2)}
        if self.has_value:
            self.nets["value"], self.target = layers_of(params.value), layers_of(state.target_value)
        else:
            self.target = [layers_of(row_of(state.target_value, i)) for i in range(2)]
        self.adam = {name: Adam(config.learning_rate) for name in self.nets}

    def gradients_of_critic_and_encoder(self, batch):
        n = self.nets

        def loss(encoder, *qs):
            return critic_objective(encoder, qs, self.target, n["actor"], batch, self.config)

        return {
            "encoder": gradient(lambda e: loss(e, n["q0"], n["q1"]), n["encoder"]),
            "q0": gradient(lambda q: loss(n["encoder"], q, n["q1"]), n["q0"]),
            "q1": gradient(lambda q: loss(n["encoder"], n["q0"], q), n["q1"]),
        }

    def step(self, batch, policy=True):
        n, c = self.nets, self.config
        z = latents(n["encoder"], batch)[0].real
        self.apply(self.gradients_of_critic_and_encoder(batch))
        if policy:
            qs = (n["q0"], n["q1"])
            min_q, log_prob, *_ = act(n["actor"], qs, z, batch, c)
            moves = {"actor": gradient(lambda a: actor_objective(a, qs, z, batch, c), n["actor"])}
            if self.has_value:
                moves["value"] = gradient(lambda v: value_objective(v, min_q, log_prob, z, batch, c), n["value"])
            self.apply(moves)
        if not self.has_value:
            self.target = [self.followed(old, n[f"q{i}"]) for i, old in enumerate(self.target)]
        elif policy:
            self.target = self.followed(self.target, n["value"])

    def followed(self, old, new):
        tau = self.config.target_rate
        return unflatten((1 - tau) * flatten(old) + tau * flatten(new), old)

    def apply(self, gradients):
        for name, grad in gradients.items():
            self.nets[name] = self.adam[name](self.nets[name], grad)


def row_of(variables, i):
    """One of two networks."""
    tree = variables["params"]["mlp"]
    return {"params": {"mlp": {layer: {name: array[i] for name, array in leaves.items()} for layer, leaves in tree.items()}}}
