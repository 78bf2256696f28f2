"""The notebook on own data: its cells run in order with little data, and what it shows is saved in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "own_data.ipynb"
SMALLER = {"IMAGES = 80": "IMAGES = 6", "EPOCHS = 15": "EPOCHS = 1", 'opts=["SEED", "0"]': "opts=OPTS"}
OPTS = ["INPUT.IMAGE_SIZE", "64", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "SEED", "0"]
RUN = """
import ast, json, sys
from pathlib import Path

namespace = {"OPTS": json.loads(sys.argv[2])}
for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    *body, last = ast.parse(cell).body
    value = None
    if isinstance(last, ast.Expr):  # what a notebook shows
        exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    else:
        exec(compile(ast.Module([*body, last], []), "cell", "exec"), namespace)
value.save("shown.png")
"""


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_cells_run(tmp_path: Path, cells: list[dict]) -> None:
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = json.dumps(codes)
    for long, short in SMALLER.items():
        assert json.dumps(long)[1:-1] in text, long
        text = text.replace(json.dumps(long)[1:-1], json.dumps(short)[1:-1])
    (tmp_path / "cells.json").write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, "cells.json", json.dumps(OPTS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES" in done.stdout
    assert (tmp_path / "output/cells/model_final.pth").is_file()
    with Image.open(tmp_path / "shown.png") as picture:
        assert picture.size[0] >= 2 * 96


def test_what_it_shows_is_saved_and_small(cells: list[dict]) -> None:
    assert NOTEBOOK.stat().st_size < 500 * 1024
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert all(output["output_type"] != "error" for output in outputs)
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
