"""The training loss (Sec. 3.3 and 4.1): classification of queries, and cross-entropy and dice of matched masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode, configurable
from mask2former.ops.cpu import linear

from .build import CRITERION_REGISTRY, build_matcher
from .masks import PackedMasks
from .matcher import Assignment, Prediction, Target
from .pairs import Pairs
from .points import sample_points, uncertain_points
from .whole_batch import mean_count, whole_batch

# P predictions (final first, then auxiliary), B batch, Q queries, C classes, T targets of an image, K points,
# N matched pairs of the batch

Assignments = Sequence[Sequence[Assignment]]
Matcher = Callable[[Sequence[Prediction], Sequence[Target]], Assignments]


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Match every prediction with the targets and compute its weighted losses.

    Args:
        num_classes: C, "no object" not counted.
        matcher: assigns queries to targets; see `MATCHER_REGISTRY`.
        class_weight: weight of the classification loss.
        mask_weight: weight of the masks' binary cross-entropy.
        dice_weight: weight of the masks' dice loss.
        no_object_weight: weight of the class "no object" in the classification loss.
        weight_of_each_class: weights of the C classes there; 1 by default.
        deep_supervision: whether auxiliary predictions have losses too.
        num_points: K, points per mask in the mask losses.
        oversample_ratio: candidates per point kept by `uncertain_points`.
        importance_sample_ratio: share of points taken where the prediction is least certain.
    """

    empty_weight: Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: Matcher,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        weight_of_each_class: Sequence[float] = (),
        deep_supervision: bool = True,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> None:
        super().__init__()
        if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "MODEL.MASK_FORMER.OVERSAMPLE_RATIO must be at least 1 and IMPORTANCE_SAMPLE_RATIO in [0, 1], not "
                f"{oversample_ratio} and {importance_sample_ratio}"
            )
        weights = list(weight_of_each_class) or [1.0] * num_classes
        if len(weights) != num_classes:
            raise ValueError(
                f"MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS has {len(weights)} weights for {num_classes} classes: give "
                "one for each, or none"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.deep_supervision = deep_supervision
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.register_buffer("empty_weight", torch.tensor([*weights, no_object_weight], dtype=torch.float32))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "matcher": build_matcher(cfg),
            "class_weight": node.CLASS_WEIGHT,
            "mask_weight": node.MASK_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "no_object_weight": node.NO_OBJECT_WEIGHT,
            "weight_of_each_class": node.WEIGHT_OF_EACH_CLASS,
            "deep_supervision": node.DEEP_SUPERVISION,
            "num_points": node.TRAIN_NUM_POINTS,
            "oversample_ratio": node.OVERSAMPLE_RATIO,
            "importance_sample_ratio": node.IMPORTANCE_SAMPLE_RATIO,
        }

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the losses in float32, also under autocast.

        Args:
            outputs: `pred_logits` (B, Q, C+1), `pred_masks` (B, Q, h, w) and optionally `aux_outputs`, a list of
                dicts with the same two; Q, h and w may differ among them. If the predictions have `mask_embeddings`
                (B, Q, E) too, and `outputs` `mask_features` (B, E, h, w), then masks are made of these once more,
                but those of matched queries alone: the backward pass need not go through the others, which are ten
                times as many.
            targets: B targets.

        Returns:
            `loss_ce`, `loss_mask` and `loss_dice` of the final prediction, and with `_0`, `_1`, ... appended those
            of the auxiliary ones. Their sum is the training loss.

        Raises:
            ValueError: if labels are no integers or not as many as masks, or the matcher's pairs are impossible.
        """
        targets = [_checked(target) for target in targets]
        predictions = [outputs, *(outputs.get("aux_outputs", []) if self.deep_supervision else [])]
        with torch.autocast(device_type=outputs["pred_logits"].device.type, enabled=False):
            assignments = self.matcher(predictions, targets)
            losses = {"loss_ce": self.classification_losses(predictions, assignments, targets)}
            losses |= self.mask_losses(predictions, assignments, targets, outputs.get("mask_features"))
        named: dict[str, Tensor] = {}
        each = {name: (self.weights[name] * loss).unbind() for name, loss in losses.items()}
        for p in range(len(predictions)):
            suffix = "" if p == 0 else f"_{p - 1}"
            named |= {name + suffix: loss[p] for name, loss in each.items()}
        return named

    def classification_losses(
        self, predictions: Sequence[Prediction], assignments: Assignments, targets: Sequence[Target]
    ) -> Tensor:
        """Return the weighted mean cross-entropy of each prediction, (P,).

        The mean is over the whole batch of a step, see `whole_batch.py`.

        Args:
            predictions: P with `pred_logits` (B, Q, C+1).
            assignments: P times B.
            targets: B.
        """
        pairs = Pairs.of(assignments)
        pairs.check(predictions, targets)
        logits = torch.cat([p["pred_logits"].flatten(0, 1) for p in predictions]).float()
        starts = np.cumsum([0] + [len(target["labels"]) for target in targets[:-1]])
        rows, ids = _moved(np.stack([pairs.rows(predictions), starts[pairs.image] + pairs.target]), logits)
        classes = torch.full((len(logits),), self.num_classes, device=logits.device)
        classes[rows] = torch.cat([target["labels"] for target in targets])[ids]
        losses = F.cross_entropy(logits, classes, self.empty_weight, reduction="none")
        sizes = [p["pred_logits"].shape[:2].numel() for p in predictions]
        prediction = _moved(np.repeat(np.arange(len(predictions)), sizes), logits)
        loss, weight = _sum_each(torch.stack([losses, self.empty_weight[classes]]), prediction, len(predictions))
        return loss / mean_count(self._weight_of_whole_batch(weight, predictions, targets))

    def _weight_of_whole_batch(
        self, weight: Tensor, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> Tensor:
        """Return the sum of class weights (P,) over all queries of the whole batch, given that of the part seen now.

        Queries of images not seen are supposed to be matched as those seen are: one for each target is the rule.
        """
        batch = whole_batch()
        if batch is None:
            return weight
        seen = [target["labels"] for target in targets]
        every = [x["instances"].gt_classes for x in batch.inputs]
        queries = [p["pred_logits"].shape[1] for p in predictions]
        of_seen, of_every = self._matched_weight(seen, queries), self._matched_weight(every, queries)
        return torch.where(of_seen > 0, weight * of_every / of_seen, of_every)

    def _matched_weight(self, labels: Sequence[Tensor], queries: Sequence[int]) -> Tensor:
        """Return the sum of class weights (P,) over the queries of some images if each target has one.

        Where an image has more targets than queries, each counts as much less.
        """
        counts = np.array([len(each) for each in labels])
        ids = torch.cat(list(labels)).to(self.empty_weight.device, non_blocking=True)
        weights = self.empty_weight[ids.clamp(0, self.num_classes - 1)]  # a wrong label is named when it is seen
        shares = np.stack([np.repeat(np.minimum(1, q / counts.clip(1)), counts) for q in queries])
        free = np.array([(q - counts).clip(0).sum() for q in queries])
        on_device = _moved(np.concatenate([shares, free[:, None]], axis=1).astype(np.float32), weights)
        return on_device[:, :-1] @ weights + on_device[:, -1] * self.empty_weight[-1]

    def mask_losses(
        self,
        predictions: Sequence[Prediction],
        assignments: Assignments,
        targets: Sequence[Target],
        mask_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss_mask` and `loss_dice` of each prediction, (P,), summed over pairs, divided by all targets.

        Args:
            predictions: P with `pred_masks` (B, Q, h, w), and `mask_embeddings` (B, Q, E) if there are features.
            assignments: P times B.
            targets: B.
            mask_features: (B, E, h, w).
        """
        losses = []
        for _, group in groupby(zip(predictions, assignments, strict=True), key=lambda p: p[0]["pred_masks"].shape[2:]):
            same_size, assigned = zip(*group, strict=True)
            logits, pairs = matched_masks(same_size, assigned, mask_features)
            of_pairs = self._losses_of_pairs(logits, pairs, targets)
            losses.append(_sum_each(of_pairs, _moved(pairs.prediction, logits), len(same_size)))
        cross_entropy, dice_loss = torch.cat(losses, dim=1)
        batch = whole_batch()
        labels = [t["labels"] for t in targets] if batch is None else [x["instances"].gt_classes for x in batch.inputs]
        num_masks = average_number_of_masks(sum(map(len, labels)), cross_entropy.device)
        return {"loss_mask": cross_entropy / num_masks, "loss_dice": dice_loss / num_masks}

    def _losses_of_pairs(self, logits: Tensor, pairs: Pairs, targets: Sequence[Target]) -> Tensor:
        """Return cross-entropy and dice loss (2, N) of the pairs, whose mask logits are (N, h, w)."""
        points = uncertain_points(
            logits.detach(),
            num_points=self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        with torch.no_grad():
            wanted = pairs.sample([PackedMasks.pack(target["masks"]) for target in targets], points)
        predicted = sample_points(logits, points)
        return torch.stack([sigmoid_cross_entropy(predicted, wanted), dice(predicted, wanted)])


def weighted_losses(criterion: nn.Module, outputs: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return the losses to be summed: a criterion with a `weight_dict` is served as `CRITERION_REGISTRY` says."""
    weights: Mapping[str, float] | None = getattr(criterion, "weight_dict", None)
    if weights is None:
        return criterion(outputs, targets)
    dense = [{**target, "masks": PackedMasks.pack(target["masks"]).tensor} for target in targets]
    return {name: weights[name] * loss for name, loss in criterion(outputs, dense).items() if name in weights}


def matched_masks(
    predictions: Sequence[Prediction], assignments: Assignments, features: Tensor | None
) -> tuple[Tensor, Pairs]:
    """Return the mask logits of the matched queries, float32 (N, h, w), and their pairs."""
    pairs = Pairs.of(assignments)
    num_images = len(predictions[0]["pred_masks"])
    if features is None:
        queries = [assigned[b].queries for b in range(num_images) for assigned in assignments]
        on_device = _moved(torch.cat(queries).cpu().numpy(), predictions[0]["pred_masks"])
        each = on_device.split([len(q) for q in queries])
        maps = [m for image in zip(*(p["pred_masks"].unbind(0) for p in predictions), strict=True) for m in image]
        chosen = torch.cat([m.index_select(0, q) for m, q in zip(maps, each, strict=True)])
        return chosen.index_select(0, _moved(pairs.order, chosen)).float(), pairs
    # As the decoder multiplied them, which autocast may have told what precision to use.
    dtype = predictions[0]["pred_masks"].dtype
    embeddings = torch.cat([p["mask_embeddings"].flatten(0, 1) for p in predictions]).to(dtype)
    embeddings = embeddings.index_select(0, _moved(pairs.rows(predictions), embeddings))
    pixels = features.to(dtype).flatten(2).transpose(1, 2).unbind(0)
    masks = [linear(*image) for image in zip(embeddings.split(pairs.per_image(num_images)), pixels, strict=True)]
    return torch.cat(masks).unflatten(1, features.shape[2:]).float(), pairs


def average_number_of_masks(count: int, device: torch.device) -> Tensor | float:
    """Return the number of target masks of a step, at least 1, divided by that of processes and parts.

    Then the sum of the gradients of all is that of the whole batch, see `mask2former.modeling.whole_batch`.
    """
    batch, processes = whole_batch(), comm.get_world_size()
    parts = 1 if batch is None else batch.parts
    if processes == 1:
        return max(float(count), 1.0) / parts
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / (processes * parts)


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of each mask: (..., K) and (..., K) to (...)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=-1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss, smoothed by one, of each mask (Milletari et al., 2016): (..., K) and (..., K) to (...)."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(dim=-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(dim=-1) + targets.sum(dim=-1) + 1)


def _checked(target: Target) -> Target:
    labels, masks = target["labels"], PackedMasks.pack(target["masks"])
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1 or len(labels) != len(masks):
        raise ValueError(
            f"a target has labels {labels.dtype} {tuple(labels.shape)} for {len(masks)} masks: give an integer for each"
        )
    return Target(labels=labels.long(), masks=masks)


def _moved(ids: np.ndarray, beside: Tensor) -> Tensor:
    return torch.from_numpy(ids).to(beside.device, non_blocking=True)


def _sum_each(values: Tensor, prediction: Tensor, count: int) -> Tensor:
    """Sum values (2, n) of each of `count` predictions: (2, count); in one order always, and no NaN goes astray."""
    own = prediction == torch.arange(count, device=prediction.device).unsqueeze(1)
    return torch.where(own, values.unsqueeze(1), 0.0).sum(dim=2)
