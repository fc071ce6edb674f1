"""The parts of Brax that are used, imported without the lines and warnings of Brax and of what it imports."""

import contextlib
import io
import warnings

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")  # of jaxopt's end of support, and of Brax's move to MuJoCo Playground
    import brax.envs as brax_envs  # prints "Failed to import warp" where Warp is not installed
    from brax.envs.base import Env, State

__all__ = ["Env", "State", "brax_envs"]
