"""The settings of a model as transformers' `config.json` has them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from torch import Tensor

from mask2former.checkpoint.description import describe
from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.reader import DESCRIPTION, read_transformers_config
from mask2former.checkpoint.transformers import to_transformers
from mask2former.checkpoint.writer import write_weights
from mask2former.d2.config import CfgNode
from mask2former.files import write_text

SETTINGS = {
    "num_queries": "MASK_FORMER.NUM_OBJECT_QUERIES",
    "common_stride": "SEM_SEG_HEAD.COMMON_STRIDE",
    "feature_size": "SEM_SEG_HEAD.CONVS_DIM",
    "mask_feature_size": "SEM_SEG_HEAD.MASK_DIM",
    "encoder_layers": "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "encoder_feedforward_dim": "SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD",
    "num_attention_heads": "MASK_FORMER.NHEADS",
    "hidden_dim": "MASK_FORMER.HIDDEN_DIM",
    "dim_feedforward": "MASK_FORMER.DIM_FEEDFORWARD",
    "decoder_layers": "MASK_FORMER.DEC_LAYERS",  # counted as here: the learned queries' prediction is one
    "pre_norm": "MASK_FORMER.PRE_NORM",
    "enforce_input_projection": "MASK_FORMER.ENFORCE_INPUT_PROJ",
    "use_auxiliary_loss": "MASK_FORMER.DEEP_SUPERVISION",
    "class_weight": "MASK_FORMER.CLASS_WEIGHT",
    "mask_weight": "MASK_FORMER.MASK_WEIGHT",
    "dice_weight": "MASK_FORMER.DICE_WEIGHT",
    "no_object_weight": "MASK_FORMER.NO_OBJECT_WEIGHT",
    "train_num_points": "MASK_FORMER.TRAIN_NUM_POINTS",
    "oversample_ratio": "MASK_FORMER.OVERSAMPLE_RATIO",
    "importance_sample_ratio": "MASK_FORMER.IMPORTANCE_SAMPLE_RATIO",
    "ignore_value": "SEM_SEG_HEAD.IGNORE_VALUE",
}
"""Settings of the head and the losses: their name, and our key below MODEL."""
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNETS: dict[int, tuple[str, list[int]]] = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}
"""Layers of a ResNet: what their kind of block is called, and how many there are in each stage."""
# What a file must have in common with the model: shapes would not tell, or tell less clearly. Numbers of classes and
# queries may differ, as in fine-tuning, and the window size too, whose tables are resized.
_STRUCTURE = (
    "activation_function",
    "common_stride",
    "decoder_layers",
    "dim_feedforward",
    "encoder_feedforward_dim",
    "encoder_layers",
    "enforce_input_projection",
    "feature_size",
    "hidden_dim",
    "mask_feature_size",
    "num_attention_heads",
    "pre_norm",
)
_BACKBONE_STRUCTURE = (
    "depths",
    "downsample_in_bottleneck",
    "downsample_in_first_stage",
    "embed_dim",
    "embedding_size",
    "hidden_act",
    "hidden_sizes",
    "layer_type",
    "mlp_ratio",
    "num_heads",
    "patch_size",
    "qkv_bias",
    "use_absolute_embeddings",
)


def config_from_cfg(cfg: CfgNode, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the content of `config.json` for the model of a config.

    Args:
        cfg: complete, as from `mask2former.get_cfg`.
        labels: names of the classes; None for `LABEL_0`, `LABEL_1`, ...

    Raises:
        ValueError: if transformers' model has no such setting; the text names the key.
    """
    _check_expressible(cfg)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    labels = [f"LABEL_{i}" for i in range(count)] if labels is None else list(labels)
    if len(labels) != count:
        raise ValueError(f"{len(labels)} class names, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}")
    swin = cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": _swin(cfg) if swin else _resnet(cfg),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "activation_function": "relu",
        "feature_strides": [4, 8, 16, 32],
        "dropout": 0.0,  # theirs would drop in the masked decoder, too, which has none here
        **{theirs: setting(cfg, key) for theirs, key in SETTINGS.items()},
    }


