"""Which config belongs to weights."""

from __future__ import annotations

import os
from pathlib import Path

from mask2former.checkpoint.configs import get_config
from mask2former.checkpoint.description import config_of
from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.published import published_name
from mask2former.checkpoint.reader import read_description
from mask2former.checkpoint.transformers_settings import cfg_of_transformers
from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode


def checkpoint_config(weights: str | os.PathLike[str]) -> CfgNode:
    """The complete config of the model that weights belong to: from the file itself, its folder, or the model zoo.

    Args:
        weights: a checkpoint that training wrote, a folder of transformers, or a published model: `zoo://` and its
            name, its address, or a file that is still named as published.

    Returns:
        The config; MODEL.WEIGHTS is `weights`, MODEL.CATEGORIES the classes if the file names them, and OUTPUT_DIR the
        default: what it was is a place on the machine that trained.

    Raises:
        FileNotFoundError: there are no such weights.
        CheckpointError: they cannot be read, or nothing tells which model they belong to.
    """
    path = os.fspath(weights)
    name = published_name(path)
    if name:
        cfg = get_config(name)
    elif Path(path).expanduser().is_dir():
        cfg = cfg_of_transformers(path)
    else:
        described = config_of(read_description(path), path)
        if described is None:
            raise CheckpointError(
                f"{path} does not say which model it belongs to; checkpoints do that this version's training writes. "
                "Name the config file too, such as config.yaml of its run"
            )
        cfg = described
    cfg.MODEL.WEIGHTS = path
    cfg.OUTPUT_DIR = get_cfg().OUTPUT_DIR
    return cfg
