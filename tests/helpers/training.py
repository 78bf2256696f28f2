"""A model and a loader small enough to train in milliseconds, with all that makes a run hard to repeat."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mask2former import get_cfg
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.engine.trainer import Trainer


class TinyModel(nn.Module):
    """Random dropout and random targets: a step depends on the random state and on the batch."""

    def __init__(self, *, random: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)
        self.random = random

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        hidden = self.backbone(torch.stack([item["image"] for item in batch])).relu()
        if self.random:
            hidden = nn.functional.dropout(hidden, 0.25)
        output = self.head(hidden)
        target = torch.rand_like(output) if self.random else 1.0
        return {"loss_ce": (output - target).square().mean(), "loss_ce_0": 0.1 * output.abs().mean()}


def batches(start_iteration: int, batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """This process's share of endless global batches whose content depends on the position alone."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    position = start_iteration * batch_size
    while True:
        share = range(position + rank, position + batch_size, world_size)
        yield [
            {
                "image": torch.randn(4, generator=torch.Generator().manual_seed(index)),
                "file_name": f"images/{index}.jpg",
                "image_id": index,
            }
            for index in share
        ]
        position += batch_size


class TinyTrainer(Trainer):
    """Trainer of `TinyModel` on `batches`."""

    check_setup = staticmethod(lambda cfg: None)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return TinyModel()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> Iterator[list[dict[str, Any]]]:
        return batches(start_iteration, cfg.SOLVER.IMS_PER_BATCH)


def tiny_cfg(output_dir: Path, **solver: Any) -> CfgNode:
    """Six iterations with everything on that has a state: warm-up, decay, clipping, AdamW."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.SEED = 7
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    output_dir.mkdir(parents=True, exist_ok=True)
    return cfg


@contextmanager
def restored_logging() -> Iterator[None]:
    """Undo what `setup_logging` does inside."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
            handler.close()
