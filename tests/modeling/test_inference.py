from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.d2.bundled.modeling import sem_seg_postprocess
from mask2former.modeling.inference import (
    InstanceTask,
    PanopticTask,
    SemanticTask,
    instance_inference,
    mask_boxes,
    panoptic_inference,
    run_before_resizing,
    run_tasks,
    semantic_inference,
)
from mask2former.modeling.mask_rows import OutputMasks
from mask2former.modeling.masks import PackedMasks
from tests.helpers import golden, inference_memory
from tests.helpers.operations import CountOperations

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


def test_the_area_of_a_segment_is_that_of_probability_one_half() -> None:
    """The pixels of 0.45 that another query wins are none of its own: it wins all of these."""
    masks = torch.tensor([[[3.0, 3.0, 3.0, -0.2, -0.2]], [[-3.0, -3.0, -3.0, 3.0, 3.0]]])
    ids, segments = panoptic_inference(
        logits_of([0, 1], 2), masks, thing_ids={0, 1}, object_mask_threshold=0.5, overlap_threshold=0.8
    )
    assert ids.tolist() == [[1, 1, 1, 2, 2]]
    assert [s["category_id"] for s in segments] == [0, 1]


def test_a_query_at_the_threshold_takes_no_part() -> None:
    classes = logits_of([0, 1], 2)
    classes[1, 1] = 3
    limit = classes.softmax(dim=-1)[1, 1].item()
    masks = torch.tensor([[[3.0, -3.0]], [[-3.0, 3.0]]])
    for threshold, expected in ((limit, [[1, 0]]), (limit - 1e-6, [[1, 2]])):
        ids, _ = panoptic_inference(
            classes, masks, thing_ids={0, 1}, object_mask_threshold=threshold, overlap_threshold=0.0
        )
        assert ids.tolist() == expected


@pytest.mark.parametrize("confidences", [(3.0, 2.0), (2.0, 3.0)])
def test_a_merged_segment_has_the_score_of_its_best_query(confidences: tuple[float, float]) -> None:
    classes = torch.cat([logits_of([1], 2, confidence) for confidence in confidences])
    masks = torch.tensor([[[3.0, -3.0]], [[-3.0, 3.0]]])
    _, segments = panoptic_inference(classes, masks, thing_ids={0}, object_mask_threshold=0.5, overlap_threshold=0.0)
    assert [s["score"] for s in segments] == [classes.softmax(dim=-1).max().item()]


@pytest.mark.parametrize("packed", [False, True])
def test_a_logit_of_zero_is_outside_of_an_instance(packed: bool) -> None:
    masks = OutputMasks(torch.tensor([[[0.0, 1.0, -1.0, 0.0]]]))
    found = run_tasks([InstanceTask(logits_of([0], 1), masks.size, topk=1, packed=packed)], masks)[0]
    inside = found.pred_masks.tensor if packed else found.pred_masks
    assert inside.tolist() == [[[False, True, False, False]]]
    assert found.pred_boxes.tensor.tolist() == [[1, 0, 2, 1]]


def test_instances_of_equal_scores_keep_the_order_of_their_classes_probabilities() -> None:
    count = 300
    classes = torch.full((count, count + 1), -20.0)
    classes[:, -1] = 0
    classes.diagonal().copy_(torch.linspace(-4, 4, count))
    found = instance_inference(classes, torch.full((count, 1, 2), -1.0), topk=count)
    assert not found.scores.any()
    assert found.pred_classes.tolist() == list(range(count))[::-1]


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


def outputs(
    figures: dict[str, Tensor], max_bytes: int, output_size: tuple[int, int], *, compact: bool = False
) -> list[Any]:
    """All three tasks on masks that are resized."""
    logits = figures["class_logits"], figures["mask_logits"]
    masks = OutputMasks(logits[1], padded_size=(80, 120), image_size=(77, 113), output_size=output_size)
    tasks: list[Any] = [
        SemanticTask(logits[0], masks.size, labels_only=compact),
        PanopticTask(logits[0], masks.size, thing_ids=THINGS, object_mask_threshold=0.3, overlap_threshold=0.6),
        InstanceTask(logits[0], masks.size, topk=10, packed=compact),
    ]
    return run_tasks(tasks, masks, max_bytes=max_bytes)


