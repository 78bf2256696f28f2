from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.d2.modeling import sem_seg_postprocess
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
    run_tasks(tasks, masks, max_bytes=max_bytes)
    return [task.result() for task in tasks]


def assert_identical(one: list[Any], other: list[Any]) -> None:
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1][0], other[1][0])
    assert one[1][1] == other[1][1]
    assert one[2].get_fields().keys() == other[2].get_fields().keys()
    for name, value in one[2].get_fields().items():
        ours, theirs = (getattr(field, "tensor", field) for field in (value, other[2].get(name)))  # boxes and bits
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("output_size", [(77, 113), (131, 97), (41, 67)])
def test_chunks_change_nothing(figures: dict[str, Tensor], output_size: tuple[int, int], compact: bool) -> None:
    whole = outputs(figures, 2**40, output_size, compact=compact)
    assert len(whole[1][1]) > 1
    for max_bytes in (1, 10**5, 10**6):
        assert_identical(outputs(figures, max_bytes, output_size, compact=compact), whole)


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
    run_tasks([SemanticTask(figures["class_logits"], size), together], masks)
    alone = instance_inference(figures["class_logits"], figures["mask_logits"], topk=3)
    assert 0 < len(together.queries) < len(masks)
    assert torch.equal(together.result().pred_masks, alone.pred_masks)
    assert torch.equal(together.result().scores, alone.scores)


def test_scores_can_be_resized_instead_of_masks(figures: dict[str, Tensor]) -> None:
    classes, logits = figures["class_logits"], figures["mask_logits"]
    height, width = logits.shape[1:]
    masks = OutputMasks(logits, padded_size=(2 * height, 2 * width), image_size=(71, 100), output_size=(33, 150))
    padded = F.interpolate(logits[None], size=(2 * height, 2 * width), mode="bilinear", align_corners=False)[0]
    expected = sem_seg_postprocess(semantic_inference(classes, padded), (71, 100), 33, 150)
    results = []
    for max_bytes in (1, 10**6, 2**40):
        task = SemanticTask(classes, masks.size)
        run_before_resizing(task, masks, max_bytes=max_bytes)
        results.append(task.result())
    torch.testing.assert_close(results[0], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


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
