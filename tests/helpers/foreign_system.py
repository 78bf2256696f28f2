"""Script: import, train and predict where Python lacks what only some systems have; arguments: system, folder.

The folder holds the data set of shapes, `train` alone. Packages of others come first, as on the system itself they
would be those made for it; what belongs to this project finds `sys.platform` changed and the names gone.
"""

import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import torch

OTHERS = (
    *("filelock", "fvcore.common.config", "fvcore.transforms.transform", "iopath.common.file_io", "pycocotools.mask"),
    *("safetensors.torch", "scipy.optimize", "torch.distributed", "torch.multiprocessing", "torch.utils.tensorboard"),
    "torch.distributed.elastic.multiprocessing",
)
MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
NAMES = {
    "win32": (
        *("chown", "fchmod", "fork", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg"),
        *("mkfifo", "nice", "sched_getaffinity", "setpgid", "setsid", "statvfs", "sysconf", "uname", "wait4"),
    ),
    "darwin": ("sched_getaffinity", "sched_setaffinity"),
}
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2")


class Missing:
    """A finder that says of some modules that they are not there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def become(system: str) -> None:
    """Take away what `system` does not have. Both spawn worker processes."""
    for name in OTHERS:
        importlib.import_module(name)
    multiprocessing.set_start_method("spawn")
    sys.platform = system
    for name in NAMES[system]:
        delattr(os, name)
    if system == "win32":
        sys.meta_path.insert(0, Missing())  # type: ignore[arg-type]
        for name in MODULES:
            sys.modules.pop(name, None)
        for name in SIGNALS:
            delattr(signal, name)


def import_everything() -> None:
    """Import every module of the package."""
    package = importlib.import_module("mask2former")
    for module in pkgutil.walk_packages(package.__path__, "mask2former."):
        importlib.import_module(module.name)


def train_and_predict(folder: Path, workers: int) -> None:
    """Two steps, then the image of a file with what they have saved."""
    from mask2former.data.datasets import register_coco_panoptic
    from mask2former.data.datasets.shapes import CATEGORIES
    from mask2former.engine.setup import setup_logging
    from mask2former.engine.trainer import Trainer
    from mask2former.predict.predictor import Predictor
    from tests.helpers.models import small_cfg

    register_coco_panoptic(
        "foreign_train",
        image_root=folder / "train2017",
        panoptic_root=folder / "panoptic_train2017",
        panoptic_json=folder / "annotations" / "panoptic_train2017.json",
        categories=CATEGORIES,
    )
    cfg = small_cfg(
        DATASETS__TRAIN=("foreign_train",),
        DATASETS__TEST=(),
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=len(CATEGORIES),
        INPUT__DATASET_MAPPER_NAME="coco_panoptic_lsj",
        INPUT__IMAGE_SIZE=64,
        DATALOADER__NUM_WORKERS=workers,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        OUTPUT_DIR=str(folder / "output"),
    )
    (folder / "output").mkdir()
    setup_logging(folder / "output")
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    cfg.MODEL.WEIGHTS = str(folder / "output" / "model_final.pth")
    image = cv2.imread(str(next((folder / "train2017").glob("*.jpg"))))
    labels = Predictor(cfg)(image)["panoptic_seg"][0]
    assert tuple(labels.shape) == image.shape[:2]


if __name__ == "__main__":
    torch.set_num_threads(1)
    become(sys.argv[1])
    import_everything()
    # Python starts processes here as POSIX has it, which needs names that Windows lacks.
    train_and_predict(Path(sys.argv[2]), workers=0 if sys.argv[1] == "win32" else 1)
