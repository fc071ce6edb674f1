"""MAML's meta-gradient and trust-region step in PyTorch, as a peer: `torch.func`, batched over tasks, the same sizes and steps.

Written for this comparison in PyTorch's current idiom, faster than the loops over tasks of older code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.func import functional_call, grad, vmap

Params = dict[str, torch.Tensor]


class Policy(torch.nn.Module):
    """Diagonal Gaussian with a 64-64 tanh mean and a log standard deviation of its own."""

    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.mean = torch.nn.Sequential(
            torch.nn.Linear(observations, 64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, 64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, actions),
        )
        self.log_std = torch.nn.Parameter(torch.zeros(actions))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation."""
        mean = self.mean(obs)
        return mean, self.log_std.expand_as(mean)


class TorchMAML:
    """One meta-batch of random data, before and after adaptation; one inner step of size 0.1."""

    def __init__(self, tasks: int, episodes: int, steps: int, observations: int, actions: int):
        torch.manual_seed(0)
        self.policy = Policy(observations, actions)
        self.params: Params = {name: p.detach() for name, p in self.policy.named_parameters()}
        count = episodes * steps
        self.support, self.query = (
            (torch.randn(tasks, count, observations), torch.randn(tasks, count, actions), torch.randn(tasks, count))
            for _ in range(2)
        )

    def inner_loss(self, params: Params, obs: torch.Tensor, actions: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """`-mean log pi(a|s) A` of one task."""
        return -(log_prob(actions, *functional_call(self.policy, params, obs)) * advantages).mean()

    def outputs(self, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
        """Distributions of every task's adapted policy on its query observations."""

        def one(support: tuple[torch.Tensor, ...], obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            gradient = grad(self.inner_loss)(params, *support)
            adapted = {name: params[name] - 0.1 * gradient[name] for name in params}
            out: tuple[torch.Tensor, torch.Tensor] = functional_call(self.policy, adapted, obs)
            return out

        out: tuple[torch.Tensor, torch.Tensor] = vmap(one)(self.support, self.query[0])
        return out

    def loss(self, params: Params) -> torch.Tensor:
        """Outer loss."""
        return self.loss_of(self.outputs(params))

    def loss_of(self, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Outer loss of the distributions."""
        return -(log_prob(self.query[1], *outputs) * self.query[2]).mean()

    def meta_gradient(self) -> float:
        """Gradient of the outer loss; its sum, so that it is computed."""
        return float(sum(g.sum() for g in grad(self.loss)(self.params).values()))

    def trust_region_step(self) -> float:
        """Direction by 10 steps of conjugate gradient, then the line search; the loss it ends with."""
        theta = {name: p.clone().requires_grad_() for name, p in self.params.items()}
        outputs = self.outputs(theta)
        loss = self.loss_of(outputs)
        gradient = flatten_all(torch.autograd.grad(loss, list(theta.values()), retain_graph=True))
        product = self.curvature(outputs, theta)
        direction = conjugate_gradient(product, gradient)
        size = math.sqrt(0.02 / (float(direction @ product(direction)) + 1e-8))
        old = (outputs[0].detach(), outputs[1].detach())
        flat = flatten_all(self.params.values())
        with torch.no_grad():
            for backtracks in range(15):
                new = self.outputs(self.unflatten(flat - 0.8**backtracks * size * direction))
                after = float(self.loss_of(new))
                if after < float(loss) and float(kl(old, new)) <= 0.01:
                    return after
        return float(loss)

    def curvature(self, outputs: tuple[torch.Tensor, ...], theta: Params) -> Callable[[torch.Tensor], torch.Tensor]:
        """Damped products with the curvature of the mean KL divergence, `J^T G J v`; the graph of J is built once.

        J v is the derivative of the pullback `J^T u` with respect to u: two backward passes a product, nothing recomputed.
        """
        params = list(theta.values())
        dummies = [torch.zeros_like(out, requires_grad=True) for out in outputs]
        pullback = torch.autograd.grad(outputs, params, dummies, create_graph=True)
        precision, count = torch.exp(-2 * outputs[1].detach()), outputs[0][..., 0].numel()

        def product(vector: torch.Tensor) -> torch.Tensor:
            mean, log_std = torch.autograd.grad(pullback, dummies, list(self.unflatten(vector).values()), retain_graph=True)
            cotangent = (precision * mean / count, 2 * log_std / count)
            return flatten_all(torch.autograd.grad(outputs, params, cotangent, retain_graph=True)) + 1e-5 * vector

        return product

    def unflatten(self, flat: torch.Tensor) -> Params:
        """Parameters from one vector."""
        parts = flat.split([p.numel() for p in self.params.values()])
        return {name: part.view_as(p) for (name, p), part in zip(self.params.items(), parts, strict=True)}


def flatten_all(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def log_prob(actions: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log density of a diagonal Gaussian."""
    z = (actions - mean) * torch.exp(-log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def kl(old: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean divergence of diagonal Gaussians."""
    ratio = torch.exp(2 * (old[1] - new[1])) + ((old[0] - new[0]) * torch.exp(-new[1])) ** 2
    return (0.5 * (ratio - 1) + new[1] - old[1]).sum(-1).mean()


def conjugate_gradient(product: Callable[[torch.Tensor], torch.Tensor], b: torch.Tensor, iterations: int = 10) -> torch.Tensor:
    """Ten steps from zero, as `tamherd_jax.maml.conjugate_gradient`."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    rr = residual @ residual
    for _ in range(iterations):
        image = product(direction)
        alpha = rr / (direction @ image)
        x, residual = x + alpha * direction, residual - alpha * image
        new = residual @ residual
        if new < 1e-10:
            break
        direction, rr = residual + new / rr * direction, new
    return x
