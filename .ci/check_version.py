"""Exit with status 1 and one line unless package, CITATION.cff, CHANGELOG.md and, if given, a tag state the same version."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATED = {
    "tamherd_jax/__init__.py": r'^__version__ = "([^"]+)"$',
    "CITATION.cff": r"^version: (\S+)$",
    "CHANGELOG.md": r"^## (\d\S*)",
}
"""File to a pattern whose first match there is the version."""


def stated_versions(root: Path) -> dict[str, str]:
    """Return the version that each file of `STATED` states; empty where it states none."""
    found = {name: re.search(pattern, (root / name).read_text("utf-8"), re.MULTILINE) for name, pattern in STATED.items()}
    return {name: match[1] if match else "" for name, match in found.items()}


def main(tag: str | None = None, root: Path = ROOT) -> str | None:
    """Return the complaint, None where all versions are equal; the tag of version V is `vV`."""
    versions = stated_versions(root)
    version = next(iter(versions.values()))
    if not version or set(versions.values()) != {version}:
        return "versions differ: " + ", ".join(f"{stated or 'none'} in {name}" for name, stated in versions.items())
    if tag is not None and tag != f"v{version}":
        return f"the tag is {tag!r}, but the version is {version}: tag v{version}"
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
