"""LLVM module of a vector program: the function over one vector, and the FFI handler that shares a batch over XLA's threads.

The handler reads the call frame of XLA's FFI (`xla/ffi/api/c_api.h`), takes the batch size from the first operand with a batch
axis, and hands out one vector of batch elements at a time through an atomic counter. It runs on the calling thread and on as
many threads of XLA's own pool as there is work for. A job outlives its call until the last thread that was asked has seen it.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.extend
import numpy as np

from tamherd_jax.simd.ir import BOOL, INT, Builder, Vector
from tamherd_jax.simd.lowering import Lowering, Memory, Operand, Values, supported_dtype

FFI_VERSIONS = ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5))
"""Versions of XLA's FFI whose structures are those of `_FFI_TYPES`."""


@dataclass(frozen=True)
class Signature:
    """Shapes and dtypes of one batch element.

    Attributes:
      shared: arrays that all batch elements read, whole.
      arguments: what each batch element brings.
      results: what each batch element gets.
    """

    shared: tuple[jax.ShapeDtypeStruct, ...]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    results: tuple[jax.ShapeDtypeStruct, ...]


def trace(
    function: Callable[..., Sequence[jax.Array]],
    shared: Sequence[jax.ShapeDtypeStruct],
    arguments: Sequence[jax.ShapeDtypeStruct],
) -> tuple[jax.extend.core.ClosedJaxpr, Signature]:
    """Trace a function of one batch element in 32 bits, whatever the caller's precision."""
    with jax.enable_x64(False):
        closed = jax.make_jaxpr(function)(*shared, *arguments)
    results = tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.out_avals)
    return closed, Signature(tuple(shared), tuple(arguments), results)


def llvm_module(closed: jax.extend.core.ClosedJaxpr, signature: Signature, width: int, sleep: int) -> str:
    """Return the module's text: `@handler` is the FFI handler of the function over vectors of `width` batch elements.

    Raises:
      NotImplementedError: for a primitive, dtype or size that vector code cannot do, by name.
    """
    builder = Builder(width)
    index = Vector("%index", INT)
    operands: list[Operand] = [_shared(i, spec) for i, spec in enumerate(signature.shared)]
    for number, spec in enumerate(signature.arguments, start=len(operands)):
        operands.append(_load(builder, number, index, spec))
    results = Lowering(builder).run_closed(closed, operands)
    for number, (values, spec) in enumerate(zip(results, signature.results, strict=True), start=len(operands)):
        _store(builder, number, index, values, spec)
    buffers = len(operands) + len(results)
    # Without the attributes LLVM halves the vectors of processors that once ran hot on full ones.
    wide = f'"prefer-vector-width"="{32 * width}" "min-legal-vector-width"="{32 * width}"'
    pointers = [
        f"  %slot{i} = getelementptr ptr, ptr %buffers, i64 {i}\n  %buffer{i} = load ptr, ptr %slot{i}" for i in range(buffers)
    ]
    lines = [
        *sorted(builder.declarations),
        f"define internal void @vector(<{width} x i32> %index, ptr %buffers) noinline nounwind {wide} {{",
        "entry:",
        *pointers,
        *builder.lines,
        "  ret void",
        "}",
        _handler(width, len(operands), len(results), len(signature.shared), len(signature.arguments[0].shape), sleep),
    ]
    return "\n".join(lines)


def _shared(number: int, spec: jax.ShapeDtypeStruct) -> Memory:
    return Memory(f"%buffer{number}", spec.shape, supported_dtype(spec.dtype))


def _load(b: Builder, number: int, index: Vector, spec: jax.ShapeDtypeStruct) -> Values:
    dtype, size = supported_dtype(spec.dtype), math.prod(spec.shape)
    if dtype == BOOL:
        raise NotImplementedError("arguments of vector code are float32 or int32, not bool")
    out = np.empty(size, object)
    for i in range(size):
        out[i] = b.load(b.address(f"%buffer{number}", index, size, i), dtype)
    return out.reshape(spec.shape)


