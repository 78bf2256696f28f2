"""The training loss as the paper writes it down: one prediction, one image after another.

The measure of `mask2former.modeling.criterion`, in speed and in value: matching and losses are computed for each
prediction and each image by themselves, from dense float masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Q queries, C classes, T targets of an image, N matched pairs of the batch, K points


class PerLayerCriterion:
    """Weighted losses of every prediction (Sec. 3.3 and 4.1), with the published settings as defaults."""

    def __init__(
        self,
        *,
        num_classes: int,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
    ) -> None:
        self.num_classes, self.num_points = num_classes, num_points
        self.oversample_ratio, self.importance_sample_ratio = oversample_ratio, importance_sample_ratio
        self.weights = (class_weight, mask_weight, dice_weight)
        self.no_object_weight = no_object_weight

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Take and return what `SetCriterion.forward` does; `masks` of a target are dense, (T, H, W)."""
        num_masks = max(sum(len(target["labels"]) for target in targets), 1)
        losses: dict[str, Tensor] = {}
        for i, prediction in enumerate([outputs, *outputs.get("aux_outputs", [])]):
            suffix = "" if i == 0 else f"_{i - 1}"
            logits, masks = prediction["pred_logits"].float(), prediction["pred_masks"].float()
            pairs = [self.match(*image) for image in zip(logits, masks, targets, strict=True)]
            losses["loss_ce" + suffix] = self.weights[0] * self.classification_loss(logits, pairs, targets)
            cross_entropy, dice = self.mask_losses(masks, pairs, targets)
            losses["loss_mask" + suffix] = self.weights[1] * cross_entropy.sum() / num_masks
            losses["loss_dice" + suffix] = self.weights[2] * dice.sum() / num_masks
        return losses

    @torch.no_grad()
    def match(self, class_logits: Tensor, mask_logits: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return matched queries and targets, of (Q, C+1) and (Q, h, w)."""
        points = torch.rand(1, self.num_points, 2, device=class_logits.device)
        x = _sample(mask_logits[:, None], points.expand(len(mask_logits), -1, -1))
        t = _sample(target["masks"][:, None].float(), points.expand(len(target["labels"]), -1, -1))
        class_cost = -class_logits.softmax(dim=-1)[:, target["labels"]]
        mask_cost = (F.softplus(-x) @ t.T + F.softplus(x) @ (1 - t).T) / self.num_points
        p = x.sigmoid()
        dice_cost = 1 - (2 * p @ t.T + 1) / (p.sum(dim=1)[:, None] + t.sum(dim=1) + 1)
        cost = self.weights[0] * class_cost + self.weights[1] * mask_cost + self.weights[2] * dice_cost
        queries, ids = linear_sum_assignment(cost.cpu().numpy())
        return torch.from_numpy(queries).to(x.device), torch.from_numpy(ids).to(x.device)

    def classification_loss(
        self, class_logits: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        """Return the weighted mean cross-entropy of (B, Q, C+1)."""
        classes = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)
        for row, (queries, ids), target in zip(classes, pairs, targets, strict=True):
            row[queries] = target["labels"][ids]
        weight = torch.ones(self.num_classes + 1, device=class_logits.device)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(class_logits.transpose(1, 2), classes, weight)

    def mask_losses(
        self, mask_logits: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return cross-entropy and dice loss (N,) each of the matched masks among (B, Q, h, w)."""
        logits = torch.cat([masks[queries] for masks, (queries, _) in zip(mask_logits, pairs, strict=True)])[:, None]
        wanted = [target["masks"][ids].float() for target, (_, ids) in zip(targets, pairs, strict=True)]
        with torch.no_grad():
            points = self.points(logits)
            t = torch.cat(
                [_sample(m[:, None], p) for m, p in zip(wanted, points.split([len(m) for m in wanted]), strict=True)]
            )
        x = _sample(logits, points)
        cross_entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(dim=1)
        p = x.sigmoid()
        return cross_entropy, 1 - (2 * (p * t).sum(dim=1) + 1) / (p.sum(dim=1) + t.sum(dim=1) + 1)

    def points(self, logits: Tensor) -> Tensor:
        """Draw points (N, K, 2) for masks (N, 1, h, w), most of them where the mask is undecided."""
        num_uncertain = int(self.importance_sample_ratio * self.num_points)
        candidates = torch.rand(len(logits), int(self.oversample_ratio * self.num_points), 2, device=logits.device)
        chosen = (-_sample(logits, candidates).abs()).topk(num_uncertain, dim=1).indices
        uncertain = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
        uniform = torch.rand(len(logits), self.num_points - num_uncertain, 2, device=logits.device)
        return torch.cat([uncertain, uniform], dim=1)


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (N, 1, H, W) at points (N, K, 2) in [0, 1], bilinearly: (N, K)."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
