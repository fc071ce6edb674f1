"""PEARL's gradient step written again in plain numpy, from oyster's description; derivatives by complex steps.

Every loss is a function of a flat parameter vector. A perturbation of 1e-30 i has no cancellation, so `Im f / 1e-30` is the
derivative to the last digits. `relu`, `min` and `clip` look at the real part.
"""

import numpy as np

STEP = 1e-30
LOG_2PI = np.log(2 * np.pi)


def relu(x):
    return x * (x.real > 0)


def layers_of(variables):
    """Kernels and biases of a network, in order."""
    tree = variables["params"]["mlp"]
    return [(np.asarray(tree[f"layer_{i}"]["kernel"]), np.asarray(tree[f"layer_{i}"]["bias"])) for i in range(len(tree))]


def flatten(layers):
    return np.concatenate([array.ravel() for layer in layers for array in layer])


def unflatten(vector, layers):
    out, start = [], 0
    for kernel, bias in layers:
        middle, stop = start + kernel.size, start + kernel.size + bias.size
        out.append((vector[start:middle].reshape(kernel.shape), vector[middle:stop]))
        start = stop
    return out


def mlp(layers, x):
    for kernel, bias in layers[:-1]:
        x = relu(x @ kernel + bias)
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


def scalar(layers, *inputs):
    return mlp(layers, np.concatenate(inputs, axis=1))[:, 0]


def critic_objective(encoder, qs, target, batch, c):
    z, kl = latents(encoder, batch)
    data, z = flat_data(batch, z)
    next_value = scalar(target, data["next_obs"], z.real)
    y = c.reward_scale * data["reward"] + (1 - data["terminated"]) * c.discount * next_value
    loss = sum(np.mean((scalar(q, data["obs"], data["action"], z) - y) ** 2) for q in qs)
    return loss + c.kl_weight * kl


def act(actor, qs, z, batch):
    """Fresh actions of the policy and what its losses need of them."""
    data, z = flat_data(batch, z)
    out = mlp(actor, np.concatenate([data["obs"], z], axis=1))
    size = out.shape[1] // 2
    mean, log_std = out[:, :size], out[:, size:]
    assert np.all(np.abs(log_std.real) < 2)  # within the clip
    noise = batch["action_noise"].reshape(mean.shape)
    u = mean + np.exp(log_std) * noise
    log_normal = -0.5 * np.sum(noise**2 + 2 * log_std + LOG_2PI, axis=1)
    log_prob = log_normal - np.sum(np.log(1 - np.tanh(u) ** 2 + 1e-6), axis=1)
    q = [scalar(layers, data["obs"], np.tanh(u), z) for layers in qs]
    return np.where(q[0].real < q[1].real, q[0], q[1]), log_prob, mean, log_std, u


def actor_objective(actor, qs, z, batch, c):
    min_q, log_prob, mean, log_std, u = act(actor, qs, z, batch)
    regular = c.mean_weight * np.mean(mean**2) + c.log_std_weight * np.mean(log_std**2)
    return np.mean(log_prob - min_q) + regular + c.pre_tanh_weight * np.mean(np.sum(u**2, axis=1))


def value_objective(value, min_q, log_prob, z, batch):
    data, z = flat_data(batch, z)
    return np.mean((scalar(value, data["obs"], z) - (min_q - log_prob)) ** 2)


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
        pick = lambda tree, i: {"params": {"mlp": {k: {n: a[i] for n, a in v.items()} for k, v in tree.items()}}}  # noqa: E731
        self.config = config
        self.nets = {name: layers_of(getattr(params, name)) for name in ("encoder", "value", "actor")}
        self.nets |= {f"q{i}": layers_of(pick(params.critic["params"]["mlp"], i)) for i in range(2)}
        self.target = layers_of(state.target)
        self.adam = {name: Adam(config.learning_rate) for name in self.nets}

    def gradients_of_critic_and_encoder(self, batch):
        n, c = self.nets, self.config
        return {
            "encoder": gradient(lambda e: critic_objective(e, (n["q0"], n["q1"]), self.target, batch, c), n["encoder"]),
            "q0": gradient(lambda q: critic_objective(n["encoder"], (q, n["q1"]), self.target, batch, c), n["q0"]),
            "q1": gradient(lambda q: critic_objective(n["encoder"], (n["q0"], q), self.target, batch, c), n["q1"]),
        }

    def step(self, batch):
        n, c = self.nets, self.config
        z = latents(n["encoder"], batch)[0].real
        self.apply(self.gradients_of_critic_and_encoder(batch))
        qs = (n["q0"], n["q1"])
        min_q, log_prob, *_ = act(n["actor"], qs, z, batch)
        self.apply(
            {
                "value": gradient(lambda v: value_objective(v, min_q, log_prob, z, batch), n["value"]),
                "actor": gradient(lambda a: actor_objective(a, qs, z, batch, c), n["actor"]),
            }
        )
        tau = c.target_rate
        mixed = (1 - tau) * flatten(self.target) + tau * flatten(n["value"])
        self.target = unflatten(mixed, self.target)

    def apply(self, gradients):
        for name, grad in gradients.items():
            self.nets[name] = self.adam[name](self.nets[name], grad)
