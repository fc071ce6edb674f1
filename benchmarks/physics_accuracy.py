"""Accuracy of the planar physics: `python -m benchmarks.physics_accuracy [--quick] [--out FILE]`.

One environment step against MuJoCo C in float64 with a converged solver, from states of many kinds.
"""

import argparse
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bodies import BODIES
from benchmarks.machine import commit, device_name
from tamherd_jax import simd
from tamherd_jax.physics import parity
from tamherd_jax.physics.planar import SolverOptions, body_table, planar_step

Row = dict[str, float | int | str]


def single_precision_forms() -> list[str]:
    """Return the forms of the planar physics that run in float32 here, the default first."""
    if jax.devices()[0].platform == "gpu":
        return ["pallas", "xla"]
    return ["xla"] if simd.availability() else ["native", "xla"]


def accuracy_rows(count: int, form: str, double: bool) -> Iterator[Row]:
    """Velocity error of the planar physics by body and kind of state, then over all of a body's states."""
    options = SolverOptions(iterations=50, line_search=20) if double else SolverOptions()
    step = jax.jit(functools.partial(planar_step, body_table(), options=options, form=form))
    for index, body in enumerate(BODIES):
        errors, posed = [], []
        for kind, states in parity.scenarios(body, count).items():
            q, qd, control = (jnp.asarray(x, jnp.float64 if double else jnp.float32) for x in states)
            _, found, _ = step(jnp.full(len(q), index, jnp.int32), (q, qd, jnp.zeros_like(qd)), control)
            errors.append(parity.velocity_error(found, parity.reference(body, states)[1]))
            posed.append(parity.well_posed(body, states))
            yield {"form": form, "body": body, "states": kind, **_quantiles(errors[-1], posed[-1])}
        yield {"form": form, "body": body, "states": "all", **_quantiles(np.concatenate(errors), np.concatenate(posed))}


def _quantiles(error: np.ndarray, posed: np.ndarray) -> Row:
    return {
        "count": len(error),
        "median": float(np.median(error)),
        "99%": float(np.quantile(error, 0.99)),
        "worst": float(error.max()),
        "worst, well-posed": float(error[posed].max()),
        "ill-posed": int((~posed).sum()),
    }


def show(rows: Iterator[Row]) -> list[Row]:
    """Print rows as they come, columns aligned, and return them."""
    done: list[Row] = []
    for row in rows:
        if not done or set(row) != set(done[-1]):
            print("  ".join(f"{key:>18s}" for key in row))
        print("  ".join(f"{_text(value):>18s}" for value in row.values()), flush=True)
        done.append(row)
    return done


def _text(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value < 1e-2 else f"{value:,.2f}" if value < 1e3 else f"{value:,.0f}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer states")
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    count = 900 if arguments.quick else 10_800
    print(f"device: {device_name()}; jax {jax.__version__}; commit {commit()}")
    print("\nrelative velocity error after one environment step, planar, float32")
    single = show(row for form in single_precision_forms() for row in accuracy_rows(count, form, double=False))
    print("\nthe same, XLA form, float64, 50 iterations")
    with jax.enable_x64(True):
        double = show(row for row in accuracy_rows(max(count // 10, 450), "xla", double=True) if row["states"] == "all")
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    if arguments.out:
        report = {"device": device_name(), "commit": commit(), "float32": single, "float64": double}
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
