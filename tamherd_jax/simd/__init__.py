"""Elementwise JAX functions as vector instructions of the host's processor, called from jitted programs.

XLA compiles a function that is long, branchy and elementwise over a batch to many small loops over memory. Here the function of
*one* batch element is traced, each of its numbers becomes a vector with one number per batch element (16 with AVX-512, 8 with
AVX, 4 with SSE or NEON), and LLVM compiles the whole to one loop over vectors, shared over XLA's own threads. A `while_loop`
whose length depends on the data runs until the elements *of a vector* have finished, not those of the whole batch.

    from tamherd_jax import simd

    def newton_sqrt(x):                                   # one batch element, any shapes inside
        return jax.lax.while_loop(lambda y: abs(y * y - x) > 1e-6 * x, lambda y: 0.5 * (y + x / y), x)

    jax.jit(lambda xs: simd.batched_call(newton_sqrt, xs))(jnp.linspace(1.0, 9.0, 10_000, dtype=jnp.float32))

It serves float32, int32 and bool arithmetic, loops, branches and rearrangements of numbers; anything else is refused by name. A
batch element's bits depend neither on the other elements nor on the batch size, nor, where the processor has fused
multiply-adds, on the width of its vectors. There are no derivatives. CPU only: see `availability`.
"""

from tamherd_jax.simd.call import availability, batched_call
from tamherd_jax.simd.machine import Host, SimdUnavailableError, host

__all__ = ["Host", "SimdUnavailableError", "availability", "batched_call", "host"]
