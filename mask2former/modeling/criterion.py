"""The training loss (Sec. 3.3 and 4.1): classification of queries, and cross-entropy and dice of matched masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2 import comm

from .layers import linear
from .masks import PackedMasks
from .matcher import Assignment, HungarianMatcher, Target
from .points import sample_points, uncertain_points

# P predictions (final first, then auxiliary), B batch, Q queries, C classes, T targets and M matched pairs of an image,
# N matched pairs of the batch, K points


class SetCriterion(nn.Module):
    """Match every prediction with the targets and compute its weighted losses.

    Args:
        num_classes: C, "no object" not counted.
        matcher: assigns queries to targets.
        class_weight: weight of the classification loss.
        mask_weight: weight of the masks' binary cross-entropy.
        dice_weight: weight of the masks' dice loss.
        no_object_weight: weight of the class "no object" in the classification loss.
        deep_supervision: whether auxiliary predictions have losses too.
        num_points: K, points per mask in the mask losses.
        oversample_ratio: candidates per point kept by `uncertain_points`.
        importance_sample_ratio: share of points taken where the prediction is least certain.
    """

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
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
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.deep_supervision = deep_supervision
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the losses in float32, also under autocast.

        Args:
            outputs: `pred_logits` (B, Q, C+1), `pred_masks` (B, Q, h, w) and optionally `aux_outputs`, a list of
                dicts with the same two. If the predictions have `mask_embeddings` (B, Q, E) too, and `outputs`
                `mask_features` (B, E, h, w), then masks are made of these once more, but those of matched queries
                alone: the backward pass need not go through the others, which are ten times as many.
            targets: B targets.

        Returns:
            `loss_ce`, `loss_mask` and `loss_dice` of the final prediction, and with `_0`, `_1`, ... appended those
            of the auxiliary ones. Their sum is the training loss.
        """
        targets = [Target(labels=t["labels"], masks=PackedMasks.pack(t["masks"])) for t in targets]
        predictions = [outputs, *(outputs.get("aux_outputs", []) if self.deep_supervision else [])]
        with torch.autocast(device_type=outputs["pred_logits"].device.type, enabled=False):
            class_logits = torch.stack([p["pred_logits"].float() for p in predictions])
            mask_logits = [p["pred_masks"].float() for p in predictions]
            assignments = self.matcher(class_logits, mask_logits, targets)
            losses = {"loss_ce": self.classification_losses(class_logits, assignments, targets)}
            matched = matched_masks(outputs, predictions, assignments)
            losses |= self.mask_losses(matched, assignments, targets)
        named: dict[str, Tensor] = {}
        for p in range(len(predictions)):
            suffix = "" if p == 0 else f"_{p - 1}"
            named |= {name + suffix: self.weights[name] * loss[p] for name, loss in losses.items()}
        return named

    def classification_losses(
        self, class_logits: Tensor, assignments: Sequence[Assignment], targets: Sequence[Target]
    ) -> Tensor:
        """Return the weighted mean cross-entropy of each prediction, (P,).

        Args:
            class_logits: (P, B, Q, C+1).
            assignments: B times M matched pairs of each prediction.
            targets: B targets.
        """
        P, B, Q, _ = class_logits.shape
        classes = torch.full((P, B, Q), self.num_classes, device=class_logits.device)
        for b, (matched, target) in enumerate(zip(assignments, targets, strict=True)):
            classes[:, b].scatter_(1, matched.queries, target["labels"][matched.targets])
        losses = F.cross_entropy(class_logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        return losses.view(P, -1).sum(dim=1) / self.empty_weight[classes].sum(dim=(1, 2))

    def mask_losses(
        self, mask_logits: Sequence[Tensor], assignments: Sequence[Assignment], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return `loss_mask` and `loss_dice` of each prediction, (P,), summed over pairs, divided by all targets.

        Args:
            mask_logits: B tensors (M, P, h, w), of the matched queries.
            assignments: B times M matched pairs of each prediction.
            targets: B targets.
        """
        losses = [
            self._mask_losses_of_image(maps, matched, target)
            for maps, matched, target in zip(mask_logits, assignments, targets, strict=True)
        ]
        cross_entropy, dice_loss = torch.stack(losses).sum(dim=0)
        num_masks = average_number_of_masks(sum(len(t["labels"]) for t in targets), cross_entropy.device)
        return {"loss_mask": cross_entropy / num_masks, "loss_dice": dice_loss / num_masks}

    def _mask_losses_of_image(self, logits: Tensor, matched: Assignment, target: Target) -> Tensor:
        """Return cross-entropy and dice loss of each prediction, summed over pairs, (2, P), of logits (M, P, h, w)."""
        points = uncertain_points(
            logits.detach(),
            num_points=self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        predicted = sample_points(logits.flatten(0, 1).unsqueeze(1), points.flatten(0, 1)).view(points.shape[:3])
        with torch.no_grad():
            masks = PackedMasks.pack(target["masks"])
            if len(masks) == len(logits):  # the pairs of every prediction have the same targets
                wanted = masks.sample(points.flatten(1, 2))
            else:
                wanted = masks[matched.targets.t().flatten()].sample(points.flatten(0, 1))
        wanted = wanted.view_as(predicted)
        return torch.stack([sigmoid_cross_entropy(predicted, wanted).sum(dim=0), dice(predicted, wanted).sum(dim=0)])


def matched_masks(
    outputs: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], assignments: Sequence[Assignment]
) -> list[Tensor]:
    """Return the mask logits of the matched queries of each image, float32 (M, P, h, w)."""
    features = outputs.get("mask_features")
    name = "pred_masks" if features is None else "mask_embeddings"
    each_image = []
    for b, matched in enumerate(assignments):
        chosen = [p[name][b].index_select(0, q) for p, q in zip(predictions, matched.queries, strict=True)]
        each_image.append(torch.stack(chosen, dim=1))
    if features is not None:
        pixels = features.flatten(2).transpose(1, 2).unbind(0)
        each_image = [
            linear(embeddings, weight).unflatten(2, features.shape[2:])
            for embeddings, weight in zip(each_image, pixels, strict=True)
        ]
    return [masks.float() for masks in each_image]


def average_number_of_masks(count: int, device: torch.device) -> Tensor | float:
    """Return the number of target masks per process, at least 1, so that the loss does not depend on their number."""
    if comm.get_world_size() == 1:
        return max(float(count), 1.0)
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of each mask: (..., K) and (..., K) to (...)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=-1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss, smoothed by one, of each mask (Milletari et al., 2016): (..., K) and (..., K) to (...)."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(dim=-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(dim=-1) + targets.sum(dim=-1) + 1)
