"""Test-time augmentation: predictions averaged over sizes and mirror images of an image (keys TEST.AUG).

Views are predicted one after the other and added to a running sum, so that memory does not grow with their number.
Legend: Q queries, C classes, H and W height and width of the output, N points.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.transforms import AugInput, ResizeShortestEdge
from mask2former.data.images import read_image
from mask2former.modeling.inference import semantic_inference

logger = logging.getLogger(__name__)

MIN_IOU = 0.5  # of two masks that show the same thing
_MATCHING_POINTS = 2**16  # at most about as many pixels of a mask are compared


def build_model_with_tta(cfg: CfgNode, model: nn.Module) -> "SegmentorWithTTA":
    """The segmentor that gives all outputs of the model: one kind suffices where it gives semantic ones only."""
    test = cfg.MODEL.MASK_FORMER.TEST
    if test.PANOPTIC_ON or test.INSTANCE_ON:
        return PanopticSegmentorWithTTA(cfg, model)
    return SemanticSegmentorWithTTA(cfg, model)


class SegmentorWithTTA(nn.Module):
    """A model called on several views of each image. Subclasses say how the views' predictions are merged.

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
        """Segment each image; the outputs are those of the model, at their sizes."""
        return [self.merge_views(self.views(inputs)) for inputs in batched_inputs]

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

    def merge_views(self, views: Iterator[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
        """The output for one image from its views."""
        raise NotImplementedError


class SemanticSegmentorWithTTA(SegmentorWithTTA):
    """Mean over views of the semantic scores, at the size of the output; any model with `sem_seg` will do."""

    def merge_views(self, views: Iterator[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
        mean = _RunningMean()
        for inputs, mirrored in views:
            scores = self.model([inputs])[0]["sem_seg"]
            mean.add(scores.flip(2) if mirrored else scores)
        return {"sem_seg": mean.value()}


class PanopticSegmentorWithTTA(SegmentorWithTTA):
    """Mean over views of the queries' class and mask probabilities, before they become segments and instances.

    Queries do not correspond between views, so those of each view are assigned to those of the first one, the
    reference: one to one, for the largest sum of mask IoU times agreement of classes (the probability that two
    draws from both distributions are equal). Without the latter, queries of "no object" that repeat the mask of an
    object would take its place. Pairs below an IoU of 0.5 are given up: what a view does not see does not vote. The
    means of masks and classes then go through the model's own panoptic and instance inference. Semantic scores
    need no correspondence, and are the mean over views as in `SemanticSegmentorWithTTA`.

    Besides what the model needs for a view, a sum of masks (Q, H, W) is held.
    """

    @configurable
    def __init__(self, *, model: nn.Module, **kwargs: Any) -> None:
        """
        Args:
            model: has `predict_masks`, `segment` and `semantic_on` of `MaskFormer`.

        Raises:
            TypeError: it lacks them.
        """
        super().__init__(model=model, **kwargs)
        lacking = [name for name in ("predict_masks", "segment", "semantic_on") if not hasattr(self.model, name)]
        if lacking:
            raise TypeError(
                f"{type(self.model).__name__} lacks {', '.join(lacking)}, which test-time augmentation of panoptic "
                "and instance outputs needs; set TEST.AUG.ENABLED False"
            )

    def merge_views(self, views: Iterator[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
        queries: _QueryMean | None = None
        semantic = _RunningMean()
        for inputs, mirrored in views:
            class_logits, mask_logits = next(self.model.predict_masks([inputs]))
            if mirrored:
                mask_logits = mask_logits.flip(2)
            if self.model.semantic_on:
                semantic.add(semantic_inference(class_logits, mask_logits))
            classes, masks = class_logits.softmax(dim=-1), mask_logits.sigmoid_()
            if queries is None:
                queries = _QueryMean(classes, masks)
            else:
                queries.add(classes, masks)
        assert queries is not None  # there is at least one size
        result = self.model.segment(*queries.logits())
        if self.model.semantic_on:
            result["sem_seg"] = semantic.value()
        return result


class _RunningMean:
    """Mean of tensors of one shape."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        self._sum = value.clone() if self._sum is None else self._sum.add_(value)
        self._count += 1

    def value(self) -> Tensor:
        assert self._sum is not None
        return self._sum / self._count


class _QueryMean:
    """Mean of class probabilities (Q, C+1) and mask probabilities (Q, H, W) over matched queries of views."""

    def __init__(self, classes: Tensor, masks: Tensor) -> None:
        """Start with the reference view; both tensors are taken over."""
        self._reference = classes.clone(), _sample(masks)
        self._classes, self._masks = classes, masks
        self._counts = classes.new_ones(len(classes))

    def add(self, classes: Tensor, masks: Tensor) -> None:
        """Add another view."""
        for own, other in match_queries(self._reference, (classes, _sample(masks))):
            self._classes[own] += classes[other]
            self._masks[own] += masks[other]
            self._counts[own] += 1

    def logits(self) -> tuple[Tensor, Tensor]:
        """Logits of the means, made in place: nothing can be added afterwards."""
        counts = self._counts
        return self._classes.div_(counts[:, None]).log_(), self._masks.div_(counts[:, None, None]).logit_()


def match_queries(reference: tuple[Tensor, Tensor], view: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    """Pairs of queries, of the reference and of the view, that show the same thing.

    Args:
        reference: class probabilities (Q, C+1) and masks bool (Q, N).
        view: the same of the other view; its number of queries may differ.
    """
    (own_classes, own_masks), (other_classes, other_masks) = reference, view
    own, other = own_masks.float(), other_masks.float()
    common = own @ other.T
    union = own.sum(dim=1)[:, None] + other.sum(dim=1) - common
    iou = common / union.clamp(min=1)
    similarity = iou * (own_classes @ other_classes.T)
    rows, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    kept = iou.cpu().numpy()[rows, columns] >= MIN_IOU
    return list(zip(rows[kept].tolist(), columns[kept].tolist(), strict=True))


def _sample(masks: Tensor) -> Tensor:
    """Masks bool (Q, N) at a regular grid of pixels of mask probabilities (Q, H, W)."""
    step = max(1, math.isqrt(masks.shape[1] * masks.shape[2] // _MATCHING_POINTS))
    return (masks[:, ::step, ::step] >= 0.5).flatten(1)
