"""Curvature of adapted Gaussian perceptron policies, written out: the fast form of `kernels.gauss_newton` for MAML.

`theta_m = theta - alpha grad l_m(theta)` are the parameters of the policy adapted to task m, `(mu, s)` its mean and log
standard deviation at the query observations. The Gauss-Newton product of the mean KL divergence over M tasks is

    `v -> sum_m D_m J_m^T G_m J_m D_m v`,   `D_m = I - alpha hess l_m(theta)`,   `J_m = d (mu, s) / d theta_m`,

`G_m` the Fisher information of the Gaussians. Activations and the products that do not depend on v are computed once. Of a
product there remain the matrix products it needs, each with its operands laid out as a CPU multiplies them fastest.

Axes: M tasks, B = R T steps of a task's episodes, O observation, F input and F' output of a layer, A action.

Source: Pearlmutter (1994) for the Hessian products; Schraudolph (2002) for the Gauss-Newton product.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tamherd_jax.maml.kernels import Linearization
from tamherd_jax.maml.over_tasks import map_tasks, sum_tasks
from tamherd_jax.networks import MIN_LOG_STD
from tamherd_jax.types import Params, PyTree

_matmul = functools.partial(jnp.matmul, precision="highest")


class Layer(NamedTuple):
    """Kernel `[F, F']` and bias `[F']` of a dense layer, or a derivative by them."""

    kernel: jax.Array
    bias: jax.Array


class Policy(NamedTuple):
    """A Gaussian policy, or a derivative by it: the layers of the mean, and the log standard deviation `[A]` or `[1]`."""

    layers: tuple[Layer, ...]
    log_std: jax.Array


class Outputs(NamedTuple):
    """Mean `[B, A]` and log standard deviation `[A]` or `[1]`, as the parameters have it, or a derivative by them."""

    mean: jax.Array
    log_std: jax.Array


class Activations(NamedTuple):
    """Inputs of every layer at B observations, as they are and as gradients need them.

    Attributes:
      inputs: `[B, F]` each.
      transposed: `[F + 1, B]` each, with a row of ones: one matrix product yields the gradients of kernel and bias.
    """

    inputs: tuple[jax.Array, ...]
    transposed: tuple[jax.Array, ...]


class InnerStep(NamedTuple):
    """An inner gradient step of one task: what products with the Hessian of its loss need.

    Attributes:
      policy: before the step.
      outputs: of that policy at the support observations.
      activations: there.
      deltas: `[B, F']` derivative of the loss by each layer's output.
      transposed: `[F', B]` deltas of all layers but the first.
      bends: `[B, F]` derivative of each hidden layer's delta by its activation h: `-2 h` times the derivative of the loss by h.
      data: of the loss.
    """

    policy: Policy
    outputs: Outputs
    activations: Activations
    deltas: tuple[jax.Array, ...]
    transposed: tuple[jax.Array, ...]
    bends: tuple[jax.Array, ...]
    data: PyTree


class AdaptedTask(NamedTuple):
    """A task's inner steps, its adapted policy's activations at the query observations, and the weights `[B]` of these."""

    steps: tuple[InnerStep, ...]
    adapted: Policy
    outputs: Outputs
    activations: Activations
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class AdaptedPolicies:
    """The map from a policy's parameters to the distributions of M policies adapted to a task each, and its linearisation.

    Equal to automatic differentiation of `kernels.adapt` and the policy network, to rounding.

    Attributes:
      loss: `(mean [B, A], log_std [B, A], data) -> []`, the inner loss of one task at its support observations.
      support_obs: `[M, B, O]`.
      support_data: leaves `[M, ...]`, the rest of the loss's data.
      query_obs: `[M, B', O]`.
      weights: `[M, B']` weights of the query observations in the mean KL divergence.
      step_size: alpha, `[]`.
      steps: number of inner steps, static.
      first_order: treat the inner gradient as a constant.
    """

    loss: Callable[[jax.Array, jax.Array, PyTree], jax.Array]
    support_obs: jax.Array
    support_data: PyTree
    query_obs: jax.Array
    weights: jax.Array
    step_size: float | jax.Array
    steps: int = 1
    first_order: bool = False

    def outputs(self, params: Params) -> tuple[jax.Array, jax.Array]:
        """Return means and log standard deviations of the adapted policies at the query observations, `[M, B', A]` each."""

        def one(*task: PyTree) -> tuple[jax.Array, jax.Array]:
            return _spread(self._adapt(split_policy(params), *task).outputs)

        return map_tasks(one, *self._tasks)

    def linearize(self, params: Params) -> Linearization:
        """Return `outputs(params)`, and products with `J^T` and `J^T G J`: J its Jacobian, G the weighted Fisher metric."""
        tasks = map_tasks(functools.partial(self._adapt, split_policy(params)), *self._tasks)

        def pullback(cotangent: tuple[jax.Array, jax.Array]) -> Params:
            def one(task: AdaptedTask, mean: jax.Array, log_std: jax.Array) -> Policy:
                return self._pull(task, _gather(Outputs(mean, log_std), task.outputs))

            return join_policy(sum_tasks(one, tasks, *cotangent))

        def product(vector: Params) -> Params:
            direction = split_policy(vector)

            def one(task: AdaptedTask) -> Policy:
                return self._pull(task, fisher_product(task.outputs, task.weights, self._push(task, direction)))

            return join_policy(sum_tasks(one, tasks))

        return Linearization(map_tasks(_spread, tasks.outputs), pullback, product)

    @property
    def _tasks(self) -> tuple[PyTree, ...]:
        """Data of all tasks, leaves `[M, ...]`."""
        return self.support_obs, self.support_data, self.query_obs, self.weights

    def _adapt(self, policy: Policy, obs: jax.Array, data: PyTree, query_obs: jax.Array, weights: jax.Array) -> AdaptedTask:
        """All that is computed once of one task."""
        steps = []
        for _ in range(self.steps):
            step, gradient = inner_step(self.loss, policy, obs, data)
            policy = _add_scaled(policy, -self.step_size, gradient)
            steps.append(step)
        outputs, activations = forward(policy, query_obs)
        return AdaptedTask(() if self.first_order else tuple(steps), policy, outputs, activations, weights)

    def _push(self, task: AdaptedTask, direction: Policy) -> Outputs:
        """`J_m D_m` times a direction of theta."""
        for step in task.steps:
            direction = _add_scaled(direction, -self.step_size, hessian_product(self.loss, step, direction))
        mean, _ = push_forward(task.adapted.layers, task.activations.inputs, direction.layers)
        return Outputs(mean, direction.log_std * _is_free(task.outputs.log_std))

    def _pull(self, task: AdaptedTask, cotangent: Outputs) -> Policy:
        """`D_m J_m^T` times a derivative by the outputs; D is symmetric."""
        layers = pull_back(task.adapted.layers, task.activations, cotangent.mean)
        gradient = Policy(layers, cotangent.log_std * _is_free(task.outputs.log_std))
        for step in reversed(task.steps):
            gradient = _add_scaled(gradient, -self.step_size, hessian_product(self.loss, step, gradient))
        return gradient


def split_policy(params: Params) -> Policy:
    """Return the arrays of `networks.GaussianPolicy`'s parameters in the order of its layers."""
    mean = params["params"]["mean"]
    layers = (mean[f"layer_{index}"] for index in range(len(mean)))
    return Policy(tuple(Layer(layer["kernel"], layer["bias"]) for layer in layers), params["params"]["log_std"])


