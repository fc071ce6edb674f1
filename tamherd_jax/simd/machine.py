"""The host's vector unit: how wide it is, and machine code for it through LLVM (llvmlite)."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

import jax

from tamherd_jax.simd.program import FFI_VERSIONS, ffi_version


class SimdUnavailableError(RuntimeError):
    """Vector code cannot be made or called on this host; the message says why."""


@dataclass(frozen=True)
class Host:
    """What code is generated for.

    Attributes:
      cpu: LLVM's name of the processor.
      features: its instruction sets, in LLVM's notation.
      width: batch elements of a vector: float32 numbers of its widest register.
    """

    cpu: str
    features: str
    width: int


@functools.cache
def host() -> Host:
    """Return the host's processor.

    Raises:
      SimdUnavailableError: if llvmlite cannot be loaded, does not know the processor, or jaxlib's FFI is another than the known
      ones.
    """
    binding = _llvm()
    if ffi_version() not in FFI_VERSIONS:
        raise SimdUnavailableError(f"jaxlib speaks version {ffi_version()} of XLA's FFI, not one of {FFI_VERSIONS}")
    try:
        features = binding.get_host_cpu_features()
        cpu = binding.get_host_cpu_name()
    except RuntimeError as error:
        raise SimdUnavailableError(f"llvmlite does not know this processor: {error}") from error
    width = 16 if features.get("avx512f") else 8 if features.get("avx") else 4
    return Host(cpu, features.flatten(), width)


@functools.cache
def _llvm() -> Any:
    """Return llvmlite's binding, initialised, with the host functions that generated code calls."""
    try:
        import llvmlite.binding as binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
    except Exception as error:  # a missing library, a missing target: whatever it is, there is no LLVM
        raise SimdUnavailableError(f"llvmlite cannot be loaded ({error})") from error
    for name, address in _host_functions().items():
        binding.add_symbol(name, address)
    return binding


def _host_functions() -> dict[str, int]:
    """Return addresses of what leaves the processor to other threads."""
    if sys.platform == "win32":
        library = ctypes.windll.kernel32
        functions = {"tamherd_yield": library.SwitchToThread, "tamherd_sleep": library.Sleep}
    else:
        library = ctypes.CDLL(None)
        functions = {"tamherd_yield": library.sched_yield, "tamherd_sleep": library.usleep}
    return {name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in functions.items()}


SLEEP = 1 if sys.platform == "win32" else 50
"""How long a waiting thread sleeps: milliseconds on Windows, microseconds elsewhere."""

_ENGINES: list[Any] = []
"""Compiled modules; their code must outlive every program that calls it."""


def compile_handler(text: str, target: Host) -> int:
    """Compile a module and return the address of its `@handler`.

    Raises:
      SimdUnavailableError: if LLVM refuses the module, or the system refuses pages that can be executed.
    """
    binding = _llvm()
    try:
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=target.cpu, features=target.features, opt=1, jit=True
        )
        module = binding.parse_assembly(text)
        module.verify()
        engine = binding.create_mcjit_compiler(module, machine)
        engine.finalize_object()
    except (RuntimeError, MemoryError, OSError) as error:
        raise SimdUnavailableError(f"LLVM cannot compile for this processor: {str(error).splitlines()[0]}") from error
    _ENGINES.append(engine)
    return engine.get_function_address("handler")


def register(name: str, address: int) -> None:
    """Make a handler known to XLA under a name, on CPUs."""
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, new_capsule(address, None, None), platform="cpu")
