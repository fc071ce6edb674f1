"""Which arguments the programs of an experiment were called with, as shapes."""

import contextlib

import jax
import pytest

from tamherd_jax.parallel import LearnerMap


def signature(args):
    """Structure, shapes and dtypes of arguments."""
    leaves, structure = jax.tree.flatten(args)
    return str(structure), tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves)


@contextlib.contextmanager
def recorded_calls():
    """Program -> signatures of its calls within the block."""
    calls, call = {}, LearnerMap.__call__

    def recording(self, *args):
        calls.setdefault(self, set()).add(signature(args))
        return call(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnerMap, "__call__", recording)
        yield calls
