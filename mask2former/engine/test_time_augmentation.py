"""Test-time augmentation: predictions averaged over sizes and mirror images of an image (keys TEST.AUG).

Views are predicted one after the other. Of semantic scores a running sum is held; where queries must be matched, the
masks of all views are, at the model's own resolution, and their means are made some rows of the output at a time.
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
from mask2former.modeling.inference import SemanticTask, class_scores
from mask2former.modeling.mask_rows import Masks, sigmoid

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
            if scores.ndim != 3:
                raise ValueError(
                    f"test-time augmentation averages scores (C, H, W), not `sem_seg` of shape {tuple(scores.shape)}; "
                    "set MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS False"
                )
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

    Masks of all views are held at the model's own resolution, and brought to that of the output in parts.
    """

    _NEEDED = ("predict_masks", "segment", "semantic_on", "compact_outputs", "max_inference_bytes")

    @configurable
    def __init__(self, *, model: nn.Module, **kwargs: Any) -> None:
        """
        Args:
            model: has these methods and attributes of `MaskFormer`.

        Raises:
            TypeError: it lacks them.
        """
        super().__init__(model=model, **kwargs)
        lacking = [name for name in self._NEEDED if not hasattr(self.model, name)]
        if lacking:
            raise TypeError(
                f"{type(self.model).__name__} lacks {', '.join(lacking)}, which test-time augmentation of panoptic "
                "and instance outputs needs; set TEST.AUG.ENABLED False"
            )

    def merge_views(self, views: Iterator[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
        predictions = []
        for inputs, mirrored in views:
            ((class_logits, masks),) = self.model.predict_masks([inputs])
            predictions.append(_View(class_logits, masks, mirrored))
        classes, masks = _match_views(predictions)
        result = self.model.segment(classes.log(), masks, semantic_on=False)
        if self.model.semantic_on:
            result["sem_seg"] = self._semantic(predictions)
        return result

    def _semantic(self, views: Sequence["_View"]) -> Tensor:
        """Mean of the semantic scores of all views, or its labels."""
        first = views[0]
        task = SemanticTask(first.class_logits, first.masks.size, labels_only=self.model.compact_outputs)
        weights = [view.classes[:, :-1].T.contiguous() / len(views) for view in views]
        for rows in first.masks.bands(self.model.max_inference_bytes, num_maps=3 * task.num_classes):
            scores = class_scores(weights[0], first.rows(rows))
            for view, weight in zip(views[1:], weights[1:], strict=True):
                scores += class_scores(weight, view.rows(rows))
            task.add_scores(rows, scores)
        return task.result()


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
        return self._sum.div_(self._count)


class _View:
    """What the model predicts for one view."""

    def __init__(self, class_logits: Tensor, masks: Masks, mirrored: bool) -> None:
        self.class_logits, self.masks, self.mirrored = class_logits, masks, mirrored
        self.classes = class_logits.softmax(dim=-1)

    def rows(self, rows: slice, queries: Tensor | None = None) -> Tensor:
        """Mask probabilities (Q, R, W) of all or some queries, mirrored back."""
        masks = self.masks if queries is None else self.masks.select(queries)
        probabilities = sigmoid(masks.rows(rows))
        return probabilities.flip(2) if self.mirrored else probabilities

    def sample(self) -> Tensor:
        """Masks bool (Q, N) at a regular grid of pixels of the output."""
        height, width = self.masks.size
        step = max(1, math.isqrt(height * width // _MATCHING_POINTS))
        rows = [self.rows(slice(y, y + 1))[:, 0, ::step] >= 0.5 for y in range(0, height, step)]
        return torch.cat(rows, dim=1)


class _MeanMasks:
    """Mean mask probabilities of queries of a reference view and of those of other views matched to them: `Masks`."""

    def __init__(self, views: Sequence[_View], pairs: Sequence[tuple[Tensor, Tensor]], counts: Tensor) -> None:
        """
        Args:
            views: the reference first.
            pairs: for each view, which of the Q queries of the mean its queries are matched to, and these: int64 (K,).
            counts: (Q,), how many views a query is in.
        """
        self._views, self._pairs, self._counts = views, pairs, counts

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def size(self) -> tuple[int, int]:
        return self._views[0].masks.size

    def select(self, queries: Tensor) -> "_MeanMasks":
        place = queries.new_full((len(self),), -1)
        place[queries] = torch.arange(len(queries), device=queries.device)
        pairs = [(place[own], other) for own, other in self._pairs]
        pairs = [(own[own >= 0], other[own >= 0]) for own, other in pairs]
        return _MeanMasks(self._views, pairs, self._counts[queries])

    def rows(self, rows: slice) -> Tensor:
        total = self._counts.new_zeros(len(self), rows.stop - rows.start, self.size[1])
        for view, (own, other) in zip(self._views, self._pairs, strict=True):
            if len(own):
                total[own] += view.rows(rows, other)
        mean = total.div_(self._counts[:, None, None])
        return mean.log().sub_(mean.neg_().add_(1).log_())

    def bands(self, max_bytes: int, *, num_maps: int = 0) -> Iterator[slice]:
        return self._views[0].masks.bands(max_bytes, num_maps=num_maps)


def _match_views(views: Sequence[_View]) -> tuple[Tensor, _MeanMasks]:
    """Mean class probabilities (Q, C+1) and masks of the queries of the first view."""
    reference = views[0]
    classes = reference.classes.clone()
    every = torch.arange(len(classes), device=classes.device)
    counts = torch.ones_like(classes[:, 0])
    pairs = [(every, every)]
    sample = reference.sample()
    for view in views[1:]:
        matched = match_queries((reference.classes, sample), (view.classes, view.sample()))
        own, other = torch.tensor(matched, dtype=torch.int64, device=classes.device).view(-1, 2).unbind(dim=1)
        classes[own] += view.classes[other]
        counts[own] += 1
        pairs.append((own, other))
    return classes / counts[:, None], _MeanMasks(views, pairs, counts)


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
