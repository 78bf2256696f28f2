"""The meta-architecture of heads that classify pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.d2.bundled.config import CfgNode, configurable
from mask2former.d2.bundled.image_list import ImageList
from mask2former.d2.bundled.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_sem_seg_head,
    sem_seg_postprocess,
)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(nn.Module):
    """Normalise, backbone, head.

    Args:
        backbone: gives feature maps by name.
        sem_seg_head: called with them and the label maps (B, H, W) or None; returns a batch of logits and a dict of
            losses, the latter in training. Label maps are padded with its `ignore_value`.
        pixel_mean: per channel, in the units of the images.
        pixel_std: likewise.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is and its inputs are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the head's losses (training) or one dict per image with `sem_seg` (C, height, width), logits.

        Each input has `image` (3, H, W), optional `height` and `width` of the output, and in training `sem_seg`, the
        label map (H, W) int64.
        """
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        batch = self._pad(images, 0.0)
        targets = None
        if "sem_seg" in batched_inputs[0]:
            labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
            ignore_value: Any = self.sem_seg_head.ignore_value
            targets = self._pad(labels, ignore_value).tensor
        logits, losses = self.sem_seg_head(self.backbone(batch.tensor), targets)
        if self.training:
            return losses
        results = []
        for scores, inputs, size in zip(logits, batched_inputs, batch.image_sizes, strict=True):
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            results.append({"sem_seg": sem_seg_postprocess(scores, size, *output_size)})
        return results

    def _pad(self, tensors: Sequence[Tensor], value: float) -> ImageList:
        return ImageList.from_tensors(
            tensors, self.backbone.size_divisibility, value, self.backbone.padding_constraints
        )
