"""A short run of `tools/fuzz.py`: random command lines and damaged files end in one line, never in a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "tools" / "fuzz.py"


@pytest.mark.parametrize("seed", [0, 1])
def test_random_command_lines_and_damaged_files(seed):
    command = [sys.executable, str(FUZZ), "--lines", "50", "--files", "40", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"50 command lines, 40 damaged files, seed {seed}: 0 faults\n"
