"""From a traced JAX function of one batch element to a vector program.

Every number of every array of the function becomes one vector, with a number per batch element, so shapes exist only here:
moving, reshaping and broadcasting cost nothing, and a matrix product is its multiplications and additions. A `while_loop` runs
until the last batch element of its vector has finished; the others keep their values meanwhile, as under `vmap`. `RULES` maps a
primitive to what it emits: a further primitive is one more entry.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jax.extend import core

from tamherd_jax.simd.elementary import ELEMENTARY
from tamherd_jax.simd.ir import BOOL, FLOAT, INT, Builder, Value, Vector

Values = np.ndarray
"""Array of objects: a `Value` for each number of an array of the traced function."""

MOST_INSTRUCTIONS = 200_000
"""Longer programs are refused: they would take minutes to compile."""


@dataclass(frozen=True)
class Memory:
    """An array that all batch elements share; only whole rows `array[index]` of it can be read.

    Attributes:
      pointer: LLVM name of its address.
      shape: with the rows along the first axis.
      dtype: float32 or int32.
    """

    pointer: str
    shape: tuple[int, ...]
    dtype: np.dtype


Operand = Values | Memory
Params = dict[str, Any]
Aval: TypeAlias = Any
"""Abstract value of an equation's output: a shape and a dtype."""
Rule = Callable[["Lowering", Params, Sequence[Any], Aval], Any]

RULES: dict[str, Rule] = {}
"""Primitive -> `rule(lowering, parameters, operands, result's shape and dtype)`, which returns `Values` or a list of them."""


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def supported_dtype(dtype: Any) -> np.dtype:
    """Return the type of a vector for an array's dtype.

    Raises:
      NotImplementedError: for a dtype other than float32, int32 and bool.
    """
    if np.dtype(dtype) not in (FLOAT, INT, BOOL):
        raise NotImplementedError(f"vector code is float32, int32 and bool only, not {np.dtype(dtype).name}")
    return np.dtype(dtype)


def constants(array: Any) -> Values:
    """Return an array's numbers as constants of the program."""
    array = np.asarray(array)
    array = array.astype(supported_dtype(array.dtype))
    out = np.empty(array.shape, object)
    for index in np.ndindex(array.shape):
        out[index] = array[index]
    return out


def _elementwise(function: Callable[..., Value], *operands: Values) -> Values:
    """Apply a function of `Value`s number by number."""
    operands = np.broadcast_arrays(*operands)
    out = np.empty(operands[0].shape, object)
    for index in np.ndindex(out.shape):
        out[index] = function(*(x[index] for x in operands))
    return out


class Lowering:
    """Walks a jaxpr and emits its equations with a `Builder`."""

    def __init__(self, builder: Builder):
        self.builder = builder

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Operand], arguments: Sequence[Operand]) -> list[Any]:
        """Emit the equations of a jaxpr and return its results."""
        values: dict[core.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            if isinstance(atom, core.Literal):
                return constants(np.asarray(atom.val, atom.aval.dtype))  # type: ignore[attr-defined]
            return values[atom]

        for equation in jaxpr.eqns:
            if len(self.builder.lines) > MOST_INSTRUCTIONS:
                raise NotImplementedError(f"the vector program is too large: more than {MOST_INSTRUCTIONS:,} instructions")
            name = equation.primitive.name
            if name not in RULES:
                raise NotImplementedError(f"vector code does not support the JAX primitive {name!r}")
            aval = equation.outvars[0].aval
            result = RULES[name](self, equation.params, [read(x) for x in equation.invars], aval)
            results = result if isinstance(result, list) else [result]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def run_closed(self, closed: core.ClosedJaxpr, arguments: Sequence[Operand]) -> list[Any]:
        """Emit a jaxpr that brings its constants."""
        return self.run(closed.jaxpr, [constants(c) for c in closed.consts], arguments)


# Arithmetic.


def _operation(name: str) -> Rule:
    def rule(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
        return _elementwise(functools.partial(low.builder.op, name), *x)

    return rule


_SAME_NAME: tuple[str, ...] = ("add", "sub", "mul", "div", "min", "max", "neg", "abs", "sqrt", "floor", "ceil")
_SAME_NAME += ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not")
RULES.update({name: _operation(name) for name in _SAME_NAME})
RULES["add_any"] = RULES["add"]

_FOLD_ELEMENTARY: dict[str, Callable[..., Any]] = {
    "sin": np.sin,
    "cos": np.cos,
    "exp": np.exp,
    "log": np.log,
    "pow": np.power,
    "tanh": np.tanh,
    "logistic": lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)),
}


