"""The guides' Python code runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ["--root", "datasets/shapes", "--train", "2", "--val", "1", "--size", "64", "80", "--workers", "1"]


def _run(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": "datasets"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as the guides suppose it: configs, and the synthetic data set."""
    path = tmp_path_factory.mktemp("guides")
    (path / "configs").symlink_to(ROOT / "configs")
    _run(path, str(ROOT / "datasets" / "make_shapes.py"), *SHAPES)
    return path


@pytest.mark.parametrize(
    "guide",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/components.md",
        "docs/custom_dataset.md",
        "docs/extending.md",
        "docs/fine_tuning.md",
    ],
)
def test_code_of_guide(guide: str, folder: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / guide).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    # One script of all blocks, imported rather than run: a guide's own `__main__` part stays out.
    (folder / "guide.py").write_text("\n".join(blocks), encoding="utf-8")
    _run(folder, "-c", "import guide")
