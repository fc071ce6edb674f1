"""Published figures of code that no longer installs beside this library, with what is known of the machine."""

from benchmarks.cases import Quoted

_MACHINE = "quoted in 2026-11; two AMD EPYC cores"

GARAGE_SECONDS = 17.3
EPOCH_STEPS = 40_000

GARAGE = (
    Quoted(
        "garage MAML-TRPO, cheetah (sampling 12.9 s, update 4.0 s)",
        GARAGE_SECONDS,
        "environment step",
        EPOCH_STEPS,
        f"{_MACHINE}; version not recorded",
        "garage",
    ),
    Quoted("garage MAML-TRPO, walker", 19.4, "environment step", EPOCH_STEPS, f"{_MACHINE}; version not recorded"),
)

RLLIB = Quoted(
    "RLlib MAML, HalfCheetahRandDirec, T = 100: sampling and learning, end to end",
    8_700.0,
    "environment step",
    211e6,
    "published learning curve; 31 workers and a GPU, 2 h 25 min; ends at a return of 262",
    "RLlib",
)

OYSTER = (Quoted("oyster PEARL, PyTorch", 0.1, "gradient step", 1, f"{_MACHINE}; Python 3.11, PyTorch current then", "oyster"),)

METAWORLD_ALGORITHMS = (
    Quoted(
        "metaworld-algorithms MAML-TRPO update, JAX",
        1.56,
        "meta-step",
        1,
        "quoted in 2026-11; machine and version not recorded",
    ),
)
