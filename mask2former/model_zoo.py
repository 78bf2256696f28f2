"""Configs and models by name: `get_model("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep", trained=True)`.

A name is the path of a file below `configs/`, without `.yaml`. MODEL_ZOO.md lists the published ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.published import get_checkpoint_url, published_models, suggest_model
from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import merge_config_file
from mask2former.d2.modeling import build_model

__all__ = ["get_checkpoint_url", "get_config", "get_config_file", "get_model", "list_models"]

# An installed package carries the configs inside, see setup.py; a checkout has them beside the package.
_FOLDERS = (Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs")


def list_models() -> list[str]:
    """Return the names of the published models."""
    return list(published_models())


def get_config_file(name: str) -> Path:
    """Return where the config file `name` lies, with or without `.yaml`.

    Raises:
        KeyError: if there is none; the text names similar ones.
    """
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no folder of configs at {' or '.join(map(str, _FOLDERS))}")
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    name = name.removesuffix(".yaml")
    if name not in files:
        raise KeyError(f"no config is named '{name}'{suggest_model(name, files)}")
    return files[name]


def get_config(name: str, *, trained: bool = False) -> CfgNode:
    """Return the complete configuration of a model.

    Args:
        name: of a config file, see `get_config_file`.
        trained: let MODEL.WEIGHTS be the published checkpoint instead of what training starts from.

    Raises:
        KeyError: if there is no such config, or no checkpoint is published for it.
    """
    cfg = get_cfg()
    merge_config_file(cfg, get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


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
