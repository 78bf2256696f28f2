"""Configs and models by name: `get_model("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep", trained=True)`.

A name is the path of a file below `configs/`, without `.yaml`. MODEL_ZOO.md lists the published ones.
"""

from __future__ import annotations

import torch
from torch import nn

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.configs import get_config, get_config_file
from mask2former.checkpoint.published import get_checkpoint_url, published_models
from mask2former.d2.modeling import build_model

__all__ = ["get_checkpoint_url", "get_config", "get_config_file", "get_model", "list_models"]


def list_models() -> list[str]:
    """Return the names of the published models."""
    return list(published_models())


def get_model(name: str, *, trained: bool = False, device: torch.device | str | None = None) -> nn.Module:
    """Build a model, in evaluation mode.

    Args:
        name: of a config file, see `get_config_file`.
        trained: load the published checkpoint, which is downloaded once; otherwise all weights are random.
        device: where to put it; None: a GPU if there is one.

    Raises:
        KeyError: if there is no such config, or no checkpoint is published for it.
        FileNotFoundError: if the checkpoint cannot be downloaded; the text says where to put it.
        CheckpointError: if the checkpoint cannot be read, or lacks something of the model.
    """
    cfg = get_config(name, trained=trained)
    cfg.MODEL.DEVICE = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build_model(cfg)
    if trained:
        load_weights(model, cfg.MODEL.WEIGHTS, complete=True)
    return model.eval()
