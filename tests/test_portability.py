"""Other systems than the one that the tests run on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.data.datasets.shapes import write_split

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_imports_trains_and_predicts_elsewhere(system: str, tmp_path: Path) -> None:
    """Without the modules, functions and signals that Windows or macOS lacks; on macOS with a spawned worker."""
    list(write_split(tmp_path, "train", 2, size=(64, 64)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASK2FORMER_D2": "bundled", "OMP_NUM_THREADS": "1"}
    environment["MASK2FORMER_CACHE"] = str(tmp_path / "cache")  # nothing compiled lies there
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "foreign_system.py"), system, str(tmp_path)]
    if system == "darwin":
        environment["CXX"] = "no-such-compiler"
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "output" / "log.txt").read_text(encoding="utf-8")
    reasons = {"win32": "for Linux and macOS, not win32", "darwin": "there is no C++ compiler"}
    assert reasons[system] in log
    assert "iter 2/2" in log
    assert ("max_mem" in log) is (system == "darwin")