def _store(b: Builder, number: int, index: Vector, values: Values, spec: jax.ShapeDtypeStruct) -> None:
    if supported_dtype(spec.dtype) == BOOL:
        raise NotImplementedError("results of vector code are float32 or int32, not bool")
    size = math.prod(spec.shape)
    for i, value in enumerate(np.asarray(values, object).reshape(-1)):
        b.store(value, b.address(f"%buffer{number}", index, size, i))


_FFI_TYPES = """
%ffi.buffer = type { i64, ptr, i32, ptr, i64, ptr }
%ffi.list = type { i64, ptr, i64, ptr, ptr }
%ffi.frame = type { i64, ptr, ptr, ptr, i32, %ffi.list, %ffi.list, %ffi.list, ptr }
%ffi.version = type { i64, ptr, i32, i32 }
%ffi.api = type { i64, ptr, %ffi.version, ptr, [13 x ptr] }
%ffi.extension = type { i64, i32, ptr }
%ffi.metadata.extension = type { %ffi.extension, ptr }
%ffi.metadata = type { i64, %ffi.version, i32 }
%ffi.schedule = type { i64, ptr, ptr, ptr, ptr }
%ffi.threads = type { i64, ptr, ptr, ptr }
%ffi.destroy = type { i64, ptr, ptr }
"""

