from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mask2former.modeling.inference import (
    instance_inference,
    mask_boxes,
    panoptic_inference,
    semantic_inference,
)
from tests.helpers import golden

THINGS = {0, 1, 2}


@pytest.fixture(scope="module")
def figures() -> dict[str, Tensor]:
    figures = golden.load("postprocess")
    bits = np.unpackbits(figures["instance_masks"].numpy(), axis=-1)
    width = figures["mask_logits"].shape[2]
    return {**figures, "instance_masks": torch.from_numpy(bits[..., :width]).bool()}


def test_semantic_scores_equal_the_published_ones(figures: dict[str, Tensor]) -> None:
    scores = semantic_inference(figures["class_logits"], figures["mask_logits"])
    torch.testing.assert_close(scores, figures["semantic_scores"], rtol=1e-6, atol=1e-6)


def test_panoptic_segmentation_equals_the_published_one(figures: dict[str, Tensor]) -> None:
    ids, segments = panoptic_inference(
        figures["class_logits"],
        figures["mask_logits"],
        thing_ids=THINGS,
        object_mask_threshold=0.3,
        overlap_threshold=0.6,
    )
    assert ids.dtype == torch.int32
    assert torch.equal(ids, figures["panoptic_ids"].int())
    assert [[s["id"], s["category_id"], int(s["isthing"])] for s in segments] == figures["panoptic_segments"].tolist()


def test_instances_equal_the_published_ones(figures: dict[str, Tensor]) -> None:
    instances = instance_inference(figures["class_logits"], figures["mask_logits"], topk=10)
    order = figures["instance_scores"].argsort(descending=True)
    torch.testing.assert_close(instances.scores, figures["instance_scores"][order], rtol=1e-6, atol=1e-6)
    assert torch.equal(instances.pred_classes, figures["instance_classes"][order])
    assert torch.equal(instances.pred_masks, figures["instance_masks"][order])


def test_instances_beside_panoptic_output_are_things(figures: dict[str, Tensor]) -> None:
    instances = instance_inference(figures["class_logits"], figures["mask_logits"], topk=10, thing_ids=THINGS)
    order = figures["thing_scores"].argsort(descending=True)
    torch.testing.assert_close(instances.scores, figures["thing_scores"][order], rtol=1e-6, atol=1e-6)
    assert torch.equal(instances.pred_classes, figures["thing_classes"][order])


def logits_of(classes: list[int], num_classes: int, confidence: float = 9.0) -> Tensor:
    logits = torch.zeros(len(classes), num_classes + 1)
    logits[torch.arange(len(classes)), torch.tensor(classes)] = confidence
    return logits


def test_stuff_of_one_class_becomes_one_segment_and_things_stay_apart() -> None:
    masks = torch.full((4, 4, 8), -9.0)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 9
    ids, segments = panoptic_inference(
        logits_of([0, 0, 3, 3], 4), masks, thing_ids={0}, object_mask_threshold=0.5, overlap_threshold=0.5
    )
    assert ids[0].tolist() == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [(s["id"], s["category_id"], s["isthing"]) for s in segments] == [
        (1, 0, True),
        (2, 0, True),
        (3, 3, False),
    ]
    assert all(0.99 < s["score"] <= 1 for s in segments)


def test_hidden_segments_are_dropped() -> None:
    masks = torch.full((2, 4, 4), 9.0)
    masks[1] = 4.0  # the same pixels, less certain: wins nothing
    ids, segments = panoptic_inference(
        logits_of([0, 1], 2), masks, thing_ids={0, 1}, object_mask_threshold=0.5, overlap_threshold=0.8
    )
    assert len(segments) == 1
    assert (ids == 1).all()


def test_pixels_below_one_half_stay_void() -> None:
    masks = torch.full((1, 2, 2), -0.1)
    masks[0, 0] = 3.0
    ids, _ = panoptic_inference(
        logits_of([0], 1), masks, thing_ids={0}, object_mask_threshold=0.5, overlap_threshold=0.0
    )
    assert ids.tolist() == [[1, 1], [0, 0]]


def test_nothing_found_is_an_empty_segmentation() -> None:
    ids, segments = panoptic_inference(
        logits_of([2, 2], 2),
        torch.randn(2, 4, 4),
        thing_ids={0},
        object_mask_threshold=0.5,
        overlap_threshold=0.8,
    )
    assert segments == []
    assert ids.shape == (4, 4)
    assert not ids.any()
    instances = instance_inference(logits_of([1], 2), torch.full((1, 4, 4), -1.0), topk=5, thing_ids={0})
    assert len(instances) == 1  # class 0 of the only query, with no probability and no pixels
    assert instances.scores.tolist() == [0]
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]


def test_boxes_enclose_masks() -> None:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 1:7] = True
    masks[1, 5, 7] = True
    assert mask_boxes(masks).tolist() == [[1, 2, 7, 4], [7, 5, 8, 6], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
