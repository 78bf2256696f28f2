"""Test-time augmentation: semantic scores averaged over sizes and mirror images of an image (keys TEST.AUG).

Views are predicted one after the other; a running sum of their scores is held.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.transforms import AugInput, ResizeShortestEdge
from mask2former.data.images import read_image

logger = logging.getLogger(__name__)


def semantic_only(cfg: CfgNode) -> CfgNode:
    """A frozen copy of a config that asks for the only output that is averaged."""
    cfg = cfg.clone()
    cfg.defrost()
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON = True, False, False
    cfg.freeze()
    return cfg


class SemanticSegmentorWithTTA(nn.Module):
    """Mean over views of the semantic scores, at the size of the output; any model with `sem_seg` will do.

    It is called as the model is in evaluation: `height` and `width` are those of the output, `image` (3, H', W') is
    resized to each view as Detectron2 does it, or read from `file_name` where it is absent.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        reference_size: int,
        image_format: str = "RGB",
    ) -> None:
        """
        Args:
            min_sizes: shorter edge of each view, in pixels.
            max_size: limit of the longer edge.
            flip: add the mirror image of each view.
            reference_size: shorter edge that the model is meant for; views come in order of their nearness to it.
            image_format: channel order of images that are read, "RGB" or "BGR".

        Raises:
            ValueError: no sizes.
        """
        super().__init__()
        if not min_sizes:
            raise ValueError("TEST.AUG.MIN_SIZES is empty: name at least one size, or set TEST.AUG.ENABLED False")
        self.model: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self.min_sizes = sorted(min_sizes, key=lambda size: abs(size - reference_size))
        self.max_size = max_size
        self.flip = flip
        self.image_format = image_format
        self.train(model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        return {
            "model": model,
            "min_sizes": cfg.TEST.AUG.MIN_SIZES,
            "max_size": cfg.TEST.AUG.MAX_SIZE,
            "flip": cfg.TEST.AUG.FLIP,
            "reference_size": cfg.INPUT.MIN_SIZE_TEST,
            "image_format": cfg.INPUT.FORMAT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """`sem_seg` of each image: mean scores (C, height, width).

        Raises:
            ValueError: the model gives no semantic scores.
        """
        return [{"sem_seg": self._mean_scores(inputs)} for inputs in batched_inputs]

    def _mean_scores(self, inputs: dict[str, Any]) -> Tensor:
        total, count = None, 0
        for view, mirrored in self.views(inputs):
            scores = self._scores(view)
            scores = scores.flip(2) if mirrored else scores
            total = scores.clone() if total is None else total.add_(scores)
            count += 1
            del scores  # before the next view is predicted
        assert total is not None
        return total.div_(count)

    def _scores(self, view: dict[str, Any]) -> Tensor:
        scores = self.model([view])[0].get("sem_seg")
        if scores is None or scores.ndim != 3:
            raise ValueError(
                "test-time augmentation averages semantic scores (C, H, W), which this model does not give; set "
                "SEMANTIC_ON True and COMPACT_OUTPUTS False of MODEL.MASK_FORMER.TEST, or TEST.AUG.ENABLED False"
            )
        return scores

    def views(self, inputs: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
        """Inputs of the model, and whether the view is mirrored; the one nearest to `reference_size` first."""
        if "image" in inputs:
            image = inputs["image"].permute(1, 2, 0).cpu().numpy()
        else:
            image = read_image(inputs["file_name"], self.image_format)
        size = {"height": inputs.get("height", image.shape[0]), "width": inputs.get("width", image.shape[1])}
        for min_size in self.min_sizes:
            resized = AugInput(image)
            ResizeShortestEdge(min_size, self.max_size)(resized)
            for mirrored in (False, True) if self.flip else (False,):
                array = resized.image[:, ::-1] if mirrored else resized.image
                tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
                yield {**inputs, "image": tensor, **size}, mirrored