def join_policy(policy: Policy) -> Params:
    """Invert `split_policy`."""
    mean = {f"layer_{index}": layer._asdict() for index, layer in enumerate(policy.layers)}
    return {"params": {"mean": mean, "log_std": policy.log_std}}


def forward(policy: Policy, obs: Float[Array, "B O"]) -> tuple[Outputs, Activations]:
    """Return the policy's outputs at observations `[B, O]`, and its activations."""
    inputs = [obs]
    *hidden, last = policy.layers
    for layer in hidden:
        inputs.append(jnp.tanh(_matmul(inputs[-1], layer.kernel) + layer.bias[None]))
    mean = _matmul(inputs[-1], last.kernel) + last.bias[None]
    return Outputs(mean, policy.log_std), Activations(tuple(inputs), tuple(map(_transpose_with_ones, inputs)))


def inner_step(
    loss: Callable[[jax.Array, jax.Array, PyTree], jax.Array], policy: Policy, obs: jax.Array, data: PyTree
) -> tuple[InnerStep, Policy]:
    """Return what products with the Hessian of a task's loss need, and the gradient of the loss, by back-propagation."""
    outputs, activations = forward(policy, obs)
    by_outputs = _loss_gradient(loss, data)(outputs)
    deltas = [by_outputs.mean]
    bends: list[jax.Array] = []
    for layer, hidden in zip(policy.layers[:0:-1], activations.inputs[:0:-1], strict=True):
        by_hidden = _matmul(deltas[0], layer.kernel.T)
        deltas.insert(0, by_hidden * (1.0 - hidden**2))
        bends.insert(0, -2.0 * hidden * by_hidden)
    layers = tuple(map(_layer_gradient, activations.transposed, deltas))
    transposed = tuple(delta.T for delta in deltas[1:])
    step = InnerStep(policy, outputs, activations, tuple(deltas), transposed, tuple(bends), data)
    return step, Policy(layers, by_outputs.log_std)


def push_forward(
    layers: tuple[Layer, ...], inputs: tuple[jax.Array, ...], direction: tuple[Layer, ...]
) -> tuple[jax.Array, list[jax.Array]]:
    """Return the derivatives of the mean `[B, A]` and of all hidden activations `[B, F]` along a direction of the layers."""
    tangent = _matmul(inputs[0], direction[0].kernel) + direction[0].bias[None]
    hidden = []
    for layer, value, change in zip(layers[1:], inputs[1:], direction[1:], strict=True):
        hidden.append(tangent * (1.0 - value**2))
        tangent = _matmul(hidden[-1], layer.kernel) + _matmul(value, change.kernel) + change.bias[None]
    return tangent, hidden


