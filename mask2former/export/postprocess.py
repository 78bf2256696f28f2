"""Post-processing as part of a graph: what `mask2former.modeling.inference` computes, in tensors of fixed shapes."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graph import LOGITS, LogitsGraph

# B batch, Q queries, C classes, K instances, H and W size of the images

SEMANTIC = {"semantic": ("batch", "height", "width")}
PANOPTIC = {
    "panoptic": ("batch", "height", "width"),
    "segment_classes": ("batch", ""),
    "segment_scores": ("batch", ""),
}
INSTANCE = {
    "instance_masks": ("batch", "", "height", "width"),
    "instance_boxes": ("batch", "", ""),
    "instance_scores": ("batch", ""),
    "instance_classes": ("batch", ""),
}


class OutputsGraph(nn.Module):
    """The logits of a model and what its tasks make of them, at the size of the images.

    Args:
        logits: the model.
        num_classes: C.
        thing_ids: contiguous classes that are things; None if all are.
        semantic, panoptic, instance: which outputs to make.
        object_mask_threshold, overlap_threshold: see `panoptic_inference`.
        topk: K at most, see `instance_inference`.
    """

    things: Tensor

    def __init__(
        self,
        logits: LogitsGraph,
        *,
        num_classes: int,
        thing_ids: Collection[int] | None,
        semantic: bool,
        panoptic: bool,
        instance: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        topk: int,
    ) -> None:
        super().__init__()
        self.logits, self.topk = logits, topk
        self.semantic, self.panoptic, self.instance = semantic, panoptic, instance
        self.object_mask_threshold, self.overlap_threshold = object_mask_threshold, overlap_threshold
        known = range(num_classes) if thing_ids is None else thing_ids
        self.register_buffer("things", torch.tensor([i in known for i in range(num_classes)]))
        self.outputs = {
            **LOGITS,
            **(SEMANTIC if semantic else {}),
            **(PANOPTIC if panoptic else {}),
            **(INSTANCE if instance else {}),
        }
        """What the dimensions of each output are called, in their order; "" for those that do not vary."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """From images uint8 (B, 3, H, W) to the outputs."""
        class_logits, mask_logits = self.logits(images)
        height, width = images.shape[2], images.shape[3]
        padded = self.logits.padded_size(height, width)
        masks = F.interpolate(mask_logits, size=padded, mode="bilinear", align_corners=False)[:, :, :height, :width]
        probabilities, classes = masks.sigmoid(), class_logits.softmax(dim=-1)
        results = [class_logits, mask_logits]
        if self.semantic:
            scores = classes[:, :, :-1].transpose(1, 2) @ probabilities.flatten(2)
            results.append(scores.argmax(dim=1).int().reshape(-1, height, width))
        if self.panoptic:
            results += self._panoptic(classes, probabilities)
        if self.instance:
            results += self._instances(classes, masks, probabilities)
        return tuple(results)

    def _panoptic(self, classes: Tensor, probabilities: Tensor) -> list[Tensor]:
        """Ids int32 (B, H, W), and of the segment of id i+1 class int64, -1 for none, and score at i, each (B, Q)."""
        scores, labels = classes.max(dim=-1)
        kept = (labels != classes.shape[2] - 1) & (scores > self.object_mask_threshold)
        shares = scores[:, :, None, None] * probabilities
        owner = torch.where(kept[:, :, None, None], shares, torch.full_like(shares, -1)).argmax(dim=1, keepdim=True)
        inside = (probabilities.gather(1, owner) >= 0.5).long()
        places = (2 * owner + inside).flatten(1)
        # Of each query the pixels that it wins, outside and inside of its own mask.
        counts = torch.cat([torch.zeros_like(scores), torch.zeros_like(scores)], dim=1)
        counts = counts.scatter_add(1, places, torch.ones_like(places, dtype=counts.dtype))
        won, final = counts.unflatten(1, (-1, 2)).sum(dim=2), counts[:, 1::2]
        own = (probabilities >= 0.5).sum(dim=(2, 3)).to(won.dtype)
        kept = kept & (final > 0) & (won / own.clamp(min=1) >= self.overlap_threshold)
        number = torch.arange(scores.shape[1], device=scores.device)
        # Stuff of one class is the segment of the first query that has it.
        alike = (labels[:, :, None] == labels[:, None, :]) & ~self._is_thing(labels)[:, :, None] & kept[:, None, :]
        first = alike.int().argmax(dim=2)
        leader = torch.where(self._is_thing(labels), number.expand_as(labels), first)
        begins = kept & (leader == number)
        ids = begins.long().cumsum(dim=1).gather(1, leader) * kept
        segments = (ids.gather(1, owner.flatten(1)) * inside.flatten(1)).int().reshape(owner[:, 0].shape)
        of_segment = ids[:, None, :] == (number + 1)[:, None]  # (B, Q ids, Q queries)
        begun = of_segment & begins[:, None, :]
        segment_classes = ((labels[:, None, :] + 1) * begun).sum(dim=2) - 1
        return [segments, segment_classes, (scores[:, None, :] * of_segment).amax(dim=2)]

    def _instances(self, classes: Tensor, masks: Tensor, probabilities: Tensor) -> list[Tensor]:
        """Masks bool (B, K, H, W), boxes (B, K, 4), scores (B, K) and classes int64 (B, K), by falling score.

        What is no thing comes last, with score 0 and class -1.
        """
        num_classes = int(classes.shape[2]) - 1
        pairs = classes[:, :, :-1].flatten(1)
        scores, chosen = pairs.topk(min(self.topk, int(pairs.shape[1])), dim=1)
        labels, query = chosen % num_classes, chosen.div(num_classes, rounding_mode="floor")
        areas, sums = _mask_sums(masks, probabilities)
        mask_scores = (sums / (areas + 1e-6)).gather(1, query)
        scores = torch.where(self._is_thing(labels), scores * mask_scores, torch.full_like(scores, -1))
        scores, order = _descending(scores)
        query, labels = query.gather(1, order), labels.gather(1, order)
        found = scores >= 0
        image = torch.arange(masks.shape[0], device=masks.device)[:, None] * masks.shape[1]
        best = masks.flatten(0, 1).index_select(0, (image + query).flatten()) > 0
        best = best.reshape(query.shape[0], query.shape[1], masks.shape[2], masks.shape[3]) & found[:, :, None, None]
        return [best, _boxes(best), scores.clamp(min=0), torch.where(found, labels, torch.full_like(labels, -1))]

    def _is_thing(self, labels: Tensor) -> Tensor:
        """Whether classes are things; "no object" is none."""
        things = torch.cat([self.things, self.things.new_zeros(1)])
        return things.index_select(0, labels.flatten()).reshape(labels.shape)


def _descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B, K) by their size, and where they were; equal ones, such as those of empty masks, as they were."""
    if torch.jit.is_tracing():  # ONNX has no other way to sort, and defines this one to do so
        return scores.topk(int(scores.shape[1]), dim=1)
    return scores.sort(dim=1, descending=True, stable=True)


def _mask_sums(masks: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Area of each mask, and the sum of probabilities inside, each (B, Q)."""
    inside = (masks > 0).to(probabilities.dtype)
    return inside.sum(dim=3).sum(dim=2), (probabilities * inside).sum(dim=3).sum(dim=2)


def _boxes(masks: Tensor) -> Tensor:
    """Boxes float32 (B, K, 4) around masks, see `mask_boxes`."""
    sides = []
    for along in (2, 3):  # columns, then rows
        covered = masks.any(dim=along)
        size = covered.shape[2]
        position = torch.arange(size, device=masks.device)
        near = size - (covered * (size - position)).amax(dim=2)
        far = (covered * (position + 1)).amax(dim=2)
        sides.append((near * covered.any(dim=2), far))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=-1).float()
