"""Measuring a benchmark's cases: compile, warm up, then take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.cases import Call, Case, Child, Mode, Program, Quoted
from benchmarks.counting import Count, count_operations
from benchmarks.statistics import summarize

Row = dict[str, Any]

SHORTEST = 0.02
"""Seconds a timed run takes at least; shorter ones are run several times for one reading."""


@dataclasses.dataclass
class Prepared:
    """A case ready to be timed.

    Attributes:
      case: what it is.
      run: runs it once and waits for the result.
      row: what preparing it has shown.
      own_clock, close: as in `Call`.
      seconds, cpu: the runs so far, and this process's CPU seconds in them.
      calls: runs behind one reading.
    """

    case: Case
    run: Callable[[], Any]
    row: Row
    own_clock: bool = False
    close: Callable[[], Any] | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    calls: int = 1
    wanted: int = 1


def measure_benchmark(
    name: str, cases: Iterable[Case | Quoted], mode: Mode, clock: Callable[[], float], tell: Callable[[str], None]
) -> list[Row]:
    """Rows of one benchmark; a case that fails, or for which no time is left, is a row that says so.

    Args:
      name: of the benchmark.
      cases: what it is made of.
      mode: how thoroughly.
      clock: seconds since the run began, for the mode's limit.
      tell: shown what is being done.
    """
    rows, ready = [], []
    for case in cases:
        if isinstance(case, Quoted):
            rows.append(quoted_row(name, case))
        elif clock() > mode.limit:
            rows.append(_row(name, case, status="skipped", note=f"{mode.limit:.0f} s of the {mode.name} mode were over"))
        else:
            tell(f"{name}: preparing {case.name}")
            prepared = prepare(name, case, mode)
            rows.append(prepared.row)
            if prepared.row["status"] == "measured":
                ready.append(prepared)
    tell(f"{name}: measuring")
    take_turns(ready)
    return rows


def take_turns(ready: Sequence[Prepared]) -> None:
    """Time every case in rounds, each as often as it is wanted, and complete its row."""
    for turn in range(max((case.wanted for case in ready), default=0)):
        for prepared in ready:
            if turn < prepared.wanted and prepared.row["status"] == "measured":
                with _failures_into(prepared.row):
                    prepared.seconds.append(timed(prepared))
    for prepared in ready:
        if prepared.close is not None:
            prepared.close()
        if prepared.row["status"] == "measured":
            finish(prepared)


def prepare(benchmark: str, case: Case, mode: Mode) -> Prepared:
    """Build, compile and warm up one case."""
    prepared = Prepared(case, lambda: None, _row(benchmark, case, status="measured"))
    with _failures_into(prepared.row):
        job = case.make()
        if isinstance(job, Program):
            _prepare_program(prepared, job)
        else:
            _prepare_call(prepared, job)
        if prepared.own_clock:
            prepared.wanted = case.repeats or mode.repeats
        else:
            _plan(prepared, mode)
    return prepared


def _prepare_program(prepared: Prepared, job: Program) -> None:
    """Trace, lower and compile, timed apart; count; one run to warm up."""
    start = time.perf_counter()
    traced = jax.jit(job.fn).trace(*job.args)
    lowered = traced.lower()
    middle = time.perf_counter()
    program = lowered.compile()
    prepared.row |= {"trace_s": middle - start, "compile_s": time.perf_counter() - middle}
    prepared.row |= program_account(program, count_operations(traced.jaxpr.jaxpr))

    def run() -> Any:
        return jax.block_until_ready(program(*job.args))

    prepared.run = run
    _warm_up(prepared)


def _prepare_call(prepared: Prepared, job: Call) -> None:
    """A first call to warm up; a call that times itself starts processes, which need no warm-up."""
    prepared.own_clock, prepared.close = job.own_clock, job.close
    prepared.run = job.fn if job.own_clock else lambda: jax.block_until_ready(job.fn())
    if not job.own_clock:
        prepared.row["first_call_compiles"] = job.compiles
        _warm_up(prepared)


def _warm_up(prepared: Prepared) -> None:
    """The first run: its time, what it did, and the memory it took."""
    row = prepared.row
    row["memory_before"] = resident_memory()[0]
    reset_peak()
    start = time.perf_counter()
    output = prepared.run()
    row["first_call_s"] = time.perf_counter() - start
    row["memory"] = device_peak() or resident_memory()[1]
    row["work"] = float(work(output)) if callable(work := prepared.case.work) else float(work)


def _plan(prepared: Prepared, mode: Mode) -> None:
    """How many runs a reading holds, and how many readings."""
    start = time.perf_counter()
    prepared.run()
    seconds = max(time.perf_counter() - start, 1e-7)
    prepared.calls = min(max(1, math.ceil(SHORTEST / seconds)), 1000)
    affordable = int(mode.case_seconds / (seconds * prepared.calls))
    prepared.wanted = prepared.case.repeats or min(max(mode.repeats, affordable), mode.most_repeats)


def timed(prepared: Prepared) -> float:
    """Seconds of one run."""
    if prepared.own_clock:
        output = prepared.run()
        output = output if isinstance(output, Child) else Child(float(output))
        work = prepared.case.work
        assert not callable(work)
        prepared.row["work"] = float(work)
        if output.memory is not None:
            prepared.row["memory"] = max(prepared.row.get("memory") or 0, output.memory)
        return output.seconds
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(prepared.calls):
        prepared.run()
    prepared.cpu.append((time.process_time() - busy) / prepared.calls)
    return (time.perf_counter() - start) / prepared.calls


def finish(prepared: Prepared) -> None:
    """Complete a row with the statistics of its runs."""
    row, summary = prepared.row, summarize(prepared.seconds)
    row["seconds"] = {**dataclasses.asdict(summary), "iqr": summary.iqr, "runs": [round(s, 9) for s in prepared.seconds]}
    row["calls_per_reading"] = prepared.calls
    if prepared.cpu:
        row["cpu_s"] = summarize(prepared.cpu).median
    row["rate"] = row["work"] / summary.median
    if theirs := prepared.case.against:
        row["against"] = {"name": theirs.short, "ratio": row["rate"] * theirs.seconds / theirs.work}
    if row.pop("first_call_compiles", False):
        row["compile_s"] = max(row["first_call_s"] - summary.median, 0.0)


def add_ceilings(rows: Iterable[Row], copy_rate: float | None, product_rate: float | None) -> None:
    """Fill in the fraction of the ceiling where operations or bytes were counted."""
    for row in rows:
        if row["status"] != "measured" or row.get("operations") is None or not copy_rate or not product_rate:
            continue
        least = max(row["operations"] / product_rate, row["bytes"] / copy_rate)
        row["ceiling_fraction"] = least / row["seconds"]["median"]


def program_account(program: Any, count: Count) -> Row:
    """Operations, bytes and buffers of a compiled program, as far as the backend tells."""
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    sizes = {
        name: int(getattr(memory, f"{name}_size_in_bytes", 0)) for name in ("argument", "output", "temp", "generated_code")
    }
    return {
        "operations": count.operations,
        "operations_complete": count.complete,
        "bytes": float(sizes["argument"] + sizes["output"]),
        "xla_operations": cost.get("flops"),
        "xla_bytes": cost.get("bytes accessed"),
        "buffers": sizes,
    }


def quoted_row(benchmark: str, case: Quoted) -> Row:
    """Return the row of a published figure."""
    row = {"benchmark": benchmark, "case": case.name, "unit": case.unit, "work": case.work, "status": "quoted"}
    seconds = {"count": 1, "median": case.seconds}
    return {**row, "note": case.source, "seconds": seconds, "rate": case.work / case.seconds}


def _row(benchmark: str, case: Case, **fields: Any) -> Row:
    place = {"series": case.series or case.name, "size": case.size} if case.size else {}
    return {"benchmark": benchmark, "case": case.name, "unit": case.unit, **place, "note": "", **fields}


@contextlib.contextmanager
def _failures_into(row: Row) -> Any:
    """Record an exception in the case's row instead of ending the run; a user's interrupt does end it."""
    try:
        yield
    except Exception as error:
        text = (str(error).strip() or "no reason given").splitlines()[0]
        row.update(status="failed", note=f"{type(error).__name__}: {text[:160]}")


def reset_peak() -> None:
    """Reset the peak of resident memory, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> tuple[int | None, int | None]:
    """Bytes resident now and at most since `reset_peak`; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None, None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    now, most = (int(fields[name].split()[0]) * 1024 if name in fields else None for name in ("VmRSS", "VmHWM"))
    return now, most


def device_peak() -> int | None:
    """Most bytes an accelerator has held so far; None on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats and "peak_bytes_in_use" in stats else None