_HANDLER = """
; next vector, vectors done, threads that hold the job, vectors, last batch element, buffers
%job = type { i64, i64, i64, i64, i32, [@BUFFERS@ x ptr] }

declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @tamherd_yield()
declare i32 @tamherd_sleep(i32)

; Leave the processor to others: at first only for those who wait for it, then for a while.
define internal void @pause(i64 %tries) nounwind {
entry:
  %early = icmp slt i64 %tries, 256
  br i1 %early, label %brief, label %long
brief:
  %ignored = call i32 @tamherd_yield()
  ret void
long:
  %ignored.1 = call i32 @tamherd_sleep(i32 @SLEEP@)
  ret void
}

define internal void @work(ptr %job) nounwind {
entry:
  %done.at = getelementptr %job, ptr %job, i32 0, i32 1
  %vectors.at = getelementptr %job, ptr %job, i32 0, i32 3
  %vectors = load i64, ptr %vectors.at
  %last.at = getelementptr %job, ptr %job, i32 0, i32 4
  %last = load i32, ptr %last.at
  %buffers = getelementptr %job, ptr %job, i32 0, i32 5
  %last.1 = insertelement <@W@ x i32> poison, i32 %last, i32 0
  %lasts = shufflevector <@W@ x i32> %last.1, <@W@ x i32> poison, <@W@ x i32> zeroinitializer
  br label %take
take:
  %i = atomicrmw add ptr %job, i64 1 acq_rel
  %some = icmp slt i64 %i, %vectors
  br i1 %some, label %run, label %out
run:
  %start = mul i64 %i, @W@
  %start.32 = trunc i64 %start to i32
  %start.1 = insertelement <@W@ x i32> poison, i32 %start.32, i32 0
  %starts = shufflevector <@W@ x i32> %start.1, <@W@ x i32> poison, <@W@ x i32> zeroinitializer
  %places = add <@W@ x i32> %starts, <@IOTA@>
  %index = call <@W@ x i32> @llvm.smin.v@W@i32(<@W@ x i32> %places, <@W@ x i32> %lasts)
  call void @vector(<@W@ x i32> %index, ptr %buffers)
  %before = atomicrmw add ptr %done.at, i64 1 acq_rel
  br label %take
out:
  ret void
}
declare <@W@ x i32> @llvm.smin.v@W@i32(<@W@ x i32>, <@W@ x i32>)

define internal void @release(ptr %job) nounwind {
entry:
  %holders.at = getelementptr %job, ptr %job, i32 0, i32 2
  %holders = atomicrmw sub ptr %holders.at, i64 1 acq_rel
  %only = icmp eq i64 %holders, 1
  br i1 %only, label %drop, label %keep
drop:
  call void @free(ptr %job)
  br label %keep
keep:
  ret void
}

define internal void @help(ptr %job) nounwind {
entry:
  call void @work(ptr %job)
  call void @release(ptr %job)
  ret void
}

; Ask up to `wanted` threads of the pool to help; a refusal ends the asking.
define internal void @ask(ptr %job, i64 %wanted, ptr %api, ptr %context) nounwind {
entry:
  %request = alloca %ffi.schedule
  %size = getelementptr %ffi.schedule, ptr null, i32 1
  %size.64 = ptrtoint ptr %size to i64
  store %ffi.schedule zeroinitializer, ptr %request
  store i64 %size.64, ptr %request
  %context.at = getelementptr %ffi.schedule, ptr %request, i32 0, i32 2
  store ptr %context, ptr %context.at
  %task.at = getelementptr %ffi.schedule, ptr %request, i32 0, i32 3
  store ptr @help, ptr %task.at
  %data.at = getelementptr %ffi.schedule, ptr %request, i32 0, i32 4
  store ptr %job, ptr %data.at
  %schedule.at = getelementptr %ffi.api, ptr %api, i32 0, i32 4, i32 11
  %schedule = load ptr, ptr %schedule.at
  %holders.at = getelementptr %job, ptr %job, i32 0, i32 2
  br label %more
more:
  %asked = phi i64 [ 0, %entry ], [ %asked.1, %accepted ]
  %again = icmp slt i64 %asked, %wanted
  br i1 %again, label %one, label %out
one:
  %before = atomicrmw add ptr %holders.at, i64 1 acq_rel
  %error = call ptr %schedule(ptr %request)
  %fine = icmp eq ptr %error, null
  br i1 %fine, label %accepted, label %refused
accepted:
  %asked.1 = add i64 %asked, 1
  br label %more
refused:
  %held = atomicrmw sub ptr %holders.at, i64 1 acq_rel
  call void @forget(ptr %error, ptr %api)
  br label %out
out:
  ret void
}

define internal void @forget(ptr %error, ptr %api) nounwind {
entry:
  %request = alloca %ffi.destroy
  %size = getelementptr %ffi.destroy, ptr null, i32 1
  %size.64 = ptrtoint ptr %size to i64
  store %ffi.destroy zeroinitializer, ptr %request
  store i64 %size.64, ptr %request
  %error.at = getelementptr %ffi.destroy, ptr %request, i32 0, i32 2
  store ptr %error, ptr %error.at
  %destroy.at = getelementptr %ffi.api, ptr %api, i32 0, i32 4, i32 2
  %destroy = load ptr, ptr %destroy.at
  call void %destroy(ptr %request)
  ret void
}

define internal i64 @threads(ptr %api, ptr %context) nounwind {
entry:
  %count = alloca i64
  store i64 1, ptr %count
  %request = alloca %ffi.threads
  %size = getelementptr %ffi.threads, ptr null, i32 1
  %size.64 = ptrtoint ptr %size to i64
  store %ffi.threads zeroinitializer, ptr %request
  store i64 %size.64, ptr %request
  %context.at = getelementptr %ffi.threads, ptr %request, i32 0, i32 2
  store ptr %context, ptr %context.at
  %count.at = getelementptr %ffi.threads, ptr %request, i32 0, i32 3
  store ptr %count, ptr %count.at
  %ask.at = getelementptr %ffi.api, ptr %api, i32 0, i32 4, i32 12
  %ask = load ptr, ptr %ask.at
  %error = call ptr %ask(ptr %request)
  %fine = icmp eq ptr %error, null
  br i1 %fine, label %known, label %unknown
known:
  %threads = load i64, ptr %count
  ret i64 %threads
unknown:
  call void @forget(ptr %error, ptr %api)
  ret i64 1
}

define internal void @fill(ptr %job, ptr %frame, i64 %vectors, i64 %elements) nounwind {
entry:
  store i64 0, ptr %job
  %done.at = getelementptr %job, ptr %job, i32 0, i32 1
  store i64 0, ptr %done.at
  %holders.at = getelementptr %job, ptr %job, i32 0, i32 2
  store i64 1, ptr %holders.at
  %vectors.at = getelementptr %job, ptr %job, i32 0, i32 3
  store i64 %vectors, ptr %vectors.at
  %last.64 = sub i64 %elements, 1
  %last = trunc i64 %last.64 to i32
  %last.at = getelementptr %job, ptr %job, i32 0, i32 4
  store i32 %last, ptr %last.at
  %arguments.at = getelementptr %ffi.frame, ptr %frame, i32 0, i32 5, i32 4
  %arguments = load ptr, ptr %arguments.at
  %results.at = getelementptr %ffi.frame, ptr %frame, i32 0, i32 6, i32 4
  %results = load ptr, ptr %results.at
@COPY@
  ret void
}

define internal void @execute(ptr %frame, i64 %elements) nounwind {
entry:
  %api.at = getelementptr %ffi.frame, ptr %frame, i32 0, i32 2
  %api = load ptr, ptr %api.at
  %context.at = getelementptr %ffi.frame, ptr %frame, i32 0, i32 3
  %context = load ptr, ptr %context.at
  %more = add i64 %elements, @W1@
  %vectors = udiv i64 %more, @W@
  %size = getelementptr %job, ptr null, i32 1
  %size.64 = ptrtoint ptr %size to i64
  %own = alloca %job
  %several = icmp sgt i64 %vectors, 1
  br i1 %several, label %share, label %alone
share:
  %threads = call i64 @threads(ptr %api, ptr %context)
  %helpers = sub i64 %threads, 1
  %useful = sub i64 %vectors, 1
  %few = icmp slt i64 %helpers, %useful
  %wanted = select i1 %few, i64 %helpers, i64 %useful
  %any = icmp sgt i64 %wanted, 0
  br i1 %any, label %allocate, label %alone
allocate:
  %job = call ptr @malloc(i64 %size.64)
  %failed = icmp eq ptr %job, null
  br i1 %failed, label %alone, label %together
alone:
  call void @fill(ptr %own, ptr %frame, i64 %vectors, i64 %elements)
  call void @work(ptr %own)
  ret void
together:
  call void @fill(ptr %job, ptr %frame, i64 %vectors, i64 %elements)
  call void @ask(ptr %job, i64 %wanted, ptr %api, ptr %context)
  call void @work(ptr %job)
  %done.at = getelementptr %job, ptr %job, i32 0, i32 1
  br label %wait
wait:
  %tries = phi i64 [ 0, %together ], [ %tries.1, %pause ]
  %done = load atomic i64, ptr %done.at acquire, align 8
  %all = icmp sge i64 %done, %vectors
  br i1 %all, label %finished, label %pause
pause:
  call void @pause(i64 %tries)
  %tries.1 = add i64 %tries, 1
  br label %wait
finished:
  call void @release(ptr %job)
  ret void
}

; Number of batch elements: all of the first argument's axes but those of one element.
define internal i64 @elements(ptr %frame) nounwind {
entry:
  %arguments.at = getelementptr %ffi.frame, ptr %frame, i32 0, i32 5, i32 4
  %arguments = load ptr, ptr %arguments.at
  %first.at = getelementptr ptr, ptr %arguments, i64 @FIRST@
  %first = load ptr, ptr %first.at
  %rank.at = getelementptr %ffi.buffer, ptr %first, i32 0, i32 4
  %rank = load i64, ptr %rank.at
  %sizes.at = getelementptr %ffi.buffer, ptr %first, i32 0, i32 5
  %sizes = load ptr, ptr %sizes.at
  %axes = sub i64 %rank, @RANK@
  br label %head
head:
  %axis = phi i64 [ 0, %entry ], [ %axis.1, %next ]
  %product = phi i64 [ 1, %entry ], [ %product.1, %next ]
  %more = icmp slt i64 %axis, %axes
  br i1 %more, label %next, label %out
next:
  %size.at = getelementptr i64, ptr %sizes, i64 %axis
  %size = load i64, ptr %size.at
  %product.1 = mul i64 %product, %size
  %axis.1 = add i64 %axis, 1
  br label %head
out:
  ret i64 %product
}

define ptr @handler(ptr %frame) nounwind {
entry:
  %extension.at = getelementptr %ffi.frame, ptr %frame, i32 0, i32 1
  %extension = load ptr, ptr %extension.at
  %extended = icmp ne ptr %extension, null
  br i1 %extended, label %look, label %run
look:
  %kind.at = getelementptr %ffi.extension, ptr %extension, i32 0, i32 1
  %kind = load i32, ptr %kind.at
  %asked = icmp eq i32 %kind, 1
  br i1 %asked, label %describe, label %run
describe:
  %metadata.at = getelementptr %ffi.metadata.extension, ptr %extension, i32 0, i32 1
  %metadata = load ptr, ptr %metadata.at
  %major.at = getelementptr %ffi.metadata, ptr %metadata, i32 0, i32 1, i32 2
  store i32 @MAJOR@, ptr %major.at
  %minor.at = getelementptr %ffi.metadata, ptr %metadata, i32 0, i32 1, i32 3
  store i32 @MINOR@, ptr %minor.at
  %traits.at = getelementptr %ffi.metadata, ptr %metadata, i32 0, i32 2
  store i32 0, ptr %traits.at
  ret ptr null
run:
  %elements = call i64 @elements(ptr %frame)
  %some = icmp sgt i64 %elements, 0
  br i1 %some, label %go, label %out
go:
  call void @execute(ptr %frame, i64 %elements)
  br label %out
out:
  ret ptr null
}
"""


