"""The words of the tables, printed with the numbers."""

UNITS = {
    "environment step": "one action of one environment, whatever number of physics steps it takes (cheetah 5, walker 4); "
    "steps after an episode's end are computed but not counted",
    "physics step": "one integration of one body's equations of motion (0.01 s of a cheetah, 0.002 s of a walker)",
    "meta-step": "one evaluation for a meta-batch of 20 tasks x 10 episodes x 100 steps before and as many after adaptation",
    "task": "one task's embedding and its row of the Gram matrix",
    "gradient step": "one update of all networks on a meta-batch (PEARL: 4 tasks x 256 transitions, contexts of 256)",
    "epoch": "one meta-update's worth of data and that update, of one learner",
    "start": "one process",
    "report": "one run directory",
    "byte": "read or written",
    "operation": "floating-point",
}

COLUMNS = {
    "compile": "seconds of tracing, lowering and compiling ahead of time; ~ the first call's excess over a later one, where a "
    "figure is made of several programs",
    "min, median": "seconds of one run after a warm-up, waited for; all cases of a benchmark take turns, so that the "
    "spread holds what drifts on the machine",
    "spread": "slowest run less the fastest, seconds; quartiles and every run are in the JSON file",
    "CPU": "seconds of all threads of this process in a run, median; well below cores x median where the machine was shared",
    "rate": "units a second at the median",
    "memory": "on a CPU the process's largest resident memory during the warm-up, on an accelerator the most that the device "
    "has held so far in this run; the compiled program's own buffers are in the JSON file",
    "ops": "floating-point operations of a run, counted on the traced program, loops by their length; >= where it holds a "
    "loop of unknown length or a call out of JAX (MuJoCo C), counted once or not at all",
    "bytes": "arguments and results of a run, each moved once",
    "ceiling": "max(ops / matrix product's rate, bytes / copy's rate) over the median: 100% is as fast as the machine was "
    "measured to be, with nothing but the unavoidable traffic",
    "first progress line": "first line on standard output, which says what is run and where results go, before the first "
    "program is compiled",
    "first epoch's line": "first line that shows returns: after programs are compiled, one epoch trained and tested",
}


def lines(units: set[str], columns: set[str] | None = None) -> list[str]:
    """`word: meaning` for the units that occur and the columns."""
    shown = {name: text for name, text in COLUMNS.items() if columns is None or name in columns}
    return [f"{name}: {text}" for name, text in [*((u, UNITS[u]) for u in sorted(units)), *shown.items()]]
