"""The part of a model that is exported: from images to the logits of classes and masks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn

from .deformable import GatheredDeformAttn

# B batch, Q queries, C classes, H and W size of the images, h and w size of the masks

LOGITS = {"class_logits": ("batch", "", ""), "mask_logits": ("batch", "", "mask_height", "mask_width")}
"""The outputs, in their order, and what their dimensions are called; "" for those that do not vary."""


class LogitsGraph(nn.Module):
    """A model's normalisation, padding, backbone and head, without a criterion; its own copy, in evaluation mode.

    Args:
        model: stays as it is.
        attention: makes what stands in the place of each deformable attention.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: MaskFormer, attention: Callable[[MSDeformAttn], nn.Module] = GatheredDeformAttn) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone)
        self.head = _replaced(copy.deepcopy(model.sem_seg_head), attention)
        self.size_divisibility = model.size_divisibility
        self.outputs = LOGITS
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            images: uint8 (B, 3, H, W), channels in the order of INPUT.FORMAT.

        Returns:
            Class logits (B, Q, C+1), and mask logits (B, Q, h, w) of the images padded, below and to the right, to
            multiples of `size_divisibility`.
        """
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        height, width = images.shape[2], images.shape[3]
        padded_height, padded_width = self.padded_size(height, width)
        if self.size_divisibility > 1:
            pixels = F.pad(pixels, (0, padded_width - width, 0, padded_height - height))
        outputs = self.head(self.backbone(pixels))
        return outputs["pred_logits"], outputs["pred_masks"]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that images are padded to."""
        divisor = max(self.size_divisibility, 1)
        return (height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor


def _replaced(head: nn.Module, attention: Callable[[MSDeformAttn], nn.Module]) -> nn.Module:
    for module in list(head.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MSDeformAttn):
                setattr(module, name, attention(child))
    return head
