"""The baselines of MaskFormer (Cheng et al., NeurIPS 2021, Sec. 4.1), which classify pixels instead of masks.

They are heads of Detectron2's `SemanticSegmentor`: called with features and, in training, with label maps, they return
predictions and losses, of which they have one at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import Conv2d, ShapeSpec
from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY

from .build import PixelDecoder, build_pixel_decoder
from .head import MaskFormerHead, decode_pixels
from .whole_batch import mean_count, whole_batch

# B batch, C classes, H and W size of the padded images

Results = tuple[Tensor | None, dict[str, Tensor]]


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """Classify each pixel by a 1x1 convolution of its embedding.

    Args:
        pixel_decoder: gives the embeddings; see `mask2former.modeling.build`.
        mask_dim: their channels.
        num_classes: C.
        common_stride: their stride.
        loss_weight: of the cross-entropy.
        ignore_value: label of pixels that nothing is learnt from.
        float32_pixel_decoder: run the pixel decoder in float32 also under autocast.
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: PixelDecoder,
        mask_dim: int,
        num_classes: int,
        common_stride: int,
        loss_weight: float,
        ignore_value: int,
        float32_pixel_decoder: bool = False,
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = Conv2d(mask_dim, num_classes, kernel_size=1)
        # As Detectron2 fills the predictors of its own semantic heads.
        nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        self.predictor.bias = nn.Parameter(torch.zeros(num_classes))
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.float32_pixel_decoder = float32_pixel_decoder

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "float32_pixel_decoder": cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_FLOAT32,
            **_pixel_settings(cfg),
        }

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> Results:
        """Predict, or compute the loss.

        Args:
            features: the backbone's maps, each (B, channels, H/stride, W/stride).
            targets: (B, H, W) classes and `ignore_value`, int64; read in training.

        Returns:
            In training None and the weighted `loss_sem_seg`, otherwise logits (B, C, H, W) and no loss.

        Raises:
            ValueError: in training, if `targets` is None or holds a label that is not in [0, C).
        """
        decoded = decode_pixels(self.pixel_decoder, features, float32=self.float32_pixel_decoder)
        logits = self.predictor(decoded[0])
        if not self.training:
            return upsample(logits, self.common_stride), {}
        loss = pixel_loss(logits, targets, stride=self.common_stride, ignore_value=self.ignore_value)
        return None, {"loss_sem_seg": self.loss_weight * loss}


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(MaskFormerHead):
    """Classify each pixel by its similarity to a query per class: the transformer decoder without mask classification.

    `MODEL.MASK_FORMER.NUM_OBJECT_QUERIES` must be the number of classes.

    Args:
        pixel_decoder: as in `MaskFormerHead`.
        transformer_predictor: likewise; its `pred_masks` are the logits.
        transformer_in_feature: likewise.
        float32_pixel_decoder: likewise.
        deep_supervision: learn from the decoder's earlier layers too.
        common_stride: as in `PerPixelBaselineHead`.
        loss_weight: likewise.
        ignore_value: likewise.

    Raises:
        ValueError: if the decoder classifies masks.
    """

    mask_classification = False

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: PixelDecoder,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
        deep_supervision: bool,
        common_stride: int,
        loss_weight: float,
        ignore_value: int,
        float32_pixel_decoder: bool = False,
    ) -> None:
        super().__init__(
            pixel_decoder=pixel_decoder,
            transformer_predictor=transformer_predictor,
            transformer_in_feature=transformer_in_feature,
            float32_pixel_decoder=float32_pixel_decoder,
        )
        if getattr(transformer_predictor, "mask_classification", False):
            raise ValueError(
                "PerPixelBaselinePlusHead classifies pixels: its transformer decoder must be built with "
                "mask_classification=False"
            )
        self.deep_supervision = deep_supervision
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "deep_supervision": cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION,
            **_pixel_settings(cfg),
        }

    def forward(  # type: ignore[override]  # as SemanticSegmentor calls its heads
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> Results:
        """Predict, or compute the losses, as `PerPixelBaselineHead.forward`.

        With `deep_supervision` there are also `loss_sem_seg_0`, `loss_sem_seg_1`, ... of the decoder's earlier layers.
        """
        outputs = super().forward(features)
        if not self.training:
            return upsample(outputs["pred_masks"], self.common_stride), {}
        predictions = {"loss_sem_seg": outputs}
        if self.deep_supervision:
            predictions |= {f"loss_sem_seg_{i}": earlier for i, earlier in enumerate(outputs["aux_outputs"])}
        losses = {}
        for name, prediction in predictions.items():
            loss = pixel_loss(
                prediction["pred_masks"], targets, stride=self.common_stride, ignore_value=self.ignore_value
            )
            losses[name] = self.loss_weight * loss
        return None, losses


def upsample(logits: Tensor, stride: int) -> Tensor:
    """Resize logits (B, C, h, w) bilinearly to (B, C, h * stride, w * stride), in float32."""
    return F.interpolate(logits.float(), scale_factor=stride, mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, targets: Tensor | None, *, stride: int, ignore_value: int) -> Tensor:
    """Return the mean cross-entropy over the pixels that have a class, in float32; 0 if none has.

    The mean is over the whole batch of a step, see `whole_batch.py`.

    Args:
        logits: (B, C, h, w).
        targets: (B, H, W), classes and `ignore_value`.
        stride: of the logits; H and W are at most `stride` times h and w.
        ignore_value: label of pixels that do not count.

    Raises:
        ValueError: if there are no targets, or a label is not in [0, C).
    """
    if targets is None:
        raise ValueError(
            "per-pixel heads train on label maps, `sem_seg`: use INPUT.DATASET_MAPPER_NAME 'mask_former_semantic' and "
            "MODEL.META_ARCHITECTURE 'SemanticSegmentor'"
        )
    valid = targets != ignore_value
    labels, count = targets[valid], logits.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise ValueError(
            f"a label is outside [0, {count}): {labels.unique().tolist()}; MODEL.SEM_SEG_HEAD.NUM_CLASSES (for "
            "PerPixelBaselinePlusHead also MODEL.MASK_FORMER.NUM_OBJECT_QUERIES) must be the number of classes of the "
            "data set"
        )
    height, width = targets.shape[-2:]
    with torch.autocast(device_type=logits.device.type, enabled=False):
        pixels = upsample(logits, stride)[:, :, :height, :width]
        total = F.cross_entropy(pixels, targets, ignore_index=ignore_value, reduction="sum")
    batch, num_pixels = whole_batch(), valid.sum()
    if batch is not None:
        num_pixels = torch.stack([(x["sem_seg"] != ignore_value).sum() for x in batch.inputs]).sum().to(total.device)
    return total / mean_count(num_pixels.to(total.dtype)).clamp(min=1)


def _pixel_settings(cfg: CfgNode) -> dict[str, Any]:
    head = cfg.MODEL.SEM_SEG_HEAD
    return {
        "common_stride": head.COMMON_STRIDE,
        "loss_weight": head.LOSS_WEIGHT,
        "ignore_value": head.IGNORE_VALUE,
    }
