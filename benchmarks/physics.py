"""Accuracy and speed of the physics backends: `python -m benchmarks.physics [--quick] [--out FILE]`.

Accuracy: one environment step against MuJoCo C in float64 with a converged solver. Speed: whole environment steps (5 and 4
physics steps), random actions drawn inside the loop, both bodies mixed where a backend can mix them. Compile
and run time apart.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tamherd_jax.physics import parity
from tamherd_jax.physics.base import Physics, PhysicsState, init_state
from tamherd_jax.physics.bodies import BODIES, CHEETAH, FRAME_SKIP, NQ, NU, NV, load_model
from tamherd_jax.physics.mujoco_c import MujocoPhysics
from tamherd_jax.physics.planar import PlanarPhysics, SolverOptions, body_table, planar_step

Row = dict[str, float | int | str]


def device_name() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def on_nvidia() -> bool:
    return jax.devices()[0].platform == "gpu"


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
            yield {"body": body, "states": kind, **_quantiles(errors[-1], posed[-1])}
        yield {"body": body, "states": "all", **_quantiles(np.concatenate(errors), np.concatenate(posed))}


def _quantiles(error: np.ndarray, posed: np.ndarray) -> Row:
    return {
        "count": len(error),
        "median": float(np.median(error)),
        "99%": float(np.quantile(error, 0.99)),
        "worst": float(error.max()),
        "worst, well-posed": float(error[posed].max()),
        "ill-posed": int((~posed).sum()),
    }


def time_rollout(name: str, lanes: int, step: Callable, start: object, length: int) -> Row:
    """Compile and run time of `length` environment steps of `lanes` lanes under `lax.scan`; the best of three runs."""

    def rollout(state, key):
        def advance(state, key):
            return step(state, jnp.clip(jax.random.normal(key, (lanes, NU)), -1, 1)), None

        return jax.lax.scan(advance, state, jax.random.split(key, length))[0]

    begun = time.perf_counter()
    compiled = jax.jit(rollout).lower(start, jax.random.key(0)).compile()
    compile_s = time.perf_counter() - begun
    end, best = jax.block_until_ready(compiled(start, jax.random.key(0))), np.inf
    for seed in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(start, jax.random.key(seed)))
        best = min(best, time.perf_counter() - begun)
    bad = sum(int((~jnp.isfinite(x)).sum()) for x in jax.tree.leaves(end) if jnp.issubdtype(x.dtype, jnp.floating))
    return {
        "backend": name,
        "lanes": lanes,
        "steps/s": lanes * length / best,
        "ms a step": best / length * 1e3,
        "compile s": compile_s,
        "non-finite": bad,
    }


def physics_row(name: str, physics: Physics, lanes: int, length: int) -> Row:
    """Cheetahs and walkers mixed, through the backend's `step`."""
    body = jnp.arange(lanes, dtype=jnp.int32) % len(BODIES)
    noise = jnp.asarray([0.1, 0.005])[body][:, None]
    q = noise * jax.random.uniform(jax.random.key(1), (lanes, NQ), minval=-1.0)
    start = jax.vmap(init_state)(q, noise * jax.random.normal(jax.random.key(2), (lanes, NV)))

    def step(state: PhysicsState, control: jax.Array) -> PhysicsState:
        return jax.vmap(physics.step)(body, state, control)

    return time_rollout(name, lanes, step, start, length)


def mjx_row(name: str, lanes: int, length: int) -> Row:
    """MJX with the solver tuned to the accuracy it can reach: 4 iterations, 6 line-search steps; half-cheetahs."""
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco import mjx
    model = parity.converged(load_model("cheetah"))
    model.opt.iterations, model.opt.ls_iterations = 4, 6
    with contextlib.redirect_stdout(io.StringIO()):
        device_model = mjx.put_model(model)
        data = mjx.make_data(model)

    def one(data, control):
        data = data.replace(ctrl=control)
        return jax.lax.fori_loop(0, FRAME_SKIP[CHEETAH], lambda _, d: mjx.step(device_model, d), data)

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *jnp.shape(x))), data)
    return time_rollout(name, lanes, jax.vmap(one), start, length)


def brax_row(name: str, backend: str, lanes: int, length: int) -> Row:
    """Brax's half-cheetah environment as shipped."""
    with contextlib.redirect_stdout(io.StringIO()):
        from brax import envs

        environment = envs.get_environment("halfcheetah", backend=backend)
        start = jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.PRNGKey(0), lanes))
    return time_rollout(name, lanes, jax.vmap(environment.step), start, length)


def _job(measure: Callable[..., Row], name: str, *arguments: object) -> tuple[str, Callable[[], Row]]:
    """A row to be measured later, and its name should that fail."""
    return name, functools.partial(measure, name, *arguments)


def throughput_rows(quick: bool, deadline: float) -> Iterator[Row]:
    """One row a backend and batch; a backend that fails is a row with its error, and late ones are skipped."""
    big = on_nvidia()
    wide = (2048, 32768) if big else (256, 2048) if quick else (256, 2048, 8192)
    length = 100 if big else 10
    jobs: list[tuple[str, Callable[[], Row]]] = []
    for lanes in wide:
        if big:
            jobs.append(_job(physics_row, "planar, Pallas", PlanarPhysics("pallas"), lanes, 1000))
        jobs.append(_job(physics_row, "planar, XLA", PlanarPhysics("xla"), lanes, length))
    jobs.append(_job(physics_row, "mujoco C", MujocoPhysics(), 1024, 10))
    peers = 4096 if big else 32
    jobs.append(_job(mjx_row, "mjx (4, 6), cheetah", peers, 10))
    for backend in () if quick else ("mjx", "generalized", "spring"):
        jobs.append(_job(brax_row, f"brax {backend}, cheetah", backend, peers, 10))
    for name, job in jobs:
        if time.perf_counter() > deadline:
            yield {"backend": name, "error": "skipped: out of time"}
            continue
        try:
            yield job()
        except Exception as error:  # a peer that does not install or run must not end the benchmark
            yield {"backend": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}


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


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer states, fewer backends: a couple of minutes on a CPU")
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    count = 900 if arguments.quick else 10_800
    form = "pallas" if on_nvidia() else "xla"
    print(f"device: {device_name()}; jax {jax.__version__}; commit {_commit()}")
    print(f"\nrelative velocity error after one environment step, planar ({form}), float32")
    single = show(accuracy_rows(count, form, double=False))
    print("\nthe same, XLA form, float64, 50 iterations")
    with jax.enable_x64(True):
        double = show(row for row in accuracy_rows(max(count // 10, 450), "xla", double=True) if row["states"] == "all")
    print("\nenvironment steps a second")
    speed = show(throughput_rows(arguments.quick, begun + 420))
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    if arguments.out:
        report = {"device": device_name(), "commit": _commit(), "float32": single, "float64": double, "speed": speed}
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
