"""The models that are measured: ours, and transformers' with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former import model_zoo
from mask2former.checkpoint import save_transformers
from mask2former.checkpoint.transformers_config import config_from_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.modeling import build_model
from mask2former.engine.precision import Precision

NAMES = {
    "R50": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep",
    "Swin-T": "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep",
}
TASKS = ("panoptic", "semantic", "instance")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-3
"""Of logits, as a share of the largest one."""

# What turns a published model into one that runs in milliseconds.
_TINY: list[Any] = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.NUM_HEADS", [1, 1, 2, 2]),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD", 32),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32, "MODEL.MASK_FORMER.DEC_LAYERS", 4),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 20, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64),
]
# Spread of class logits at which most queries are sure of their class, as trained ones are.
_SPREAD = 20.0
# Of what each layer adds to the queries, so that they stay as different as they begin.
_BRANCH_SCALE = 0.1
_MASK_SHARE = 0.04
"""Of an image, that a query's mask covers on average."""
_KEPT = 30
"""Queries whose class is not "no object": about as many as trained models keep of 100 on images of COCO."""


def model_cfg(name: str, device: str, *, quick: bool = False, opts: Sequence[str] = ()) -> CfgNode:
    """Return the configuration of a model without weights.

    Args:
        name: "R50", "Swin-T", or a name in the model zoo.
        device: where the model is to be.
        quick: make it tiny.
        opts: pairs of key and value that override the config.
    """
    cfg = model_zoo.get_config(NAMES.get(name, name))
    cfg.merge_from_list([*(_TINY if quick else []), *opts, "MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
    return cfg


def our_model(cfg: CfgNode, seed: int) -> nn.Module:
    """Build our model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return build_model(cfg).eval()


def their_model(cfg: CfgNode, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build transformers' model, in evaluation mode, with the weights of ours, or random ones."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns of a norm that it does not use
    if weights is None:
        config = transformers.Mask2FormerConfig.from_dict(config_from_cfg(cfg))
        model = transformers.Mask2FormerForUniversalSegmentation(config)
    else:
        with TemporaryDirectory() as folder:
            save_transformers(folder, cfg, weights)
            model = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    return model.to(cfg.MODEL.DEVICE).eval()


def import_transformers() -> None:
    """Import what `their_model` needs, so that memory measured afterwards does not count it."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    assert Mask2FormerConfig is not None
    assert Mask2FormerForUniversalSegmentation is not None


@torch.no_grad()
def make_sure(model: nn.Module, image: Tensor) -> None:
    """Change random weights so that predictions for an image are like a trained model's.

    About `_KEPT` queries are sure of a class and the others of "no object", and masks cover a small part of the image.
    With random weights all queries end up alike, sure of nothing, and with masks of half the image: no segment would
    pass the thresholds, and post-processing would cost nothing.
    """
    ours: Any = model
    predictor = ours.sem_seg_head.predictor
    for name, weight in predictor.named_parameters():
        if name.startswith("transformer_") and name.endswith(("out_proj.weight", "linear2.weight")):
            weight *= _BRANCH_SCALE
    _shrink_masks(ours, image)
    head = predictor.class_embed
    logits = our_logits(model, image)["pred_logits"][0].float()
    scale = _SPREAD / (logits - head.bias).std()
    head.weight *= scale
    logits = scale * (logits - head.bias) + head.bias
    margins = (logits[:, :-1].amax(dim=1) - logits[:, -1]).sort(descending=True).values
    kept = min(_KEPT, len(margins) // 2)
    head.bias[-1] += margins[kept - 1 : kept + 1].mean()


def _shrink_masks(ours: Any, image: Tensor) -> None:
    """Lower all mask logits, through the part that the embeddings of all pixels have in common."""
    masks = our_logits(ours, image)["pred_masks"].flatten().float()
    threshold = masks.kthvalue(int((1 - _MASK_SHARE) * len(masks))).values
    embeddings = ours.sem_seg_head.pixel_decoder.forward_features(ours.backbone(normalized(ours, image))).mask_features
    common = embeddings.float().mean(dim=(0, 2, 3))
    ours.sem_seg_head.predictor.mask_embed.layers[-1].bias -= threshold * common / common.square().sum()


@torch.no_grad()
def kept_queries(model: nn.Module, image: Tensor) -> int:
    """Return how many queries pass the first threshold of panoptic inference."""
    ours: Any = model
    scores, classes = our_logits(model, image)["pred_logits"][0].float().softmax(dim=-1).max(dim=-1)
    return int(((classes != ours.num_classes) & (scores > ours.object_mask_threshold)).sum())


def normalized(model: nn.Module, image: Tensor) -> Tensor:
    """Return what both backbones see of an image (3, H, W): (1, 3, H', W'), padded to multiples of 32."""
    ours: Any = model
    pixels = (image.to(ours.device) - ours.pixel_mean) / ours.pixel_std
    height, width = image.shape[1:]
    return F.pad(pixels, (0, -width % 32, 0, -height % 32)).unsqueeze(0)


def our_logits(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return `pred_logits` and `pred_masks` of our model."""
    ours: Any = model
    return ours.sem_seg_head(ours.backbone(normalized(model, image)))


@torch.no_grad()
def compare_logits(ours: nn.Module, theirs: nn.Module, image: Tensor) -> float:
    """Return the largest difference of class and mask logits, as a share of the largest logit.

    Raises:
        ValueError: if it exceeds `TOLERANCE`: these are not the same models.
    """
    found = our_logits(ours, image)
    wanted = theirs(pixel_values=normalized(ours, image))
    pairs = [
        (found["pred_logits"], wanted.class_queries_logits),
        (found["pred_masks"], wanted.masks_queries_logits),
    ]
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not difference <= TOLERANCE:
        raise ValueError(f"logits differ from transformers' by {difference:.2g} of the largest; at most {TOLERANCE}")
    return difference


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Return the context in which a model runs in a dtype of `DTYPES`: autocast, or nothing for fp32."""
    return precision_of(device, dtype).autocast()


def precision_of(device: torch.device, dtype: str) -> Precision:
    """Return what training in a dtype of `DTYPES` runs in."""
    return Precision(device.type, None if dtype == "fp32" else DTYPES[dtype])


def set_precision(model: nn.Module, dtype: str) -> None:
    """Let our model predict as with MODEL.MASK_FORMER.TEST.PRECISION."""
    ours: Any = model
    ours.test_dtype = None if dtype == "fp32" else DTYPES[dtype]
