"""Compile the accelerator's programs without an accelerator, and report what they cost: `python -m benchmarks ahead_of_time`.

JAX's plug-ins compile for an NVIDIA H100 (sm_90) and for a TPU v5e without a device. Read are the compilation's CPU seconds,
memory and code size; and, of the physics kernel for the H100, registers, spills and instructions, from which its speed is
estimated. An estimate is no measurement.

Needs the plug-ins: `pip install 'tamherd-jax[ahead-of-time]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FLAGS = "--xla_gpu_autotune_level=0 --xla_dump_to={} --xla_dump_emitter_re=.*"
TARGETS = ("h100", "v5e")
KERNEL_MARK = "rcp.approx.f32 r, "  # of the physics kernel's own division
MEMORY = {"h100": 80e9, "v5e": 16e9}
"""Bytes of a chip's memory."""

Row = dict[str, Any]


def main(arguments: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Compile, print a line a program, write the JSON file.

    Returns:
      0, or 1 if a program did not compile.

    Raises:
      ValueError: a plug-in is missing, or a name is unknown.
    """
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs whose names contain this; all by default")
    parser.add_argument("--target", choices=TARGETS, action="append", help="by default both")
    parser.add_argument("--out", type=Path, help="JSON file; rows of other programs and targets in it are kept")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as dump:
        prepare(Path(dump))
        rows = list(compiled_rows(options.target or TARGETS, options.names, Path(dump), options.out))
    return int(any(row["status"] != "compiled" for row in rows))


def prepare(dump: Path) -> None:
    """Set what XLA reads once, before JAX is imported: no device is looked for, and PTX is kept."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS.format(dump)}"


def compiled_rows(targets: Sequence[str], names: Sequence[str], dump: Path, out: Path | None) -> list[Row]:
    """Rows of the programs asked for; the file is written after each."""
    from benchmarks.programs import PAPER, programs

    known = programs(PAPER)
    chosen = {name: make for name, make in known.items() if not names or any(part in name for part in names)}
    if not chosen:
        raise ValueError(f"no program's name contains {' or '.join(names)}; they are: {'; '.join(known)}")
    rows = []
    for target in targets:
        device = device_of(target)
        for name, make in chosen.items():
            row = {"target": target, "program": name, **attempt(target, device, make, dump)}
            rows.append(row)
            print(line_of(row), flush=True)
            if out is not None:
                write_rows(out, rows)
    return rows


def device_of(target: str) -> Any:
    """Return a device to compile for, which this machine need not have.

    Raises:
      ValueError: its plug-in is missing.
    """
    from jax.experimental import topologies

    from benchmarks.targets import H100

    try:
        if target == "h100":
            described = topologies.get_topology_desc("", platform="cuda", target_config=H100, topology="1x1x1")
        else:
            described = topologies.get_topology_desc("v5e:2x2", platform="tpu")
    except Exception as error:  # the plug-ins raise whatever they like
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot compile for {target} ({reason}): pip install 'tamherd-jax[ahead-of-time]'") from error
    return described.devices[0]


def attempt(target: str, device: Any, make: Callable[[], Any], dump: Path) -> Row:
    """Compile a program for a device; one that fails says why."""
    for old in dump.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    try:
        return compile_for(target, device, make, dump)
    except Exception as error:  # whatever a compiler says
        return {"status": "failed", "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def compile_for(target: str, device: Any, make: Callable[[], Any], dump: Path) -> Row:
    """CPU seconds, memory and code of a program; of the physics kernel, its machine code too."""
    import jax

    from benchmarks.machine_code import kernel_report
    from benchmarks.targets import lowering_for

    platform = "cuda" if target == "h100" else "tpu"
    place = jax.sharding.SingleDeviceSharding(device)
    program = make()
    with lowering_for(platform, device.device_kind):
        start = time.process_time()
        traced = jax.jit(program.fn, in_shardings=place, out_shardings=place).trace(*program.args)
        lowered = traced.lower(lowering_platforms=(platform,))
        middle = time.process_time()
        done = lowered.compile()
        end = time.process_time()
    row = {"status": "compiled", "lowering_cpu_s": round(middle - start, 1), "compilation_cpu_s": round(end - middle, 1)}
    kernels = [path for path in dump.rglob("*.ptx") if KERNEL_MARK in path.read_text(encoding="utf-8")]
    report = kernel_report(max(kernels, key=lambda path: path.stat().st_size), program.args) if kernels else {}
    return row | memory_of(done) | ({"kernel": report} if report else {})


def memory_of(done: Any) -> Row:
    """Megabytes of a compiled program, by XLA's account."""
    analysis = done.memory_analysis()
    parts = ("argument", "output", "temp", "alias", "generated_code")
    sizes = {part: getattr(analysis, f"{part}_size_in_bytes") for part in parts}
    need = sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]
    return {**{f"{part}_MB": round(size / 1e6, 2) for part, size in sizes.items()}, "memory_MB": round(need / 1e6, 2)}


def line_of(row: Row) -> str:
    """Return a row as a line of text."""
    head = f"{row['target']:5s} {row['program']:60s}"
    if row["status"] != "compiled":
        return f"{head} {row['error']}"
    cost = f"{row['compilation_cpu_s']:6.1f} CPU s, {row['memory_MB']:8.1f} MB, code {row['generated_code_MB']:6.2f} MB"
    kernel = row.get("kernel")
    if not kernel:
        return f"{head} {cost}"
    speed = f"estimate {kernel['estimate_Msteps_s']:.0f} M environment steps/s" if "estimate_Msteps_s" in kernel else ""
    return f"{head} {cost}; {kernel['registers']} registers, {kernel['spill_bytes']} B spilled; {speed}"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Put rows into a file, in place of older ones of the same programs and targets; add how many learners fit."""
    import jax

    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = {(row["target"], row["program"]) for row in rows}
    every = [row for row in old if (row["target"], row["program"]) not in new] + [
        {**row, "jax": jax.__version__} for row in rows
    ]
    document = {"kind": "ahead of time: compiled, not run", "rows": every, "learners_that_fit": learners_that_fit(every)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def learners_that_fit(rows: Sequence[Row], share: float = 0.8) -> Row:
    """How many learners' epochs fit into a chip's memory: from the programs of 1 and 8 learners, by a straight line."""
    need = {(row["target"], row["program"]): row["memory_MB"] for row in rows if row["status"] == "compiled"}
    found: Row = {}
    for target, bytes_there in MEMORY.items():
        for algorithm in ("maml", "pearl"):
            one, eight = (need.get((target, f"{algorithm} epoch, {n}")) for n in ("1 learner", "8 learners"))
            if one is not None and eight is not None and eight > one:
                each = (eight - one) / 7
                fitting = int(1 + (share * bytes_there / 1e6 - one) / each)
                found[f"{algorithm} on {target}"] = {"MB_each": round(each, 1), "learners": fitting}
    return found
