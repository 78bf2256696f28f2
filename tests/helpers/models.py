"""Configurations and models for tests: the published ones, and one small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mask2former import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import merge_config_file
from mask2former.d2.data import MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.d2.structures import Instances

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATASET = "test_helper_things_and_stuff"
NUM_CLASSES = 5


def published_cfg(name: str, **changes: object) -> CfgNode:
    """Return the configuration `configs/<name>.yaml` for a CPU without weights; changes are written A__B=value."""
    cfg = get_cfg()
    merge_config_file(cfg, CONFIGS / f"{name}.yaml")
    return _change(cfg, **{"MODEL__DEVICE": "cpu", "MODEL__WEIGHTS": "", **changes})


def small_cfg(**changes: object) -> CfgNode:
    """Return the configuration of a model that trains in a fraction of a second: 5 classes, the first 3 things."""
    metadata = MetadataCatalog.get(DATASET)
    metadata.thing_dataset_id_to_contiguous_id = {11: 0, 12: 1, 13: 2}
    settings = {
        "MODEL__DEVICE": "cpu",
        "MODEL__WEIGHTS": "",
        "DATASETS__TRAIN": (DATASET,),
        "MODEL__RESNETS__DEPTH": 18,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
        "MODEL__RESNETS__NORM": "BN",
        "MODEL__SEM_SEG_HEAD__NUM_CLASSES": NUM_CLASSES,
        "MODEL__SEM_SEG_HEAD__CONVS_DIM": 32,
        "MODEL__SEM_SEG_HEAD__MASK_DIM": 32,
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_DIM_FEEDFORWARD": 32,
        "MODEL__MASK_FORMER__HIDDEN_DIM": 32,
        "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 32,
        "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 8,
        "MODEL__MASK_FORMER__DEC_LAYERS": 4,
        "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 64,
        "MODEL__MASK_FORMER__TEST__INSTANCE_ON": True,
        "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": True,
    }
    cfg = get_cfg()
    merge_config_file(cfg, CONFIGS / "Base-Mask2Former.yaml")
    return _change(cfg, **{**settings, **changes})


def _change(cfg: CfgNode, **changes: object) -> CfgNode:
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def small_model(seed: int = 0, **changes: object) -> nn.Module:
    """Return the model of `small_cfg`, initialised from `seed`."""
    torch.manual_seed(seed)
    return build_model(small_cfg(**changes))


def example(height: int = 64, width: int = 64, labels: tuple[int, ...] = (0, 4), seed: int = 0) -> dict:
    """Return a training input: noise, and one vertical stripe per label."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": stripes(height, width, labels), "file_name": f"example_{seed}.jpg"}


def stripes(height: int, width: int, labels: tuple[int, ...]) -> Instances:
    masks = torch.zeros(len(labels), height, width, dtype=torch.bool)
    for i, columns in enumerate(torch.arange(width).chunk(max(1, len(labels)))[: len(labels)]):
        masks[i, :, columns] = True
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    instances.gt_masks = masks
    return instances


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
