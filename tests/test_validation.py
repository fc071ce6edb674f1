import dataclasses
import math
import re
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamherd_jax.maml import MAMLConfig, TRPOConfig
from tamherd_jax.validation import (
    NonNegativeInt,
    OpenUnitFloat,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
    check_fields,
    traceable,
    within,
)


@traceable
@dataclasses.dataclass(frozen=True)
class Inner:
    rate: PositiveFloat = 0.5
    final: PositiveFloat | None = None
    steps: NonNegativeInt = 0

    def __post_init__(self):
        check_fields(self)


@traceable
@dataclasses.dataclass(frozen=True)
class Outer:
    discount: UnitFloat = 0.99
    ratio: OpenUnitFloat = 0.8
    count: PositiveInt = 3
    sizes: tuple[PositiveInt, ...] = (64, 64)
    kind: Literal["a", "b"] = "a"
    number: PositiveInt | Literal["auto"] = 2
    flag: bool = False
    name: str = "x"
    port: Annotated[int, within(0, 65535)] = 80
    inner: Inner = Inner()

    def __post_init__(self):
        check_fields(self)


FAULTS = [
    ({"discount": 1.5}, "discount must be from 0 to 1, not 1.5"),
    ({"discount": float("nan")}, "discount must be finite, not nan"),
    ({"discount": "x"}, "discount must be a number, not 'x'"),
    ({"discount": True}, "discount must be a number, not True"),
    ({"discount": np.array([0.5, 2.0])}, "discount must be from 0 to 1"),
    ({"ratio": 1.0}, "ratio must be between 0 and 1, not 1.0"),
    ({"count": 0}, "count must be at least 1, not 0"),
    ({"count": 1.5}, "count must be an integer, not 1.5"),
    ({"count": True}, "count must be an integer, not True"),
    ({"count": None}, "count must be an integer, not None"),
    ({"sizes": (64, 0)}, "sizes must hold elements that each must be at least 1"),
    ({"sizes": [64]}, "sizes must be a tuple"),
    ({"kind": "c"}, "kind must be one of a, b, not 'c'"),
    ({"number": 0}, "number must be at least 1, not 0"),
    ({"number": "many"}, "number must be an integer or one of auto, not 'many'"),
    ({"number": True}, "number must be an integer or one of auto, not True"),
    ({"flag": 1}, "flag must be True or False, not 1"),
    ({"name": 3}, "name must be a text, not 3"),
    ({"port": 99999}, "port must be from 0 to 65535, not 99999"),
    ({"inner": 3}, "inner must be a Inner, not 3"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_field(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Outer(**changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_none_and_limits_of_optional_fields():
    assert Inner(final=None).final is None
    with pytest.raises(ValueError, match="final must be positive, not -1"):
        Inner(final=-1)
    with pytest.raises(ValueError, match="final must be a number or None, not 'x'"):
        Inner(final="x")


def test_numpy_numbers_and_integers_for_floats_are_accepted():
    assert Outer(count=np.int64(2), discount=1, sizes=(), number="auto", inner=Inner(rate=np.float32(2))).discount == 1
    assert Outer(discount=jnp.array([0.5, 0.9])).discount.shape == (2,)


def test_floats_are_leaves_that_may_be_mapped_over_and_traced():
    grid = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(Outer(inner=Inner(rate=r)) for r in (1.0, 2.0, 3.0)))
    traces = []

    @jax.jit
    @jax.vmap
    def scaled(config):
        traces.append(1)
        inner = dataclasses.replace(config.inner, rate=2 * config.inner.rate)
        return inner.rate * config.discount * config.count

    np.testing.assert_allclose(scaled(grid), np.array([2.0, 4.0, 6.0]) * 0.99 * 3, rtol=1e-6)
    np.testing.assert_allclose(scaled(dataclasses.replace(grid, discount=grid.discount / 0.99)), [6.0, 12.0, 18.0], rtol=1e-6)
    assert len(traces) == 1
    assert jax.tree.structure(Outer()) != jax.tree.structure(Outer(count=4))


MAML_FAULTS = [
    ({"inner_loss": "x"}, "inner_loss must be one of likelihood, ratio, not 'x'"),
    ({"outer_loss": "x"}, "outer_loss must be one of ratio, likelihood, not 'x'"),
    ({"baseline": "x"}, "baseline must be one of linear, frozen, not 'x'"),
    ({"advantage_scale": "x"}, "advantage_scale must be one of std, variance, none, not 'x'"),
    ({"horizon": 0}, "horizon must be at least 1, not 0"),
    ({"episodes_per_task": 1.5}, "episodes_per_task must be an integer, not 1.5"),
    ({"inner_step_size": math.nan}, "inner_step_size must be finite, not nan"),
    ({"inner_step_size": -0.1}, "inner_step_size must not be negative, not -0.1"),
    ({"inner_step_size": "0.1"}, "inner_step_size must be a number, not '0.1'"),
    ({"discount": math.nan}, "discount must be finite, not nan"),
    ({"discount": 1.01}, "discount must be from 0 to 1, not 1.01"),
    ({"gae_lambda": -0.5}, "gae_lambda must be from 0 to 1, not -0.5"),
    ({"inner_steps": -1}, "inner_steps must not be negative, not -1"),
    ({"inner_steps": True}, "inner_steps must be an integer, not True"),
    ({"hidden_sizes": (64, -1)}, "hidden_sizes must hold elements that each must be at least 1"),
    ({"init_log_std": math.inf}, "init_log_std must be finite, not inf"),
    ({"trpo": None}, "trpo must be a TRPOConfig, not None"),
]


@pytest.mark.parametrize(("changes", "message"), MAML_FAULTS)
def test_maml_refuses_settings_that_it_would_misread(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        MAMLConfig(**changes)


@pytest.mark.parametrize("name", ["max_kl", "final_max_kl", "cg_damping", "cg_tolerance", "backtrack_ratio"])
def test_the_trust_regions_numbers_must_be_finite(name):
    with pytest.raises(ValueError, match=f"^{name} must be finite, not nan"):
        TRPOConfig(**{name: math.nan})


def test_a_decaying_kl_bound_is_checked_elementwise():
    assert TRPOConfig(max_kl=jnp.array([0.1, 0.2]), final_max_kl=0.1).max_kl_at(0).shape == (2,)
    with pytest.raises(ValueError, match="final_max_kl must be positive and at most max_kl"):
        TRPOConfig(max_kl=jnp.array([0.1, 0.2]), final_max_kl=0.15)
