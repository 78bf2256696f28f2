from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.CHECKPOINT_PERIOD", "0"]


def test_draws_data_trains_evaluates_and_writes_pictures(tmp_path: Path) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "data"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "tools" / "quickstart.py"), "--output", str(tmp_path / "out")]
    subprocess.run(
        [*command, "--train", "4", "--val", "2", "--pictures", "2", *TINY],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU", "train_seconds", "total_seconds"} <= metrics.keys()
    assert 0 < metrics["train_seconds"] < metrics["total_seconds"]
    sheet, curve = (cv2.imread(str(tmp_path / "out" / name)) for name in ("predictions.png", "loss.png"))
    assert sheet.shape[1] > sheet.shape[0]  # two triples side by side
    assert curve.std() > 0
    assert (tmp_path / "out" / "train" / "model_final.pth").is_file()
