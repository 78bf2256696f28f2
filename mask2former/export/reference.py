"""What an exported file should give, by the model's own road in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.d2.structures import ImageList
from mask2former.modeling.inference import InstanceTask, PanopticTask, SemanticTask, run_tasks
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.mask_rows import OutputMasks


@torch.no_grad()
def expected_outputs(model: MaskFormer, images: Tensor, found: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The outputs for images uint8 (N, 3, H, W), by name, in float32.

    Post-processing, where `found` has it, is that of the logits in `found`: a decision that hangs on the last digit of
    a logit is none of post-processing's.
    """
    pixels = [(image - model.pixel_mean) / model.pixel_std for image in images.to(model.device)]
    batch = ImageList.from_tensors(pixels, model.size_divisibility)
    was_training = model.training
    outputs = model.eval().sem_seg_head(model.backbone(batch.tensor))
    model.train(was_training)
    expected = {"class_logits": outputs["pred_logits"].cpu(), "mask_logits": outputs["pred_masks"].cpu()}
    padded, size = (batch.tensor.shape[2], batch.tensor.shape[3]), (images.shape[2], images.shape[3])
    each: list[dict[str, Tensor]] = []
    for class_logits, mask_logits in zip(found["class_logits"], found["mask_logits"], strict=True):
        masks = OutputMasks(torch.from_numpy(mask_logits), padded_size=padded, image_size=size)
        each.append(_of_image(model, torch.from_numpy(class_logits), masks, found))
    return expected | {name: torch.stack([image[name] for image in each]) for name in each[0]}


def _of_image(
    model: MaskFormer, class_logits: Tensor, masks: OutputMasks, found: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    size, results = masks.size, {}
    things = model.thing_ids if model.panoptic_on else None
    if "semantic" in found:
        (labels,) = run_tasks([SemanticTask(class_logits, size, labels_only=True)], masks)
        results["semantic"] = labels.int()
    if "panoptic" in found:
        assert things is not None
        thresholds = {
            "object_mask_threshold": model.object_mask_threshold,
            "overlap_threshold": model.overlap_threshold,
        }
        (panoptic,) = run_tasks([PanopticTask(class_logits, size, thing_ids=things, **thresholds)], masks)
        ids, segments = panoptic
        rows = len(class_logits)
        classes = torch.tensor([s["category_id"] for s in segments], dtype=torch.int64)
        results |= {
            "panoptic": ids,
            "segment_classes": _filled(classes, rows, -1),
            "segment_scores": _filled(torch.tensor([s["score"] for s in segments]), rows, 0),
        }
    if "instance_masks" in found:
        task = InstanceTask(class_logits, size, topk=model.detections_per_image, thing_ids=things)
        (instances,) = run_tasks([task], masks)
        rows = found["instance_masks"].shape[1]
        results |= {
            "instance_masks": _filled(instances.pred_masks, rows, False),
            "instance_boxes": _filled(instances.pred_boxes.tensor, rows, 0),
            "instance_scores": _filled(instances.scores, rows, 0),
            "instance_classes": _filled(instances.pred_classes, rows, -1),
        }
    return results


def _filled(values: Tensor, rows: int, value: Any) -> Tensor:
    """Values (n, ...) as the first of so many rows."""
    full = values.new_full((rows, *values.shape[1:]), value)
    full[: len(values)] = values
    return full
