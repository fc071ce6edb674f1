"""Vector instructions as LLVM IR text: a builder whose values are vectors with one number per batch element.

Operations on constants are evaluated at once, in the precision of their type, and emit nothing; every other operation appends
one line of IR and returns a `Vector`. Multiplications and additions may contract to fused multiply-adds where the processor has
them; nothing else is relaxed: infinities, NaN and the sign of zero behave as in JAX.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FLOAT, INT, BOOL = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.bool_)
_SCALAR = {FLOAT: "float", INT: "i32", BOOL: "i1"}
_SUFFIX = {FLOAT: "f32", INT: "i32", BOOL: "i1"}


@dataclass(frozen=True, slots=True)
class Vector:
    """A value of the program: one number per batch element.

    Attributes:
      name: of the LLVM value.
      dtype: float32, int32 or bool.
    """

    name: str
    dtype: np.dtype


Value = Vector | np.generic
"""A vector, or a constant that all batch elements share."""


def _same(x: np.generic, y: np.generic) -> bool:
    return x.tobytes() == y.tobytes()


_FOLD: dict[str, Callable[..., np.generic]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "trunc": np.trunc,
}
_FLOAT_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_ARITHMETIC = {"add": "add", "sub": "sub", "mul": "mul"}
_FLOAT_COMPARISON = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_INT_COMPARISON = {"lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge", "eq": "eq", "ne": "ne"}
_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "rint": "rint", "trunc": "trunc"}
_BITWISE = ("and", "or", "xor")


class Builder:
    """Appends the instructions of one function over vectors of `width` batch elements."""

    def __init__(self, width: int):
        self.width = width
        self.lines: list[str] = []
        self.declarations: set[str] = set()
        self.block = "entry"
        self._names = 0

    def fresh(self, prefix: str = "v") -> str:
        """Return a name that no other value or block has."""
        self._names += 1
        return f"{prefix}{self._names}"

    def type(self, dtype: np.dtype) -> str:
        """Return the LLVM type of a vector of `dtype`."""
        return f"<{self.width} x {_SCALAR[dtype]}>"

    def text(self, value: Value) -> str:
        """Return a value as an operand."""
        if isinstance(value, Vector):
            return value.name
        return f"splat ({_SCALAR[value.dtype]} {_literal(value)})"

    def typed(self, value: Value) -> str:
        """Return a value as an operand with its type."""
        return f"{self.type(value.dtype)} {self.text(value)}"

    def emit(self, code: str, dtype: np.dtype) -> Vector:
        """Append an instruction with a result."""
        name = "%" + self.fresh()
        self.lines.append(f"  {name} = {code}")
        return Vector(name, dtype)

    def vector(self, value: Value) -> Vector:
        """Return a value as a vector, a constant spread over all batch elements."""
        return value if isinstance(value, Vector) else self.emit(f"freeze {self.typed(value)}", value.dtype)

    def call(self, intrinsic: str, *operands: Value, suffix: str = "", dtype: np.dtype | None = None) -> Vector:
        """Append the call of an LLVM intrinsic, overloaded on the vector type of its first operand."""
        result = operands[0].dtype if dtype is None else dtype
        name = f"@llvm.{intrinsic}.{suffix}v{self.width}{_SUFFIX[operands[0].dtype]}"
        types = ", ".join(self.type(x.dtype) for x in operands)
        self.declarations.add(f"declare {self.type(result)} {name}({types})")
        return self.emit(f"call {self.type(result)} {name}({', '.join(map(self.typed, operands))})", result)

    def op(self, name: str, *operands: Value) -> Value:
        """Apply an operation of `_FOLD` to operands of one type.

        Raises:
          NotImplementedError: if there is no such operation on that type.
        """
        if not any(isinstance(x, Vector) for x in operands):
            with np.errstate(all="ignore"):
                return _FOLD[name](*operands)
        dtype = operands[0].dtype
        if name in _FLOAT_COMPARISON:
            return self._compare(name, *operands)
        if name in ("min", "max"):
            return self._extremum(name, *operands)
        code = self._instruction(name, dtype, operands)
        if code is None:
            if dtype == FLOAT and name in _INTRINSIC:
                return self.call(_INTRINSIC[name], *operands)
            raise NotImplementedError(f"{name} of {dtype.name} has no vector form")
        return self.emit(code, dtype)

    def _instruction(self, name: str, dtype: np.dtype, operands: Sequence[Value]) -> str | None:
        """Return the instruction of an operation, if it is a single one."""
        kind, texts = self.type(dtype), [self.text(x) for x in operands]
        if name == "neg":
            return f"fneg {kind} {texts[0]}" if dtype == FLOAT else f"sub {kind} zeroinitializer, {texts[0]}"
        if name == "not":
            return f"xor {kind} {texts[0]}, splat ({_SCALAR[dtype]} -1)" if dtype != FLOAT else None
        if name in _BITWISE and dtype != FLOAT:
            return f"{name} {kind} {texts[0]}, {texts[1]}"
        if dtype == FLOAT and name in _FLOAT_ARITHMETIC:
            return f"{_FLOAT_ARITHMETIC[name]} contract {kind} {texts[0]}, {texts[1]}"
        if dtype == INT and name in _INT_ARITHMETIC:
            return f"{_INT_ARITHMETIC[name]} {kind} {texts[0]}, {texts[1]}"
        return None

    def _compare(self, name: str, x: Value, y: Value) -> Vector:
        if x.dtype == FLOAT:
            return self.emit(f"fcmp {_FLOAT_COMPARISON[name]} {self.typed(x)}, {self.text(y)}", BOOL)
        code = _INT_COMPARISON[name].replace("s", "u") if x.dtype == BOOL else _INT_COMPARISON[name]
        return self.emit(f"icmp {code} {self.typed(x)}, {self.text(y)}", BOOL)

    def _extremum(self, name: str, x: Value, y: Value) -> Value:
        """Return the smaller or larger of two numbers; NaN where either is NaN."""
        if x.dtype != FLOAT:
            return self.select(self._compare("lt" if name == "min" else "gt", x, y), x, y)
        if not isinstance(x, Vector):
            x, y = y, x
        # Unordered or smaller: a NaN in x is kept. One in y needs a second look, unless y is a number known here.
        chosen = self.emit(f"fcmp {'ult' if name == 'min' else 'ugt'} {self.typed(x)}, {self.text(y)}", BOOL)
        out = self.select(chosen, x, y)
        if isinstance(y, Vector) or np.isnan(y):
            out = self.select(self.emit(f"fcmp uno {self.typed(y)}, {self.text(y)}", BOOL), y, out)
        return out

    def select(self, which: Value, if_true: Value, if_false: Value) -> Value:
        """Return `if_true` where `which`, else `if_false`."""
        if not isinstance(which, Vector):
            return if_true if which else if_false
        if not isinstance(if_true, Vector) and not isinstance(if_false, Vector) and _same(if_true, if_false):
            return if_true
        return self.emit(f"select {self.typed(which)}, {self.typed(if_true)}, {self.typed(if_false)}", if_true.dtype)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """Return `x * y + z`, rounded once where the processor can."""
        if not any(isinstance(v, Vector) for v in (x, y, z)):
            return np.float32(float(x) * float(y) + float(z))  # type: ignore[arg-type]
        return self.call("fmuladd", x, y, z)

    def convert(self, value: Value, dtype: np.dtype) -> Value:
        """Return a value in another type; numbers out of range saturate and NaN becomes 0, as in XLA."""
        if value.dtype == dtype:
            return value
        if dtype == BOOL:
            return self.op("ne", value, value.dtype.type(0))
        if not isinstance(value, Vector):
            return _saturated(value) if dtype == INT and value.dtype == FLOAT else dtype.type(value)
        if value.dtype == BOOL:
            return self.select(value, dtype.type(1), dtype.type(0))
        if dtype == FLOAT:
            return self.emit(f"sitofp {self.typed(value)} to {self.type(FLOAT)}", FLOAT)
        return self.call("fptosi.sat", value, suffix=f"v{self.width}i32.", dtype=INT)

    def bits(self, value: Value, dtype: np.dtype) -> Value:
        """Return the same 32 bits read as another type."""
        if not isinstance(value, Vector):
            return value.view(dtype)
        return self.emit(f"bitcast {self.typed(value)} to {self.type(dtype)}", dtype)

    def shift(self, name: str, value: Value, places: int) -> Value:
        """Return an int32 shifted by a constant number of places: `shl` to the left, `ashr` to the right with its sign."""
        if not isinstance(value, Vector):
            return np.left_shift(value, np.int32(places)) if name == "shl" else np.right_shift(value, np.int32(places))
        return self.emit(f"{name} {self.typed(value)}, splat (i32 {places})", INT)

    def any(self, which: Vector) -> str:
        """Return an `i1` operand: whether any batch element of the vector is true."""
        bits = self.emit(f"bitcast {self.typed(which)} to i{self.width}", BOOL)
        return self.emit(f"icmp ne i{self.width} {bits.name}, 0", BOOL).name

    def label(self, name: str) -> None:
        """Start a block."""
        self.lines.append(f"{name}:")
        self.block = name

    def address(self, pointer: str, index: Value, size: int, offset: int) -> str:
        """Return the addresses of the 32-bit numbers `index * size + offset` after a pointer."""
        place = self.op("mul", index, np.int32(size)) if size != 1 else index
        place = self.op("add", place, np.int32(offset)) if offset else place
        return self.emit(f"getelementptr i32, ptr {pointer}, {self.typed(place)}", INT).name

    def load(self, addresses: str, dtype: np.dtype) -> Vector:
        """Load one number per batch element; booleans are stored as bytes and not supported."""
        kind, pointers, name = self.type(dtype), f"<{self.width} x ptr>", f"v{self.width}{_SUFFIX[dtype]}.v{self.width}p0"
        self.declarations.add(f"declare {kind} @llvm.masked.gather.{name}({pointers}, i32, {self.type(BOOL)}, {kind})")
        every = f"{self.type(BOOL)} splat (i1 true)"
        code = f"call {kind} @llvm.masked.gather.{name}({pointers} {addresses}, i32 4, {every}, {kind} zeroinitializer)"
        return self.emit(code, dtype)

    def store(self, value: Value, addresses: str) -> None:
        """Store one number per batch element."""
        kind, pointers = self.type(value.dtype), f"<{self.width} x ptr>"
        name = f"v{self.width}{_SUFFIX[value.dtype]}.v{self.width}p0"
        self.declarations.add(f"declare void @llvm.masked.scatter.{name}({kind}, {pointers}, i32, {self.type(BOOL)})")
        every = f"{self.type(BOOL)} splat (i1 true)"
        self.lines.append(
            f"  call void @llvm.masked.scatter.{name}({self.typed(value)}, {pointers} {addresses}, i32 4, {every})"
        )


def _literal(value: np.generic) -> str:
    """Return a constant in LLVM's notation: a float32 as the bits of the float64 of the same value."""
    if value.dtype == FLOAT:
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"
    return str(value).lower() if value.dtype == BOOL else str(int(value))


def _saturated(value: np.generic) -> np.int32:
    if np.isnan(value):
        return np.int32(0)
    return np.int32(np.clip(np.trunc(np.float64(value)), -(2**31), 2**31 - 1))
