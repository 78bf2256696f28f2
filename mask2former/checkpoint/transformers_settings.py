"""The config of a model that transformers' `config.json` describes; the way back is in `transformers_config`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former.checkpoint.configs import get_config
from mask2former.checkpoint.description import config_of
from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.reader import DESCRIPTION, read_transformers_config
from mask2former.checkpoint.transformers_config import RESNETS, SETTINGS
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import merge_key_values
from mask2former.data.datasets.metadata import load_categories

logger = logging.getLogger(__name__)

# What a config.json leaves out is as published, for theirs as for ours.
_BASES = {
    "swin": "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep",
    "resnet": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep",
}
_SWIN = {
    "image_size": "PRETRAIN_IMG_SIZE",
    "patch_size": "PATCH_SIZE",
    "embed_dim": "EMBED_DIM",
    "depths": "DEPTHS",
    "num_heads": "NUM_HEADS",
    "window_size": "WINDOW_SIZE",
    "mlp_ratio": "MLP_RATIO",
    "qkv_bias": "QKV_BIAS",
    "hidden_dropout_prob": "DROP_RATE",
    "attention_probs_dropout_prob": "ATTN_DROP_RATE",
    "drop_path_rate": "DROP_PATH_RATE",
}
_TABLES = ("coco_panoptic_133", "ade20k_150", "ade20k_instance_100", "cityscapes_19", "mapillary_vistas_65")
"""Classes of published models; which of them are things a config.json does not say."""
_TASKS = ("panoptic", "instance", "semantic")


def cfg_of_transformers(folder: str | os.PathLike[str]) -> CfgNode:
    """The complete config of a model in a folder as transformers writes it, also one that `save_transformers` wrote.

    Classes that are those of COCO, ADE20K, Cityscapes or Mapillary Vistas have their colours, and are things or stuff,
    as there. Of others all count as things. The outputs that are turned on follow the task in the name of the model or
    folder, as in `mask2former-swin-tiny-coco-panoptic`; without one all are.

    Raises:
        CheckpointError: `config.json` is missing or damaged, or describes a model that this package does not have.
    """
    folder = Path(folder).expanduser()
    theirs = read_transformers_config(folder)
    labels = _labels(theirs, folder)
    cfg = config_of(theirs.get(DESCRIPTION, {}), folder / "config.json") or _translated(theirs, len(labels), folder)
    if not cfg.MODEL.CATEGORIES:
        cfg.MODEL.CATEGORIES = _categories(labels)
    return cfg


def _translated(theirs: Mapping[str, Any], num_classes: int, folder: Path) -> CfgNode:
    backbone = theirs.get("backbone_config") or {}
    kind = str(backbone.get("model_type"))
    if kind not in _BASES:
        raise CheckpointError(f"{folder / 'config.json'} has a backbone of type {kind!r}; known are {list(_BASES)}")
    cfg = get_config(_BASES[kind])
    changes = {key: theirs[name] for name, key in SETTINGS.items() if name in theirs}
    changes |= _swin(backbone) if kind == "swin" else _resnet(backbone, folder)
    changes |= _outputs(f"{folder.resolve().name} {theirs.get('_name_or_path', '')}".lower())
    changes["SEM_SEG_HEAD.NUM_CLASSES"] = num_classes
    changes["SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"] = theirs.get("num_attention_heads", 8)
    settings = {f"MODEL.{key}": value for key, value in changes.items()} | _preprocessing(folder)
    try:
        merge_key_values(cfg, [str(word) for pair in settings.items() for word in pair])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder} has settings that cannot be used: {error.args[0]}") from error
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return cfg


def _labels(theirs: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of the classes in order; transformers leaves out two that have none."""
    labels = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise CheckpointError(f"id2label in {folder / 'config.json'} must name the classes 0, 1, ..., each once")
    return [str(labels[str(number)]) for number in range(len(labels))]


def _swin(backbone: Mapping[str, Any]) -> dict[str, Any]:
    return {f"SWIN.{key}": backbone[name] for name, key in _SWIN.items() if name in backbone}


def _resnet(backbone: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    block, depths = backbone.get("layer_type", "bottleneck"), backbone.get("depths", [3, 4, 6, 3])
    depth = next((depth for depth, known in RESNETS.items() if known == (block, depths)), None)
    if depth is None:
        raise CheckpointError(f"{folder / 'config.json'} has a ResNet of {depths} {block} blocks; none of ours has")
    width = backbone.get("hidden_sizes", [256])[0]
    return {
        "RESNETS.DEPTH": depth,
        "RESNETS.STEM_OUT_CHANNELS": backbone.get("embedding_size", 64),
        "RESNETS.RES2_OUT_CHANNELS": width,
        "RESNETS.WIDTH_PER_GROUP": width // 4 if depth >= 50 else 64,
        "RESNETS.STRIDE_IN_1X1": backbone.get("downsample_in_bottleneck", False),
    }


def _outputs(name: str) -> dict[str, Any]:
    wanted = [task for task in _TASKS if task in name] or list(_TASKS)
    return {f"MASK_FORMER.TEST.{task.upper()}_ON": task in wanted for task in _TASKS}


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Settings of images, from `preprocessor_config.json` if there is one."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        settings = {
            key: [255 * float(value) for value in content[name]]
            for name, key in (("image_mean", "MODEL.PIXEL_MEAN"), ("image_std", "MODEL.PIXEL_STD"))
            if name in content
        }
        size = content.get("size")
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not an image processor's settings: {error}") from error
    if isinstance(size, dict) and {"shortest_edge", "longest_edge"} <= size.keys():
        settings |= {"INPUT.MIN_SIZE_TEST": size["shortest_edge"], "INPUT.MAX_SIZE_TEST": size["longest_edge"]}
    elif size is not None:
        logger.warning("%s resizes images to %s, whatever their shape; here INPUT.MIN_SIZE_TEST keeps it", file, size)
    return settings


def _categories(labels: Sequence[str]) -> list[dict[str, Any]]:
    for table in _TABLES:
        categories = load_categories(table)
        for known in (categories, [category for category in categories if category.get("isthing", 1)]):
            if [category["name"] for category in known] == list(labels):
                keys = ("name", "isthing", "color")
                return [{"isthing": 1} | {key: c[key] for key in keys if key in c} for c in known]
    return [{"name": label, "isthing": 1} for label in labels]
