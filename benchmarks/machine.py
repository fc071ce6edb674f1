"""Which machine this is, what is installed, and how fast it can copy and multiply."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Mode, Program

PACKAGES = ("tamherd-jax", "jax", "jaxlib", "flax", "brax", "mujoco", "mujoco-mjx", "numpy", "gymnasium", "torch")


def describe() -> dict[str, Any]:
    """Device, cores, memory, operating system and versions, without the machine's name."""
    device = jax.devices()[0]
    return {
        "device": device_name(),
        "platform": device.platform,
        "devices": len(jax.devices()),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def device_name() -> str:
    """Name of the accelerator, or of the processor with the cores that may be used."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    return f"{processor()}, {usable_cores()} cores"


def processor() -> str:
    """The processor's own name, or its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of the packages that matter, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of the working tree, `+` where tracked files differ from it, or `unknown`."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changes.returncode else "")


def load() -> float:
    """Processes that wanted to run, mean of the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else float("nan")


def cases(mode: Mode) -> list[Case]:
    """The machine's ceilings: a copy, and a matrix product at full float32 as the library's are."""
    count = mode.pick(2**22, 2**26, 2**26, 2**28)
    size = mode.pick(256, 2048, 2048, 8192)

    def copy() -> Program:
        return Program(lambda x: x + 1.0, (jnp.zeros(count, jnp.float32),))

    def product() -> Program:
        return Program(lambda a, b: jnp.dot(a, b, precision="highest"), (jnp.ones((size, size)), jnp.ones((size, size))))

    return [
        Case("copy", copy, "byte", 8.0 * count),
        Case("matrix product", product, "operation", 2.0 * size**3),
    ]