def preprocessor_from_cfg(cfg: CfgNode) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`: their image processor with this config's test settings.

    Raises:
        ValueError: if images are not RGB.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; transformers' image processor gives RGB only")
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "size_divisor": max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 32),
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
    }


def save_transformers(
    folder: str | os.PathLike[str], cfg: CfgNode, weights: Mapping[str, Tensor], labels: Sequence[str] | None = None
) -> None:
    """Write a model as `Mask2FormerForUniversalSegmentation.from_pretrained` reads it.

    Args:
        folder: made if missing; gets `config.json`, `preprocessor_config.json` and `model.safetensors`.
        cfg: of the model.
        weights: of the model, `model.state_dict()`.
        labels: see `config_from_cfg`.

    Raises:
        ValueError: if transformers has no such model; nothing is written then.
    """
    folder = Path(folder)
    config, preprocessor, converted = config_from_cfg(cfg, labels), preprocessor_from_cfg(cfg), to_transformers(weights)
    config[DESCRIPTION] = describe(cfg)
    write_weights(folder / "model.safetensors", converted)
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def check_config(cfg: CfgNode, folder: str | os.PathLike[str]) -> None:
    """Compare a config with the `config.json` of a folder that its model is to load.

    Raises:
        CheckpointError: if they describe models of another structure; the text names every setting that differs.
    """
    folder = Path(folder).expanduser()
    theirs = read_transformers_config(folder)
    try:
        ours = config_from_cfg(cfg)
    except ValueError as error:
        raise CheckpointError(f"{folder} holds a model of transformers, and this is none: {error}") from None
    differing = _differences(ours, theirs, _STRUCTURE)
    our_backbone, their_backbone = ours["backbone_config"], theirs.get("backbone_config") or {}
    kinds = our_backbone["model_type"], their_backbone.get("model_type")
    if kinds[0] != kinds[1]:
        differing.append(f"backbone_config.model_type is {kinds[1]!r}, {kinds[0]!r} by MODEL.BACKBONE.NAME")
    else:
        differing += _differences(our_backbone, their_backbone, _BACKBONE_STRUCTURE, "backbone_config.")
    if cfg.INPUT.FORMAT != "RGB":
        differing.append(f"it sees RGB images, and INPUT.FORMAT is {cfg.INPUT.FORMAT!r}")
    if differing:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe the model of this config: {'; '.join(differing)}"
        )


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], keys: Sequence[str], prefix: str = ""
) -> list[str]:
    """Describe the keys that both have, with different values."""
    return [
        f"{prefix}{key} is {theirs[key]!r}, and would be {ours[key]!r}"
        for key in keys
        if key in ours and key in theirs and ours[key] != theirs[key]
    ]


def _swin(cfg: CfgNode) -> dict[str, Any]:
    node = cfg.MODEL.SWIN
    return {
        "model_type": "swin",
        "image_size": node.PRETRAIN_IMG_SIZE,
        "patch_size": node.PATCH_SIZE,
        "num_channels": len(cfg.MODEL.PIXEL_MEAN),
        "embed_dim": node.EMBED_DIM,
        "hidden_size": node.EMBED_DIM * 8,
        "depths": list(node.DEPTHS),
        "num_heads": list(node.NUM_HEADS),
        "window_size": node.WINDOW_SIZE,
        "mlp_ratio": node.MLP_RATIO,
        "qkv_bias": node.QKV_BIAS,
        "hidden_dropout_prob": node.DROP_RATE,
        "attention_probs_dropout_prob": node.ATTN_DROP_RATE,
        "drop_path_rate": node.DROP_PATH_RATE,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
        "out_features": STAGES,
    }


def _resnet(cfg: CfgNode) -> dict[str, Any]:
    node = cfg.MODEL.RESNETS
    kind, depths = RESNETS[node.DEPTH]
    return {
        "model_type": "resnet",
        "num_channels": len(cfg.MODEL.PIXEL_MEAN),
        "embedding_size": node.STEM_OUT_CHANNELS,
        "hidden_sizes": [node.RES2_OUT_CHANNELS << i for i in range(4)],
        "depths": depths,
        "layer_type": kind,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": node.STRIDE_IN_1X1,
        "out_features": STAGES,
    }


def _check_expressible(cfg: CfgNode) -> None:
    """Refuse settings that transformers' model has no counterpart for."""
    features = ["res2", "res3", "res4", "res5"]
    wanted: dict[str, Any] = {
        "META_ARCHITECTURE": "MaskFormer",
        "SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "SEM_SEG_HEAD.NORM": "GN",
        "SEM_SEG_HEAD.COMMON_STRIDE": 4,
        "SEM_SEG_HEAD.IN_FEATURES": features,
        "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": features[1:],
        "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
        "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": cfg.MODEL.MASK_FORMER.NHEADS,
        "MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    }
    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        wanted |= {"SWIN.APE": False, "SWIN.PATCH_NORM": True, "SWIN.QK_SCALE": None, "SWIN.OUT_FEATURES": features}
    elif cfg.MODEL.BACKBONE.NAME in ("build_resnet_backbone", "build_resnet_deeplab_backbone"):
        wanted |= {"RESNETS.STEM_TYPE": "basic", "RESNETS.NUM_GROUPS": 1, "RESNETS.RES5_DILATION": 1}
        wanted |= {"RESNETS.RES4_DILATION": 1, "RESNETS.OUT_FEATURES": features}
        if cfg.MODEL.RESNETS.DEPTH >= 50:
            wanted["RESNETS.WIDTH_PER_GROUP"] = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS // 4
    else:
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}; transformers' Mask2Former has Swin and ResNet"
        )
    for key, value in wanted.items():
        if setting(cfg, key) != value:
            raise ValueError(
                f"MODEL.{key} is {setting(cfg, key)!r}; in transformers' Mask2Former it is always {value!r}"
            )


def setting(cfg: CfgNode, key: str) -> Any:
    """The value of a key below MODEL, such as `SWIN.APE`."""
    return reduce(lambda node, part: node[part], key.split("."), cfg.MODEL)
