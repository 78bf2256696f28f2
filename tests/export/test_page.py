"""The page on using a file without PyTorch: its code runs in a process that can import neither it nor this package."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask2former.d2.transforms import AugInput, AugmentationList
from mask2former.data.augmentation import build_test_augmentation
from mask2former.export import export_model
from mask2former.export.verify import probe_images
from tests.export.test_formats import CHANGES, need, sure_model
from tests.export.test_onnx import CATEGORIES
from tests.helpers.models import small_cfg

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(["torch", "mask2former", "mask2former_cli", "cv2", "detectron2"]))
"""
KEEP = """
np.save("panoptic.npy", outputs["panoptic"])
for name in ("large", "long"):
    np.save(f"{name}.npy", prepare(Image.open(f"{name}.png")))
"""


def test_neither_pytorch_nor_this_package_is_needed(tmp_path: Path) -> None:
    need("onnx")
    model: Any = sure_model()
    cfg = small_cfg(**CHANGES, INPUT__FORMAT="BGR")
    export_model(model, cfg, tmp_path / "model.onnx", categories=CATEGORIES, postprocess=True, batch=1)
    pictures = {"photo": (64, 96), "large": (131, 200), "long": (50, 300)}
    for name, size in pictures.items():
        Image.fromarray(probe_images((1, *size))[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    (code,) = re.findall(r"```python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code + KEEP],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(tmp_path / "photo.png"))[:, :, ::-1].transpose(2, 0, 1).copy()
    with torch.no_grad():
        ids, segments = model([{"image": torch.from_numpy(image)}])[0]["panoptic_seg"]
    assert len(segments) > 1
    assert (np.load(tmp_path / "panoptic.npy") == ids.numpy()).all()
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names == [CATEGORIES[segment["category_id"]]["name"] for segment in segments]
    for name in ("large", "long"):
        augmented = AugInput(np.asarray(Image.open(tmp_path / f"{name}.png"))[:, :, ::-1])
        AugmentationList(build_test_augmentation(cfg))(augmented)
        assert (np.load(tmp_path / f"{name}.npy")[0] == augmented.image.transpose(2, 0, 1)).all()
