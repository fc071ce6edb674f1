"""How much XLA optimises a program: less where compiling takes longer than all that the program will run."""

from __future__ import annotations

import jax


def less_optimised(platform: str | None = None) -> dict[str, int]:
    """Return XLA's options for programs that are called seldom, such as tests between epochs; none but on a CPU.

    There LLVM's level 1 in place of 3 halves the time to compile such a program; on the package's it runs as fast, since its
    time goes to matrix products and to physics, which LLVM does not compile here. Numbers may differ in the last bits.

    Args:
      platform: Of the devices: "cpu", "gpu" or "tpu"; by default that of JAX's default device.
    """
    return {"xla_backend_optimization_level": 1} if (platform or jax.default_backend()) == "cpu" else {}
