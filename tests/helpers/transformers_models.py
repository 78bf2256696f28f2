"""Random models of transformers' Mask2Former: an independent judge of numbers. None is downloaded."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from mask2former.d2.config import CfgNode
from tests.helpers.models import small_cfg

STAGES = ["stage1", "stage2", "stage3", "stage4"]
HEAD = {
    "feature_size": 32,
    "mask_feature_size": 48,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 40,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "num_attention_heads": 4,
    "dim_feedforward": 56,
    "num_queries": 12,
    "train_num_points": 128,
}


def their_model(backbone: str, *, num_classes: int, seed: int = 0, **head: object) -> nn.Module:
    """Return a small random model whose weights and statistics all matter, in evaluation mode."""
    torch.manual_seed(seed)
    if backbone == "swin":
        backbone_config = transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4], window_size=4, out_features=STAGES
        )
    else:
        backbone_config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3], out_features=STAGES
        )
    config = transformers.Mask2FormerConfig(backbone_config=backbone_config, num_labels=num_classes, **{**HEAD, **head})
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith("empty_weight") or not value.is_floating_point():
                continue
            elif value.dim() == 4:
                nn.init.kaiming_normal_(value)
            elif value.dim() == 1 and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            elif "sampling_offsets" in name:
                value.normal_(std=0.5)
            else:
                value.normal_(std=0.15 if value.dim() > 1 else 0.1)
    return model.eval()


def our_cfg(backbone: str, *, num_classes: int, **changes: object) -> CfgNode:
    """Return the configuration of the same model as ours."""
    settings: dict[str, object] = {
        "MODEL__SEM_SEG_HEAD__NUM_CLASSES": num_classes,
        "MODEL__SEM_SEG_HEAD__CONVS_DIM": HEAD["feature_size"],
        "MODEL__SEM_SEG_HEAD__MASK_DIM": HEAD["mask_feature_size"],
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": HEAD["encoder_layers"],
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_DIM_FEEDFORWARD": HEAD["encoder_feedforward_dim"],
        "MODEL__SEM_SEG_HEAD__DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": HEAD["num_attention_heads"],
        "MODEL__MASK_FORMER__NHEADS": HEAD["num_attention_heads"],
        "MODEL__MASK_FORMER__HIDDEN_DIM": HEAD["hidden_dim"],
        "MODEL__MASK_FORMER__DIM_FEEDFORWARD": HEAD["dim_feedforward"],
        "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": HEAD["num_queries"],
        "MODEL__MASK_FORMER__DEC_LAYERS": HEAD["decoder_layers"],
        "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": HEAD["train_num_points"],
    }
    if backbone == "swin":
        settings |= {
            "MODEL__BACKBONE__NAME": "D2SwinTransformer",
            "MODEL__SWIN__PRETRAIN_IMG_SIZE": 64,
            "MODEL__SWIN__EMBED_DIM": 8,
            "MODEL__SWIN__DEPTHS": [2, 2, 2, 2],
            "MODEL__SWIN__NUM_HEADS": [1, 2, 2, 4],
            "MODEL__SWIN__WINDOW_SIZE": 4,
        }
    else:
        settings |= {
            "MODEL__RESNETS__DEPTH": 50,
            "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
            "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
            "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
            "MODEL__RESNETS__NORM": "BN",
        }
    return small_cfg(**{**settings, **changes})
