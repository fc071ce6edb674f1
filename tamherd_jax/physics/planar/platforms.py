"""One step in several forms, of which only that of the platform that a program is compiled for is traced.

`jax.lax.platform_dependent` traces all of its branches wherever it stands: a program for a CPU would trace the GPU's kernel,
and fail where JAX has no such kernel.
"""

import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from tamherd_jax.physics.planar.constants import PlanarTree
from tamherd_jax.physics.planar.kernel import FlatState

Step = Callable[[PlanarTree | None, jax.Array, FlatState, jax.Array], FlatState]
"""One environment step: of a table (None where it is compiled in), bodies `[B]`, a state and controls."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def step_by_platform(forms: Mapping[str, Step], default: Step) -> Step:
    """Return a step that is `forms[platform]` in programs for that platform, and `default` in all others.

    Args:
      forms: by the names of `PLATFORMS`. The same functions, every time: eager calls are compiled once for each.
      default: the step elsewhere, and what is differentiated.
    """
    choices = tuple(sorted(forms.items()))

    def step(table: PlanarTree | None, body: jax.Array, state: FlatState, control: jax.Array) -> FlatState:
        leaves, structure = jax.tree.flatten((table, body, state, control))
        return tuple(_step_p.bind(*leaves, forms=choices, default=default, structure=structure))

    return step


def _flat(step: Step, structure: jax.tree_util.PyTreeDef) -> Callable[..., list[jax.Array]]:
    """`step` of the leaves of its arguments."""

    def flat(*leaves: jax.Array) -> list[jax.Array]:
        return list(step(*jax.tree.unflatten(structure, leaves)))

    return flat


def _lower(platform: str | None, ctx: Any, *args: Any, forms: Any, default: Step, structure: Any) -> Any:
    """The platform's form; the default, with a warning, where this JAX cannot compile it."""
    step = dict(forms).get(platform, default)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
            return mlir.lower_fun(_flat(step, structure), multiple_results=True)(ctx, *args)
    except (ImportError, NotImplementedError) as error:
        if step is default:
            raise
        _report_fallback(platform, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return mlir.lower_fun(_flat(default, structure), multiple_results=True)(ctx, *args)


@functools.cache
def _report_fallback(platform: str, reason: str) -> None:
    """Say once why the default form runs in place of the platform's."""
    logging.getLogger("tamherd_jax").warning("planar physics runs in its slower XLA form on %s: %s", platform, reason)


def _abstract(*avals: Any, structure: jax.tree_util.PyTreeDef, **params: Any) -> list[Any]:
    """A step's result is like its state."""
    return list(jax.tree.unflatten(structure, avals)[2])


@functools.lru_cache(maxsize=64)
def _compiled(**params: Any) -> Callable[..., list[jax.Array]]:
    """The primitive on its own, for calls outside of any program."""
    return jax.jit(functools.partial(_step_p.bind, **params))


def _differentiate(primals: Any, tangents: Any, *, default: Step, structure: Any, **params: Any) -> Any:
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(_flat(default, structure), tuple(primals), tuple(tangents))


_step_p = Primitive("planar_step")
_step_p.multiple_results = True
_step_p.def_abstract_eval(_abstract)
_step_p.def_impl(lambda *args, **params: _compiled(**params)(*args))
ad.primitive_jvps[_step_p] = _differentiate
mlir.register_lowering(_step_p, functools.partial(_lower, None))
for _platform in PLATFORMS:
    mlir.register_lowering(_step_p, functools.partial(_lower, _platform), platform=_platform)
