"""What the machine code of the physics kernel says of its speed: registers, spills, instructions by loop, and an estimate."""

from __future__ import annotations

import collections
import importlib.util
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FRAMES = 5
"""Physics steps of an environment step (HalfCheetah's)."""

NEWTON, SEARCH = 2.73, 5.35
"""Newton steps, and line-search steps, of a block of 16 environments in a physics step: counted on random controls."""

SCHEDULERS, CLOCK, RESIDENT = 132 * 4, 1.7e9, 2
"""An H100's warp schedulers, its clock (Hz) and warps a scheduler holds at 255 registers a thread."""

ALONE, TOGETHER = 3.25, 4.67
"""Cycles an instruction of one warp takes alone on its scheduler, and of each of two: from a run of an earlier kernel."""

KINDS = {
    "multiply-add": ("FFMA",),
    "add": ("FADD",),
    "multiply": ("FMUL",),
    "select, compare": ("FSEL", "FSETP", "FMNMX", "SEL", "ISETP"),
    "special": ("MUFU",),
    "shuffle": ("SHFL",),
    "spill": ("LDL", "STL"),
    "memory": ("LDG", "STG", "LDS", "STS"),
    "move": ("MOV", "IMAD"),
}


class Instruction(NamedTuple):
    """One of a listing: its name, and where it jumps to, if it does."""

    name: str
    jumps: int | None
    conditional: bool


def tool(name: str) -> str:
    """Path of one of CUDA's programs from NVIDIA's packages, or its name for the search path."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        for path in Path(place).glob(f"*/bin/{name}"):
            return str(path)
    return name


def kernel_report(ptx: Path, args: Sequence[Any]) -> dict[str, Any]:
    """Registers, spills and instructions of a kernel in PTX; of a single step, its estimated speed."""
    target = re.search(r"\.target\s+(sm_\w+)", ptx.read_text(encoding="utf-8"))
    cubin = ptx.with_suffix(".cubin")
    assemble = [tool("ptxas"), "-v", f"-arch={target[1] if target else 'sm_90'}", str(ptx), "-o", str(cubin)]
    said = subprocess.run(assemble, capture_output=True, text=True, check=True)
    listing = subprocess.run([tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    text = said.stderr + said.stdout
    report: dict[str, Any] = {
        "registers": largest(r"Used (\d+) registers", text),
        "stack_bytes": largest(r"(\d+) bytes stack frame", text),
        "spill_bytes": largest(r"(\d+) bytes spill stores", text),
        "spill_load_bytes": largest(r"(\d+) bytes spill loads", text),
        **instructions_of(hot(parse(listing))),
    }
    environments = [x.shape[0] for x in args if getattr(x, "ndim", 0) == 1]
    return report | (estimate(report["instructions_a_warp"], environments[0]) if environments else {})


def largest(pattern: str, text: str) -> int:
    """The largest number that a pattern finds, or 0."""
    return max(map(int, re.findall(pattern, text)), default=0)


def parse(listing: str) -> list[Instruction]:
    """Instructions of a listing of nvdisasm."""
    labels: dict[str, int] = {}
    found: list[tuple[str, str | None, bool]] = []
    for line in listing.splitlines():
        if label := re.match(r"(\.L_\S+):", line.strip()):
            labels[label[1]] = len(found)
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_]+)(.*?);", line):
            target = re.search(r"\((\.L_\S+?)\)", match[3]) if match[2] in ("BRA", "JMP") else None
            found.append((match[2], target[1] if target else None, bool(match[1])))
    return [Instruction(name, labels.get(target) if target else None, when) for name, target, when in found]


def hot(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The instructions up to the kernel's end: behind it lies what only a diverged warp's shuffles run."""
    for i, instruction in enumerate(instructions):
        if instruction.name == "EXIT" and not instruction.conditional:
            return list(instructions[:i])
    return list(instructions)


def instructions_of(code: Sequence[Instruction]) -> dict[str, Any]:
    """Counts by kind, and of those that a warp runs in an environment step."""
    counts = collections.Counter(instruction.name for instruction in code)
    mix = {kind: sum(counts[name] for name in names) for kind, names in KINDS.items()}
    loops = nested_loops(code)
    sizes = [last - first + 1 for first, last in loops] + [0] * (3 - len(loops))
    rare = rarely_run(code, loops[0]) if loops else 0
    frame, newton, search = sizes[0] - sizes[1] - rare, sizes[1] - sizes[2], sizes[2]
    outside = len(code) - sizes[0]
    dynamic = outside + FRAMES * (frame + NEWTON * newton + SEARCH * search)
    parts = {"outside": outside, "physics step": frame, "Newton step": newton, "line-search step": search, "rarely run": rare}
    return {"instructions": len(code), "mix": mix, "instructions_by_loop": parts, "instructions_a_warp": round(dynamic)}


def nested_loops(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """First and last instruction of the physics steps, the Newton steps within, and the line search within those."""
    back = [(jump.jumps, i) for i, jump in enumerate(code) if jump.jumps is not None and jump.jumps <= i]
    found: list[tuple[int, int]] = []
    for first, last in sorted(back, key=lambda loop: loop[0] - loop[1]):
        if last - first > 100 and (not found or (found[-1][0] <= first and last <= found[-1][1])):
            found.append((first, last))
    return found[:3]


def rarely_run(code: Sequence[Instruction], loop: tuple[int, int], most: int = 150) -> int:
    """Instructions that short forward branches of a loop skip: angles beyond a sine's usual range."""
    skipped: set[int] = set()
    for i in range(*loop):
        jumps = code[i].jumps
        if jumps is not None and code[i].conditional and 10 < jumps - i < most:
            skipped.update(range(i + 1, jumps))
    return len(skipped)


def estimate(instructions: int, environments: int, block: int = 16) -> dict[str, float]:
    """Speed of a batch on an H100, from the instructions of a warp and the cycles that one takes."""
    warps = -(-environments // block)
    rounds = max(1, -(-warps // (SCHEDULERS * RESIDENT)))
    seconds = instructions * (ALONE if warps <= SCHEDULERS else TOGETHER * rounds) / CLOCK
    return {"estimate_us": round(1e6 * seconds, 1), "estimate_Msteps_s": round(environments / seconds / 1e6, 1)}
