"""A meta-architecture with one weight, whose outputs follow from the image; tests what stands around models."""

from typing import Any

import torch
from torch import Tensor, nn

import mask2former
from mask2former.d2.config import CfgNode
from mask2former.d2.modeling import META_ARCH_REGISTRY
from mask2former.d2.structures import Boxes, Instances

SCORES = (0.1, 0.9, 0.5, 0.7, 0.3)


@META_ARCH_REGISTRY.register()
class BrightnessModel(nn.Module):
    """Segments pixels brighter than its weight: class 0, a thing; five instances of the same mask."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.test = cfg.MODEL.MASK_FORMER.TEST
        self.limit = cfg.TEST.DETECTIONS_PER_IMAGE
        self.threshold = nn.Parameter(torch.tensor(1000.0))
        self.received: list[dict[str, Any]] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.received += batch
        return [self._segment(inp["image"], (inp["height"], inp["width"])) for inp in batch]

    def _segment(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        bright = image.float().mean(dim=0) > self.threshold
        mask = nn.functional.interpolate(bright[None, None].float(), size=size)[0, 0] > 0.5
        output: dict[str, Any] = {}
        if self.test.SEMANTIC_ON:
            output["sem_seg"] = torch.stack([mask, ~mask]).float()
        if self.test.PANOPTIC_ON:
            segments = [{"id": 1, "category_id": 0, "isthing": True}] if mask.any() else []
            output["panoptic_seg"] = (mask.int(), segments)
        if self.test.INSTANCE_ON:
            count = min(self.limit, len(SCORES))
            output["instances"] = Instances(
                size,
                pred_masks=mask.expand(count, *size),
                pred_boxes=Boxes(torch.zeros(count, 4)),
                pred_classes=torch.zeros(count, dtype=torch.int64),
                scores=torch.tensor(SCORES[:count]),
            )
        return output


def brightness_config() -> CfgNode:
    """A complete config for `BrightnessModel`."""
    cfg = mask2former.get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "BrightnessModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 32
    return cfg
