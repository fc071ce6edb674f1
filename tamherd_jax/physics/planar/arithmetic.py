"""Rewrite the arithmetic of a traced function: fused multiply-adds, and a division of one's own.

XLA compiles a Pallas kernel for an NVIDIA GPU without contracting products and sums, and divides approximately (2 units in the
last place). A rewritten function does neither, whatever the flags of the process.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal


class Arithmetic(NamedTuple):
    """Operations on floating-point arrays of one shape and dtype.

    Attributes:
      multiply_add: `a * b + c` of three arrays, rounded once.
      divide: `a / b` of two arrays.
    """

    multiply_add: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    divide: Callable[[jax.Array, jax.Array], jax.Array]


def with_arithmetic(fn: Callable[..., Any], arithmetic: Arithmetic) -> Callable[..., Any]:
    """Return `fn` with each sum of a product that is used once as a multiply-add, and each division by `arithmetic`.

    Only floating-point arrays are rewritten; scalars and integers stay as they are. `while_loop`s are entered; `scan`s and
    branches are not.

    Args:
      fn: pure function of arrays; it may read references that it closes over.
      arithmetic: what takes the place of products with sums, and of divisions.
    """

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), arithmetic)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rewritten


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], arithmetic: Arithmetic) -> list[Any]:
    """Outputs of a jaxpr, rewritten."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    uses = Counter(v for v in (*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars) if not isinstance(v, Literal))
    products: dict[Any, JaxprEqn] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def fused(eqn: JaxprEqn) -> jax.Array | None:
        """A sum or difference with a pending product; None where there is none."""
        left, right = eqn.invars
        negative = eqn.primitive.name == "sub"
        if not isinstance(left, Literal) and left in products:
            other = read(right)
            return _on_arrays(arithmetic.multiply_add, eqn, *map(read, products[left].invars), -other if negative else other)
        if not isinstance(right, Literal) and right in products:
            a, b = map(read, products[right].invars)
            return _on_arrays(arithmetic.multiply_add, eqn, -a if negative else a, b, read(left))
        return None

    for eqn in jaxpr.eqns:
        name, out = eqn.primitive.name, eqn.outvars[0]
        real = _is_real_array(out.aval)
        if real and name == "mul" and uses[out] == 1:
            products[out] = eqn
        if real and name in ("add", "sub") and (result := fused(eqn)) is not None:
            values[out] = result
        elif real and name == "div":
            values[out] = _on_arrays(arithmetic.divide, eqn, *map(read, eqn.invars))
        else:
            results = _apply(eqn, [read(v) for v in eqn.invars], arithmetic)
            values.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _is_real_array(aval: Any) -> bool:
    """Whether a value is a floating-point array that is no scalar."""
    return bool(getattr(aval, "shape", ())) and jnp.issubdtype(aval.dtype, jnp.floating)


def _on_arrays(operation: Callable[..., jax.Array], eqn: JaxprEqn, *operands: Any) -> jax.Array:
    """An operation on operands of the shape and dtype of an equation's result."""
    aval: Any = eqn.outvars[0].aval
    return operation(*(jnp.broadcast_to(jnp.asarray(x, aval.dtype), aval.shape) for x in operands))


def _apply(eqn: JaxprEqn, args: list[Any], arithmetic: Arithmetic) -> list[Any]:
    """Results of an equation; the functions that it calls are rewritten."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("jit", "pjit", "custom_jvp_call"):
        inner = params["call_jaxpr" if name == "custom_jvp_call" else "jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, args, arithmetic)
    if name == "while":
        return _while(params, args, arithmetic)
    out = eqn.primitive.bind(*args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _while(params: dict[str, Any], args: list[Any], arithmetic: Arithmetic) -> list[Any]:
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    test, body = params["cond_jaxpr"], params["body_jaxpr"]

    def go_on(carry: list[Any]) -> jax.Array:
        return _evaluate(test.jaxpr, test.consts, [*args[:first], *carry], arithmetic)[0]

    def advance(carry: list[Any]) -> list[Any]:
        return _evaluate(body.jaxpr, body.consts, [*args[first:second], *carry], arithmetic)

    return lax.while_loop(go_on, advance, args[second:])
