"""The package's shape: imports point one way and close no circle, no class is longer than a few screens."""

import ast
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

import tamherd_jax
from tamherd_jax.registry.algorithms import ALGORITHMS
from tamherd_jax.registry.bodies import BODIES

ROOT = Path(tamherd_jax.__file__).parent
LAYERS = (
    ("types", "validation", "simd", "registry"),
    ("codec", "networks", "distributions", "physics"),
    ("parallel", "fisher"),
    ("envs",),
    ("maml", "pearl"),
    ("herd",),
    ("experiments",),
    ("reporting",),
    ("commands",),
    ("cli",),
)
"""From the bottom up; what is in one layer imports nothing of a higher one when it is loaded."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LONGEST_CLASS = 250


def modules():
    """Name -> syntax tree of every module of the package."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def loaded_imports(tree):
    """Modules of the package that are imported when a module is loaded: not in a function, not for type checking alone."""
    found, left = set(), list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With):
            left += node.body
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return {name for name in found if name in MODULES}


GRAPH = {name: loaded_imports(tree) - {name} for name, tree in MODULES.items()}


def test_no_circle_of_imports():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(GRAPH[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in sorted(GRAPH):
        visit(name)


def test_imports_point_one_way():
    wrong = []
    for name, imported in GRAPH.items():
        parts = name.split(".")
        for other in imported:
            theirs = other.split(".")
            if len(parts) > 1 and len(theirs) > 1 and RANK[theirs[1]] > RANK[parts[1]]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_every_part_has_its_layer():
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(RANK)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_class_is_longer_than_a_few_screens(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < LONGEST_CLASS, f"{name}.{node.name}"


ENTRY_NAMES = {*ALGORITHMS, *(body.name for body in BODIES)}
HOMES = ("tamherd_jax.registry", "tamherd_jax.maml", "tamherd_jax.pearl", "tamherd_jax.reporting.paper")
"""Where an algorithm or body may be named: its entry, its own package, and what the paper says."""


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not name.startswith(HOMES) and "." in name))
def test_algorithms_and_bodies_are_named_in_their_entries_alone(name):
    """No string of the code is or holds such a name as a word of its own; docstrings may tell of them."""
    nodes = list(ast.walk(MODULES[name]))
    documented = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in documented)
    strings = [node.value for node in constants if isinstance(node.value, str)]
    allowed = ("walker frame skip",)  # an option of that name
    for text in strings:
        for phrase in allowed:
            text = text.replace(phrase, "")
        assert not ENTRY_NAMES & set(re.findall(r"\b[a-z]+\b", text)), text


def test_shapes_in_annotations_are_checked_while_tests_run():
    """Where a function of the library refuses shapes itself, its annotations name none."""
    from tamherd_jax.pearl.losses import q_targets, soft_value

    rewards = jnp.ones(5)
    assert soft_value(rewards, rewards, 1.0).shape == (5,)
    for wrong in (
        lambda: q_targets(rewards, jnp.ones(4), rewards, 0.9, 1.0),
        lambda: soft_value(rewards, jnp.ones(5, int), 1.0),
    ):
        with pytest.raises(TypeError, match="checking the parameters"):
            wrong()
