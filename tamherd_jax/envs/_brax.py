"""The parts of Brax that are used, imported without the lines and the warning that Brax emits."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):  # "Failed to import warp", printed where Warp is not installed
    import brax.envs as brax_envs
    from brax.envs.base import Env, State

__all__ = ["Env", "State", "brax_envs"]