def _elementary(name: str) -> Rule:
    def rule(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
        def one(*operands: Value) -> Value:
            if any(isinstance(v, Vector) for v in operands):
                return ELEMENTARY[name](low.builder, *operands)
            with np.errstate(all="ignore"):
                return np.float32(_FOLD_ELEMENTARY[name](*operands))

        operands = [_elementwise(lambda v: low.builder.convert(v, FLOAT), values) for values in x]
        return _elementwise(one, *operands)

    return rule


RULES.update({name: _elementary(name) for name in ELEMENTARY})


@_rule("square")
def _square(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    return _elementwise(lambda v: low.builder.op("mul", v, v), x[0])


@_rule("integer_pow")
def _integer_power(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    def one(base: Value) -> Value:
        exponent, out = abs(params["y"]), None
        while exponent:
            if exponent & 1:
                out = base if out is None else low.builder.op("mul", out, base)
            exponent >>= 1
            base = low.builder.op("mul", base, base) if exponent else base
        out = out if out is not None else np.dtype(aval.dtype).type(1)
        return low.builder.op("div", np.float32(1), out) if params["y"] < 0 else out

    return _elementwise(one, x[0])


@_rule("rsqrt")
def _rsqrt(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    return _elementwise(lambda v: low.builder.op("div", np.float32(1), low.builder.op("sqrt", v)), x[0])


@_rule("sign")
def _sign(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    b, one = low.builder, np.dtype(aval.dtype).type

    def sign(v: Value) -> Value:
        negative = b.select(b.op("lt", v, one(0)), one(-1), v)
        return b.select(b.op("gt", v, one(0)), one(1), negative)

    return _elementwise(sign, x[0])


@_rule("round")
def _round(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    if int(params["rounding_method"]) != 1:
        raise NotImplementedError("vector code rounds halves to even only (jnp.round)")
    return _elementwise(lambda v: low.builder.op("rint", v), x[0])


@_rule("is_finite")
def _is_finite(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    return _elementwise(lambda v: low.builder.op("lt", low.builder.op("abs", v), np.float32(np.inf)), x[0])


@_rule("clamp")
def _clamp(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    smallest, value, largest = x
    return _elementwise(lambda v, a, c: low.builder.op("min", low.builder.op("max", v, a), c), value, smallest, largest)


@_rule("select_n")
def _select_n(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    which, *cases = x

    def pick(index: Value, *values: Value) -> Value:
        if index.dtype == BOOL:
            return low.builder.select(index, values[1], values[0])
        out = values[-1]
        for number in reversed(range(len(values) - 1)):
            out = low.builder.select(low.builder.op("le", index, np.int32(number)), values[number], out)
        return out

    return _elementwise(pick, which, *cases)


@_rule("convert_element_type")
def _convert(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Operand:
    dtype = supported_dtype(aval.dtype)
    if isinstance(x[0], Memory) and x[0].dtype == dtype:
        return x[0]
    return _elementwise(lambda v: low.builder.convert(v, dtype), _values(x[0]))


def _values(operand: Operand) -> Values:
    if isinstance(operand, Memory):
        raise NotImplementedError("vector code reads an array that batch elements share by whole rows only: array[index]")
    return operand


# Moving numbers.


@_rule("reshape", "squeeze", "expand_dims")
def _reshape(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Values:
    return _values(x[0]).reshape(aval.shape)


@_rule("broadcast_in_dim")
def _broadcast(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Values:
    values = _values(x[0])
    sizes = dict(zip(params["broadcast_dimensions"], values.shape, strict=True))
    return np.broadcast_to(values.reshape([sizes.get(axis, 1) for axis in range(len(aval.shape))]), aval.shape)


@_rule("transpose")
def _transpose(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Values:
    return _values(x[0]).transpose(params["permutation"])


@_rule("concatenate")
def _concatenate(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    return np.concatenate(x, params["dimension"])


@_rule("stack")
def _stack(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    return np.stack(x, params["axis"])


@_rule("slice")
def _slice(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Values:
    strides = params["strides"] or (1,) * len(aval.shape)
    return _values(x[0])[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


@_rule("rev")
def _reverse(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Values:
    return np.flip(_values(x[0]), params["dimensions"])


@_rule("split")
def _split(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> list[Values]:
    return np.split(_values(x[0]), np.cumsum(params["sizes"])[:-1], params["axis"])


@_rule("iota")
def _iota(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    line = np.arange(aval.shape[params["dimension"]], dtype=supported_dtype(aval.dtype))
    shape = [-1 if axis == params["dimension"] else 1 for axis in range(len(aval.shape))]
    return constants(np.broadcast_to(line.reshape(shape), aval.shape))


@_rule("copy", "copy_p", "stop_gradient", "optimization_barrier")
def _copy(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> list[Values]:
    return list(x)


@_rule("gather")
def _gather(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> Values:
    """Read one row of an array per index: of an array that all batch elements share, or of one that is known here."""
    memory, indices = x[0], _values(x[1])
    numbers = params["dimension_numbers"]
    rows = tuple(params["slice_sizes"]) == (1, *memory.shape[1:]) and tuple(numbers.start_index_map) == (0,)
    if not rows or tuple(numbers.collapsed_slice_dims) != (0,) or numbers.operand_batching_dims:
        raise NotImplementedError("vector code reads whole rows along the first axis only: array[index]")
    places = indices[..., 0]
    width = int(np.prod(memory.shape[1:]))
    found = np.empty((*places.shape, *memory.shape[1:]), object)
    for place in np.ndindex(places.shape):
        found[(*place, ...)] = _row(low, memory, places.item(*place), width)
    batch = [axis for axis in range(len(aval.shape)) if axis not in numbers.offset_dims]
    return found.transpose(np.argsort([*batch, *numbers.offset_dims]))


def _row(low: Lowering, memory: Operand, index: Value, width: int) -> Values:
    """Row `index`, clipped into the array."""
    if not isinstance(memory, Memory):
        if isinstance(index, Vector):
            raise NotImplementedError("vector code cannot index an array of its own by a computed index")
        return memory[int(np.clip(index, 0, memory.shape[0] - 1)), ...]
    b = low.builder
    index = b.op("min", b.op("max", index, np.int32(0)), np.int32(memory.shape[0] - 1))
    out = np.empty(width, object)
    for column in range(width):
        out[column] = b.load(b.address(memory.pointer, b.vector(index), width, column), memory.dtype)
    return out.reshape(memory.shape[1:])


# Sums and products.


def _reduction(name: str) -> Rule:
    def rule(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
        kept = [axis for axis in range(x[0].ndim) if axis not in params["axes"]]
        parts = x[0].transpose([*params["axes"], *kept])
        parts = parts.reshape(-1, *aval.shape)
        pieces = [parts[i : i + 1].reshape(aval.shape) for i in range(len(parts))]
        return functools.reduce(functools.partial(_elementwise, functools.partial(low.builder.op, name)), pieces)

    return rule


_REDUCTIONS = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "and": "and", "or": "or"}
RULES.update({f"reduce_{name}": _reduction(op) for name, op in _REDUCTIONS.items()})


@_rule("dot_general")
def _dot_general(low: Lowering, params: Params, x: Sequence[Values], aval: Aval) -> Values:
    b = low.builder
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]

    def matrix(values: Values, batch: Sequence[int], summed: Sequence[int]) -> Values:
        free = [axis for axis in range(values.ndim) if axis not in (*batch, *summed)]
        sizes = [math.prod(values.shape[axis] for axis in axes) for axes in (batch, free, summed)]
        return values.transpose([*batch, *free, *summed]).reshape(sizes)

    left, right = matrix(x[0], left_batch, left_sum), matrix(x[1], right_batch, right_sum)
    out = np.empty((len(left), left.shape[1], right.shape[1]), object)
    for group, row, column in np.ndindex(out.shape):
        products = [b.op("mul", p, q) for p, q in zip(left[group, row], right[group, column], strict=True)]
        out[group, row, column] = functools.reduce(functools.partial(b.op, "add"), products)
    return out.reshape(aval.shape)


# Control.


@_rule("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "core_call")
def _call(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> list[Operand]:
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    return low.run_closed(inner, x) if isinstance(inner, core.ClosedJaxpr) else low.run(inner, [], x)


@_rule("cond")
def _cond(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> list[Values]:
    """Emit every branch and select, as under `vmap`."""
    index, *operands = x
    results = [low.run_closed(branch, operands) for branch in params["branches"]]
    which = _elementwise(lambda v: low.builder.convert(v, INT), _values(index))
    return [_select_n(low, {}, [which, *map(_values, cases)], aval) for cases in zip(*results, strict=True)]


@_rule("while")
def _while(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> list[Values]:
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    b, cond_consts, body_consts = low.builder, x[:first], x[first:second]

    def unfinished(carry: list[Values]) -> Value:
        return low.run_closed(params["cond_jaxpr"], [*cond_consts, *carry])[0].item()

    def body(carry: list[Values], going: Value) -> list[Values]:
        after = low.run_closed(params["body_jaxpr"], [*body_consts, *carry])
        keep = functools.partial(b.select, going)
        return [_elementwise(keep, new, old) for new, old in zip(after, carry, strict=True)]

    return _loop(b, unfinished, body, list(map(_values, x[second:])))


_UNROLL = 64


def _scan_sizes(params: Params) -> tuple[int, int]:
    """Return the numbers of a scan's constants and of its carried values, as JAX writes them up to 0.11 or from 0.12 on."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


@_rule("scan")
def _scan(low: Lowering, params: Params, x: Sequence[Operand], aval: Aval) -> list[Values]:
    (n, m), length = _scan_sizes(params), params["length"]
    consts, carry, inputs = x[:n], list(map(_values, x[n : n + m])), list(map(_values, x[n + m :]))
    outputs = len(params["jaxpr"].out_avals) - m
    if not inputs and not outputs:
        return _counted_loop(low, params, consts, carry)
    if length > _UNROLL:
        raise NotImplementedError(f"vector code unrolls a scan over arrays, of at most {_UNROLL} steps, not {length}")
    rows: list[list[Values]] = []
    for step in range(length):
        here = length - 1 - step if params["reverse"] else step
        out = low.run_closed(params["jaxpr"], [*consts, *carry, *(values[here, ...] for values in inputs)])
        carry = out[:m]
        rows.append(out[m:])
    ordered = rows[::-1] if params["reverse"] else rows
    return [*carry, *(np.stack(column) for column in zip(*ordered, strict=True))]


def _counted_loop(low: Lowering, params: Params, consts: Sequence[Operand], carry: list[Values]) -> list[Values]:
    length = np.int32(params["length"])

    def unfinished(state: list[Values]) -> Value:
        return low.builder.op("lt", state[0].item(), length)

    def body(state: list[Values], going: Value) -> list[Values]:
        count = _elementwise(lambda v: low.builder.op("add", v, np.int32(1)), state[0])
        return [count, *low.run_closed(params["jaxpr"], [*consts, *state[1:]])]

    return _loop(low.builder, unfinished, body, [constants(np.int32(0)), *carry])[1:]


def _loop(
    b: Builder,
    unfinished: Callable[[list[Values]], Value],
    body: Callable[[list[Values], Value], list[Values]],
    start: list[Values],
) -> list[Values]:
    """Emit a loop that ends when `unfinished` holds for no batch element of the vector."""
    head, inside, end = b.fresh("head"), b.fresh("body"), b.fresh("end")
    before = b.block
    b.lines.append(f"  br label %{head}")
    b.label(head)
    phis = len(b.lines)
    carry = [_elementwise(lambda v: Vector("%" + b.fresh("phi"), v.dtype), values) for values in start]
    going = b.vector(unfinished(carry))
    b.lines.append(f"  br i1 {b.any(going)}, label %{inside}, label %{end}")
    b.label(inside)
    after = body(carry, going)
    last = b.block
    b.lines.append(f"  br label %{head}")
    b.label(end)
    b.lines[phis:phis] = [
        f"  {phi.name} = phi {b.type(phi.dtype)} [ {b.text(first)}, %{before} ], [ {b.text(next_)}, %{last} ]"
        for phi_values, firsts, nexts in zip(carry, start, after, strict=True)
        for phi, first, next_ in zip(phi_values.flat, firsts.flat, nexts.flat, strict=True)
    ]
    return carry
