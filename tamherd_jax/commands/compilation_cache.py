"""The directory that keeps compiled programs between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tamherd_jax.commands import UserError

OFF = "off"


def default_cache() -> Path | None:
    """Return the default directory: under XDG_CACHE_HOME, or ~/.cache if that is no absolute path; None without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG base directory specification: anything else is to be ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # neither HOME nor an entry in the password database
            return None
    return base / "tamherd_jax" / "xla"


def use_compilation_cache(named: str | None) -> None:
    """Keep compiled programs in a directory between runs. It may be moved, or copied to another machine of the same kind.

    Args:
      named: The directory that the user named, `off` for none, None for the default one. A default directory that cannot be
        used costs a line on standard error and the cache, nothing else.

    Raises:
      UserError: The directory that the user named cannot be made.
    """
    if named == OFF:
        return
    directory = default_cache() if named is None else Path(named)
    if directory is None:
        sys.stderr.write("tamherd: no home directory for the compilation cache; name one with --compilation-cache\n")
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        problem = f"cannot use the compilation cache {directory}: {error.strerror}"
        if named is not None:
            raise UserError(f"{problem}; choose another or off") from error
        sys.stderr.write(f"tamherd: {problem}; going on without it\n")
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    # By default JAX tells XLA of a place beside it for what it finds out about a GPU, and the place becomes part of every key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
