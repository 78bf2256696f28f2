"""Exported files as the source of a predictor: the file gives the logits, the rest is as with a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mask2former.checkpoint.description import config_of
from mask2former.checkpoint.errors import CheckpointError
from mask2former.d2.config import CfgNode
from mask2former.d2.data import Metadata
from mask2former.d2.structures import ImageList
from mask2former.data.datasets.metadata import metadata_of
from mask2former.export import ExportedFile, open_exported
from mask2former.modeling.mask_former import MaskFormer, output_settings
from mask2former.predict.sources import Loaded


class _Backbone(nn.Identity):
    """None: the file has one."""

    size_divisibility = 1


class ExportedModel(MaskFormer):
    """A `MaskFormer` whose logits are those of an exported file; only for evaluation, on the CPU."""

    def __init__(self, file: ExportedFile, cfg: CfgNode) -> None:
        super().__init__(
            backbone=_Backbone(),  # type: ignore[arg-type]
            sem_seg_head=nn.Identity(),
            criterion=nn.Identity(),
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            metadata=metadata_of(cfg.MODEL.CATEGORIES) if cfg.MODEL.CATEGORIES else Metadata(),
            size_divisibility=max(file.description["input"]["size_divisibility"], 1),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            **output_settings(cfg),
        )
        self._file = file

    def _run(self, batched_inputs: Sequence[dict[str, Any]]) -> tuple[ImageList, dict[str, Any]]:
        images = np.stack([inputs["image"].numpy() for inputs in batched_inputs])
        found = self._file(images)
        height, width = (-(-side // self.size_divisibility) * self.size_divisibility for side in images.shape[2:])
        padded = torch.empty(len(images), 3, height, width, device="meta")  # of which only the size is asked
        outputs = {"pred_logits": found["class_logits"], "pred_masks": found["mask_logits"]}
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        return ImageList(padded, sizes), {name: torch.from_numpy(value) for name, value in outputs.items()}


def read_config(path: Path) -> CfgNode:
    """The complete config in a file, with its classes."""
    cfg = config_of(open_exported(path).description, path)
    if cfg is None:
        raise CheckpointError(f"{path} does not hold the config of its model")
    return cfg


def load(cfg: CfgNode) -> Loaded:
    """Load MODEL.WEIGHTS, to make the outputs that MODEL.MASK_FORMER.TEST turns on."""
    file = open_exported(cfg.MODEL.WEIGHTS)
    model = ExportedModel(file, cfg).eval()
    return Loaded(model, model.metadata or Metadata(), file.description["score_thresholds"])
