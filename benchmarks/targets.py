"""Lowering without the target device: for NVIDIA GPUs and TPUs on a machine that has neither."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

GPU_KIND = "NVIDIA H100 80GB HBM3"

_H100_NUMBERS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "memory_bandwidth": 3352320000000,
    "l2_cache_size": 50 * 1024**2,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 84942979072,
}
_H100_INFO = " ".join(f"{name}: {value}" for name, value in _H100_NUMBERS.items())
H100 = f"""
gpu_device_info {{ {_H100_INFO} cuda_compute_capability {{ major: 9 }} }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{GPU_KIND}"
"""
"""XLA's description of an H100 (a `GpuTargetConfigProto` as text), for compiling without one."""


@contextlib.contextmanager
def lowering_for(platform: str, kind: str = GPU_KIND) -> Iterator[AbstractMesh]:
    """Trace and lower within this context; yields a mesh of one device of the target.

    From JAX 0.11 on, Pallas asks for which GPU it lowers; before, and for a TPU, nothing is needed.
    """
    if platform == "cuda" and asks_which_gpu():
        device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
        mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            yield mesh
    else:
        yield AbstractMesh((1,), ("x",), (AxisType.Auto,))


def asks_which_gpu() -> bool:
    """Whether this JAX's Pallas lowers for a named GPU only."""
    return "platform" in inspect.signature(AbstractDevice).parameters