def pull_back(layers: tuple[Layer, ...], activations: Activations, delta: Float[Array, "B A"]) -> tuple[Layer, ...]:
    """Return the gradient by all layers for a derivative `[B, A]` by the mean."""
    gradient = [_layer_gradient(activations.transposed[-1], delta)]
    for index in range(len(layers) - 1, 0, -1):
        delta = _matmul(delta, layers[index].kernel.T) * (1.0 - activations.inputs[index] ** 2)
        gradient.insert(0, _layer_gradient(activations.transposed[index - 1], delta))
    return tuple(gradient)


def hessian_product(loss: Callable[[jax.Array, jax.Array, PyTree], jax.Array], step: InnerStep, direction: Policy) -> Policy:
    """Return the Hessian of a task's inner loss times a direction: the derivative of `inner_step`'s gradient along it."""
    mean, hidden = push_forward(step.policy.layers, step.activations.inputs, direction.layers)
    _, by_outputs = jax.jvp(_loss_gradient(loss, step.data), (step.outputs,), (Outputs(mean, direction.log_std),))
    delta = by_outputs.mean
    layers: list[Layer] = []
    for index in range(len(hidden), 0, -1):
        kernel, bias = _layer_gradient(step.activations.transposed[index], delta)
        # The barrier keeps XLA from multiplying in the transposed order, whose operands are strided.
        moved = jax.lax.optimization_barrier(_matmul(step.transposed[index - 1], hidden[index - 1]))
        layers.insert(0, Layer(kernel + moved.T, bias))
        by_hidden = _matmul(delta, step.policy.layers[index].kernel.T)
        by_hidden += _matmul(step.deltas[index], direction.layers[index].kernel.T)
        value = step.activations.inputs[index]
        delta = by_hidden * (1.0 - value**2) + step.bends[index - 1] * hidden[index - 1]
    layers.insert(0, _layer_gradient(step.activations.transposed[0], delta))
    return Policy(tuple(layers), by_outputs.log_std)


def fisher_product(outputs: Outputs, weights: Float[Array, " B"], tangent: Outputs) -> Outputs:
    """Return `G t`: for each observation `w exp(-2 s) dmu`, and `2 w ds` for each action dimension that s stands for."""
    precision = jnp.exp(-2.0 * jnp.maximum(outputs.log_std, MIN_LOG_STD))
    shared_by = outputs.mean.shape[-1] // outputs.log_std.size
    return Outputs(weights[:, None] * precision[None] * tangent.mean, 2.0 * shared_by * jnp.sum(weights) * tangent.log_std)


def _loss_gradient(loss: Callable[[jax.Array, jax.Array, PyTree], jax.Array], data: PyTree) -> Callable[[Outputs], Outputs]:
    """The gradient of an inner loss by a policy's outputs."""
    return jax.grad(lambda outputs: loss(*_spread(outputs), data))


def _spread(outputs: Outputs) -> tuple[jax.Array, jax.Array]:
    """Mean and log standard deviation, both `[B, A]`, as `networks.GaussianPolicy` returns them."""
    return outputs.mean, jnp.broadcast_to(jnp.maximum(outputs.log_std, MIN_LOG_STD), outputs.mean.shape)


def _gather(cotangent: Outputs, like: Outputs) -> Outputs:
    """The transpose of broadcasting: derivatives `[B, A]` by the log standard deviation summed over what it was copied to."""
    per_action = jnp.sum(cotangent.log_std, axis=0)
    shared = like.log_std.size < per_action.size
    return Outputs(cotangent.mean, jnp.sum(per_action, keepdims=True) if shared else per_action)


def _is_free(log_std: jax.Array) -> jax.Array:
    """1 where the log standard deviation is above its lower bound, else 0: the derivative of the bound."""
    return (log_std > MIN_LOG_STD).astype(log_std.dtype)


def _layer_gradient(transposed: Float[Array, "G B"], delta: Float[Array, "B F"]) -> Layer:
    """Gradient of a layer from its transposed inputs `[F + 1, B]` and the derivative by its output `[B, F']`."""
    gradient = _matmul(transposed, delta)
    return Layer(gradient[:-1], gradient[-1])


def _transpose_with_ones(inputs: Float[Array, "B F"]) -> Float[Array, "G B"]:
    """`[F + 1, B]` of `[B, F]`."""
    return jnp.concatenate([inputs.T, jnp.ones((1, len(inputs)), inputs.dtype)])


def _add_scaled(policy: Policy, scale: float | jax.Array, other: Policy) -> Policy:
    """`policy + scale * other`."""
    total: Policy = jax.tree.map(lambda a, b: a + scale * b, policy, other)
    return total
