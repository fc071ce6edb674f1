"""Floating-point operations of a traced program.

XLA's own count (`compiled.cost_analysis()`, kept in the result files) takes the body of a loop once whatever its length; an
epoch is one loop over time steps. Here loops of known length are multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Count(NamedTuple):
    """Operations, and whether that is all of them: False with a loop of unknown length or a call to code outside of JAX."""

    operations: float
    complete: bool

    def __add__(self, other: Any) -> Count:
        """Return the count of two programs, one after the other."""
        return Count(self.operations + other.operations, self.complete and other.complete)

    def times(self, factor: float) -> Count:
        """Return the count of a program that runs `factor` times."""
        return Count(self.operations * factor, self.complete)


NOTHING = Count(0.0, True)

# Primitives that move or select numbers and compute none.
_MOVES = frozenset(
    [
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "slice",
        "dynamic_slice",
        "dynamic_update_slice",
        "concatenate",
        "gather",
        "scatter",
        "pad",
        "squeeze",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "iota",
        "rev",
        "select_n",
        "stop_gradient",
        "expand_dims",
        "sort",
        "real",
        "imag",
        "split",
        "bitcast_convert_type",
        "get",
        "swap",
        "optimization_barrier",
        "random_wrap",
        "random_unwrap",
    ]
)
_CALLS_OUT = frozenset(
    ["pure_callback", "io_callback", "debug_callback", "ffi_call", "eigh", "eig", "svd", "qr", "householder_product", "schur"]
)


def count_operations(jaxpr: core.Jaxpr) -> Count:
    """Floating-point operations of a jaxpr, one for each addition, product, comparison or function value."""
    return sum((_of_equation(equation) for equation in jaxpr.eqns), NOTHING)


def _of_equation(equation: Any) -> Count:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return count_operations(params["jaxpr"].jaxpr).times(params["length"])
    if name == "while":
        once = count_operations(params["cond_jaxpr"].jaxpr) + count_operations(params["body_jaxpr"].jaxpr)
        return Count(once.operations, False)
    if name == "cond":
        return max(count_operations(branch.jaxpr) for branch in params["branches"])
    if name == "planar_step":  # its default form
        default = jax.make_jaxpr(params["default"])
        return count_operations(default(*jax.tree.unflatten(params["structure"], [v.aval for v in equation.invars])).jaxpr)
    if name == "pallas_call":
        return count_operations(_open(params["jaxpr"])).times(math.prod(params["grid_mapping"].grid))
    if name in _CALLS_OUT:
        return Count(0.0, False)
    inner = list(_inner_jaxprs(params))
    if inner:
        return sum(map(count_operations, inner), NOTHING)
    return Count(_of_primitive(name, equation), True)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            yield _open(value)


def _open(jaxpr: Any) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _of_primitive(name: str, equation: Any) -> float:
    out: Any = equation.outvars[0].aval
    first: Any = equation.invars[0].aval if equation.invars else None
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * out.size * math.prod(first.shape[i] for i in contracted)
    if name in ("cholesky", "lu"):
        return first.size * first.shape[-1] * (1 / 3 if name == "cholesky" else 2 / 3)
    if name == "triangular_solve":
        return float(out.size * first.shape[-1])
    if name in _MOVES or not jnp.issubdtype(getattr(out, "dtype", jnp.int32), jnp.inexact):
        return 0.0
    if name.startswith(("reduce", "cum", "arg")):
        return float(first.size)
    if name.startswith("scatter"):
        return float(equation.invars[2].aval.size)
    return float(out.size)