def _handler(width: int, operands: int, results: int, shared: int, rank: int, sleep: int) -> str:
    """Return the part of the module that does not depend on the function but on its number of buffers.

    Args:
      width: batch elements of a vector.
      operands, results: numbers of buffers.
      shared: how many of the operands have no batch axis; they come first.
      rank: number of axes of one element of the first operand that has a batch axis.
      sleep: argument of the host's sleeping function.
    """
    copies = []
    for buffer in range(operands + results):
        source, place = ("arguments", buffer) if buffer < operands else ("results", buffer - operands)
        copies += [
            f"  %from{buffer}.at = getelementptr ptr, ptr %{source}, i64 {place}",
            f"  %from{buffer} = load ptr, ptr %from{buffer}.at",
            f"  %data{buffer}.at = getelementptr %ffi.buffer, ptr %from{buffer}, i32 0, i32 3",
            f"  %data{buffer} = load ptr, ptr %data{buffer}.at",
            f"  %to{buffer}.at = getelementptr %job, ptr %job, i32 0, i32 5, i32 {buffer}",
            f"  store ptr %data{buffer}, ptr %to{buffer}.at",
        ]
    major, minor = ffi_version() or FFI_VERSIONS[-1]
    places = {
        "W1": width - 1,
        "W": width,
        "IOTA": ", ".join(f"i32 {i}" for i in range(width)),
        "BUFFERS": operands + results,
        "COPY": "\n".join(copies),
        "FIRST": shared,
        "RANK": rank,
        "MAJOR": major,
        "MINOR": minor,
        "SLEEP": sleep,
    }
    text = _FFI_TYPES + _HANDLER
    for name, value in places.items():
        text = text.replace(f"@{name}@", str(value))
    return text


@functools.cache
def ffi_version() -> tuple[int, int] | None:
    """Return the version of XLA's FFI that the installed jaxlib speaks, read from its header; None if there is none."""
    try:
        header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"#define XLA_FFI_API_MAJOR (\d+).*#define XLA_FFI_API_MINOR (\d+)", header, re.DOTALL)
    return (int(found[1]), int(found[2])) if found else None