def assert_same(one: list[Any], other: list[Any]) -> None:
    """But for rounding, which may turn a pixel in ten thousand that lies between two classes."""
    if one[0].ndim == 3:
        torch.testing.assert_close(one[0], other[0], rtol=1e-6, atol=1e-6)
    for ours, theirs in ((one[0], other[0]), (one[1][0], other[1][0]), (one[2].pred_masks, other[2].pred_masks)):
        ours, theirs = (getattr(masks, "tensor", masks) for masks in (ours, theirs))
        assert ours.dtype == theirs.dtype
        assert ours.is_floating_point() or (ours != theirs).float().mean() < 1e-4
    assert one[1][1] == other[1][1]
    assert torch.equal(one[2].pred_classes, other[2].pred_classes)
    assert torch.equal(one[2].pred_boxes.tensor, other[2].pred_boxes.tensor)
    torch.testing.assert_close(one[2].scores, other[2].scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("output_size", [(77, 113), (131, 97), (41, 67)])
def test_the_budget_changes_nothing(figures: dict[str, Tensor], output_size: tuple[int, int], compact: bool) -> None:
    whole = outputs(figures, 2**40, output_size, compact=compact)
    assert len(whole[1][1]) > 1
    for max_bytes in (1, 10**5, 10**6):
        assert_same(outputs(figures, max_bytes, output_size, compact=compact), whole)


def test_compact_outputs_are_the_others(figures: dict[str, Tensor]) -> None:
    (scores, _, instances), (labels, _, packed) = (outputs(figures, 10**6, (50, 61), compact=c) for c in (False, True))
    assert labels.dtype == torch.int16
    assert torch.equal(labels.long(), scores.argmax(dim=0))
    assert isinstance(packed.pred_masks, PackedMasks)
    assert torch.equal(packed.pred_masks.tensor, instances.pred_masks)
    assert torch.equal(packed.scores, instances.scores)


def test_tasks_together_equal_each_alone(figures: dict[str, Tensor]) -> None:
    """Though each alone needs fewer masks."""
    size = figures["mask_logits"].shape[1:]
    together = InstanceTask(figures["class_logits"], size, topk=3)
    masks = OutputMasks(figures["mask_logits"])
    found = run_tasks([SemanticTask(figures["class_logits"], size), together], masks)[1]
    alone = instance_inference(figures["class_logits"], figures["mask_logits"], topk=3)
    assert 0 < len(together.queries) < len(masks)
    assert torch.equal(found.pred_masks, alone.pred_masks)
    torch.testing.assert_close(found.scores, alone.scores, rtol=1e-6, atol=0)


def test_scores_can_be_resized_instead_of_masks(figures: dict[str, Tensor]) -> None:
    classes, logits = figures["class_logits"], figures["mask_logits"]
    height, width = logits.shape[1:]
    masks = OutputMasks(logits, padded_size=(2 * height, 2 * width), image_size=(71, 100), output_size=(33, 150))
    padded = F.interpolate(logits[None], size=(2 * height, 2 * width), mode="bilinear", align_corners=False)[0]
    expected = sem_seg_postprocess(semantic_inference(classes, padded), (71, 100), 33, 150)
    for max_bytes in (1, 10**6, 2**40):
        found = run_before_resizing(SemanticTask(classes, masks.size), masks, max_bytes=max_bytes)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


def predictions(side: int) -> tuple[Tensor, OutputMasks]:
    """Class logits (100, 20) and masks, quite random, of a square image that is shown at its own size."""
    generator = torch.Generator().manual_seed(0)
    classes, logits = (3 * torch.randn(100, *size, generator=generator) for size in ((20,), (side // 4, side // 4)))
    return classes, OutputMasks(logits, padded_size=(side, side))


def counted(task: Callable[[Tensor, tuple[int, int]], Any], side: int, max_bytes: int) -> CountOperations:
    classes, masks = predictions(side)
    with CountOperations() as operations:
        run_tasks([task(classes, masks.size)], masks, max_bytes=max_bytes)
    return operations


COUNTED = {  # task, most operations in one part
    "semantic": (SemanticTask, 15),
    "panoptic": (partial(PanopticTask, thing_ids=THINGS, object_mask_threshold=0.0, overlap_threshold=0.8), 35),
    "instance": (partial(InstanceTask, topk=100), 60),
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_gpus_budget_makes_few_and_large_operations(name: str) -> None:
    task, most = COUNTED[name]
    operations = counted(task, 256, 2**30)
    assert operations.counts["upsample_bilinear2d"] == 1
    assert operations.counts["bincount"] == (name == "panoptic")
    assert operations.total <= most, operations.counts


@pytest.mark.parametrize("name", COUNTED)
def test_no_part_makes_the_host_wait(name: str) -> None:
    task, _ = COUNTED[name]
    whole, parts = counted(task, 64, 2**30), counted(task, 64, 2**18)
    assert parts.total > 5 * whole.total
    assert parts.waits == whole.waits <= 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_bounded() -> None:
    """A sixteenth of a 4000x5000 image in less than a sixteenth of 2 GiB, which scores alone exceed five times."""
    command = [sys.executable, inference_memory.__file__, "1000", "1250", "--max-memory-mb", "16"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert peaks.keys() == {"semantic", "panoptic", "instance", "all"}
    assert max(peaks.values()) < 128, peaks
    assert peaks["all"] > 1250 * 1000 * (2 + 4 + 4) / 2**20  # labels, owners and ids: something was measured
