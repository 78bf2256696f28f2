"""Draw a synthetic panoptic set, train a small model on it, evaluate, and write pictures.

    python tools/quickstart.py --output output/quickstart

Writes into the output folder: `metrics.json` (scores on validation images, seconds), `predictions.png` (validation
images with ground truth beside prediction), `loss.png`, and `train/` (log, metrics of every step, checkpoints).
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.images import read_image, read_panoptic_png
from mask2former.data.loader import build_test_loader
from mask2former.engine.hooks import Hook
from mask2former.engine.setup import default_argument_parser, setup
from mask2former.engine.trainer import Trainer
from mask2former.evaluation.engine import flatten_results
from mask2former.files import write_bytes
from mask2former.visualization import comparison_sheet, loss_curve

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "configs" / "quickstart" / "panoptic.yaml"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"), help="folder to write (%(default)s)")
    parser.add_argument("--train", type=int, default=800, help="training images to draw (%(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images to draw (%(default)s)")
    parser.add_argument("--pictures", type=int, default=12, help="validation images in the sheet (%(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="pairs KEY VALUE that override the config")
    return parser.parse_args()


class Stopwatch(Hook):
    """Measures the seconds of training steps alone, without evaluation and checkpoints."""

    seconds = 0.0

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self._start


class QuickstartTrainer(Trainer):
    """The default trainer with a stopwatch."""

    def build_hooks(self) -> list[Hook]:
        self.stopwatch = Stopwatch()
        return [self.stopwatch, *super().build_hooks()]


def draw_predictions(cfg: CfgNode, model: torch.nn.Module, count: int) -> np.ndarray:
    """Return the sheet of the first `count` validation images, RGB."""
    name = cfg.DATASETS.TEST[0]
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    samples = []
    model.eval()
    for (inputs,), _ in zip(build_test_loader(cfg, name), range(count), strict=False):
        record = records[inputs["image_id"]]
        with torch.no_grad():
            ids, segments = model([inputs])[0]["panoptic_seg"]
        truth: tuple[Any, Any] = (read_panoptic_png(record["pan_seg_file_name"]), record["segments_info"])
        samples.append((read_image(record["file_name"], "RGB"), truth, (ids.cpu().numpy(), segments)))
    return comparison_sheet(samples, MetadataCatalog.get(name))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG."""
    write_bytes(path, cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def main() -> None:
    start = time.perf_counter()
    args = parse_args()
    make_shapes = [sys.executable, str(REPOSITORY / "datasets" / "make_shapes.py")]
    subprocess.run([*make_shapes, "--train", str(args.train), "--val", str(args.val)], check=True)
    train_dir = args.output / "train"
    arguments = ["--config-file", str(CONFIG), "OUTPUT_DIR", str(train_dir), *args.opts]
    cfg = setup(default_argument_parser().parse_args(arguments))
    trainer = QuickstartTrainer(cfg)
    trainer.resume_or_load(resume=False)
    results = flatten_results(trainer.train())
    write_picture(args.output / "predictions.png", draw_predictions(trainer.cfg, trainer.raw_model, args.pictures))
    write_picture(args.output / "loss.png", loss_curve(str(train_dir / "metrics.json")))
    metrics = {
        **{name: value if math.isfinite(value) else None for name, value in results.items()},
        "train_seconds": round(trainer.stopwatch.seconds, 1),
        "total_seconds": round(time.perf_counter() - start, 1),
    }
    write_bytes(args.output / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    for name in ("panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU", "train_seconds", "total_seconds"):
        print(f"{name:16} {metrics[name]:7.1f}")
    print(f"Pictures and metrics are in {args.output}")


if __name__ == "__main__":
    main()
