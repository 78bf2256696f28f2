"""Trainings with weights divided among processes; functions for `run_processes`."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.engine.sharding import is_sharded
from tests.helpers.distributed_cases import At, Diverging
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class _Uneven(DatasetEvaluator):
    """The number of images of all processes, and the sum of their losses."""

    def reset(self) -> None:
        self.images = 0
        self.loss = 0.0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.images += len(inputs)
        self.loss += float(outputs["loss_ce"])

    def evaluate(self) -> dict[str, Any]:
        found = comm.all_gather((self.images, self.loss))
        return {"all": {"images": sum(images for images, _ in found), "loss": sum(loss for _, loss in found)}}


class _DividedTrainer(TinyTrainer):
    """Process 0 evaluates three images, process 1 two."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = TinyModel(random=False)
        model.backbone = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 8))
        return model

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[Any]:
        return [[{"image": torch.ones(4)}]] * (3 - comm.get_rank())

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return _Uneven()


def divided(out: Path, is_divided: bool, stop: int, clip: str) -> None:
    """Train, or continue, with divided weights or without; process 0 gets a signal after the iteration `stop`."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    cfg = tiny_cfg(out, CHECKPOINT_PERIOD=0)
    cfg.MODEL.FSDP = is_divided
    cfg.MODEL_EMA.ENABLED, cfg.MODEL_EMA.DECAY = True, 0.75
    cfg.DATASETS.TEST = ("uneven",)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    trainer = _DividedTrainer(cfg)
    assert is_sharded(trainer.raw_model) == is_divided
    trainer.register_hooks([At(stop, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    trainer.resume_or_load()
    trainer.train()


class _DividedDiverging(_DividedTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return Diverging(random=False)


def divided_diverging(out: Path) -> None:
    """Process 1 has a loss that is not finite, and weights are divided."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    cfg = tiny_cfg(out, CHECKPOINT_PERIOD=0)
    cfg.MODEL.FSDP = True
    _DividedDiverging(cfg).train()
