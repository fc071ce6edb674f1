"""The bodies that benchmarks move: the paper's two, with 9 coordinates and 6 motors each."""

from tamherd_jax.physics.bodies import DEFAULT_BODIES, frame_skips

BODIES = DEFAULT_BODIES
FRAME_SKIP = frame_skips(BODIES)
CHEETAH = BODIES.index("cheetah")
NQ = NV = 9
NU = 6
