"""Predicts a folder of images as `mask2former predict` does; started by torchrun, too.

Arguments: images, output folder, name of an image at which this process kills itself ("" for none).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mask2former.engine.launch import launch
from mask2former.predict.files import find_images
from mask2former.predict.predictor import Predictor
from mask2former.predict.run import Outcome, predict_files
from tests.helpers.brightness_model import brightness_config

CATEGORIES = [{"id": 7, "name": "boat", "isthing": 1}, {"id": 3, "name": "water", "isthing": 0}]


def predictor(task: str = "instance", threshold: float = 0.6) -> Predictor:
    """Of a model that finds what is brighter than 100; its `received` tells the images that it was given."""
    cfg = brightness_config()
    cfg.MODEL.CATEGORIES = CATEGORIES
    made = Predictor(cfg, task=task, threshold=threshold, allow_missing_weights=True)
    made.model.threshold.data.fill_(100)
    return made


def predict(images: str, output: str, fatal: str = "", **options: Any) -> Outcome:
    """Predict; with pictures unless told otherwise."""
    made = predictor()
    if fatal:
        run = made._run

        def run_or_die(batch: Any) -> Any:
            if any(Path(prepared.picture.name).name == fatal for prepared in batch):
                os.kill(os.getpid(), signal.SIGKILL)
            return run(batch)

        made._run = run_or_die  # type: ignore[method-assign]
    return predict_files(made, find_images([images]), Path(output), **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch(predict, 1, args=tuple(sys.argv[1:]))
