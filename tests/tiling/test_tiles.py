"""Predictions of tiles against those of the whole image, by segmenters that know the truth of what they see."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mask2former.d2.structures import Boxes, Instances
from mask2former.modeling.inference import mask_boxes
from mask2former.modeling.run_lengths import RunLengthMasks
from mask2former.tiling.objects import match
from mask2former.tiling.tiles import Tiles, predict_in_tiles
from tests.helpers import inference_memory

# Objects by the colour of their first channel, which is their class: they do not touch those of their class.
THINGS, STUFF, GROUND = (50, 100), (150, 200), 0


def scene(height: int = 120, width: int = 170) -> np.ndarray:
    """Two strips of stuff, and squares and discs: some cross a seam, some four tiles, some lie in an overlap."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:20] = 150
    image[-15:] = 200
    for x, y, radius, value in [
        (40, 45, 18, 50),
        (85, 60, 9, 50),
        (90, 85, 4, 100),
        (120, 40, 14, 100),
        (25, 90, 8, 100),
    ]:
        cv2.circle(image, (x, y), radius, (value,) * 3, -1)
    image[62:80, 100:160] = 50  # longer than a tile of 48
    return image


def objects(image: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Value and mask of every connected region of things."""
    found = []
    for value in THINGS:
        count, regions = cv2.connectedComponents((image[:, :, 0] == value).astype(np.uint8), connectivity=4)
        found += [(value, regions == i) for i in range(1, count)]
    return found


def segment(image: np.ndarray) -> dict[str, Any]:
    """All outputs for an image; the score of an object grows with its size."""
    found = objects(image)
    masks = torch.from_numpy(np.array([mask for _, mask in found]).reshape(-1, *image.shape[:2]))
    classes = torch.tensor([THINGS.index(value) for value, _ in found], dtype=torch.int64)
    scores = masks.sum(dim=(1, 2)).float() / 5000
    ids = np.zeros(image.shape[:2], np.int32)
    segments: list[dict[str, Any]] = []
    for (value, mask), score in zip(found, scores.tolist(), strict=True):
        ids[mask] = len(segments) + 1
        segments.append({"id": len(segments) + 1, "isthing": True, "category_id": THINGS.index(value), "score": score})
    for value in STUFF:
        if (image[:, :, 0] == value).any():
            ids[image[:, :, 0] == value] = len(segments) + 1
            segments.append({"id": len(segments) + 1, "isthing": False, "category_id": value, "score": 0.5})
    values = torch.tensor([GROUND, *THINGS, *STUFF])
    return {
        "instances": Instances(
            image.shape[:2], pred_masks=masks, pred_boxes=Boxes(mask_boxes(masks)), scores=scores, pred_classes=classes
        ),
        "panoptic_seg": (torch.from_numpy(ids), segments),
        "sem_seg": (torch.from_numpy(image[:, :, 0]) == values[:, None, None]).float() / image.shape[0],
    }


def segment_all(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
    return map(segment, images)


def masks_by_class(instances: Instances) -> set[tuple[int, bytes]]:
    masks = torch.stack(list(instances.pred_masks)) if len(instances) else []
    return {(int(c), np.asarray(m).tobytes()) for c, m in zip(instances.pred_classes, masks, strict=True)}


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (100, 100, 75, [(0, 100, 0, 100)]),
        (60, 100, 75, [(0, 60, 0, 60)]),
        (101, 100, 75, [(0, 100, 0, 50), (1, 101, 50, 101)]),
        (250, 100, 75, [(0, 100, 0, 87), (75, 175, 87, 162), (150, 250, 162, 250)]),
        (200, 100, 100, [(0, 100, 0, 100), (100, 200, 100, 200)]),
        (896 + 596, 896, 596, [(0, 896, 0, 746), (596, 1492, 746, 1492)]),
    ],
)
def test_tiles_cover_an_image_and_cores_do_once(length: int, size: int, stride: int, expected: list) -> None:
    tiles = Tiles(size, stride).of(10, length)
    assert [(t.left, t.right, t.core_columns.start, t.core_columns.stop) for t in tiles] == expected
    assert {(t.top, t.bottom, t.core_rows.start, t.core_rows.stop) for t in tiles} == {(0, 10, 0, 10)}
    assert [(t.top, t.bottom) for t in Tiles((size, 10), (stride, 10)).of(length, 5)] == [e[:2] for e in expected]


def test_sides_and_strides_that_leave_gaps_are_refused() -> None:
    assert Tiles(100).steps == (75, 75)
    assert Tiles((100, 80), (50, 80)).steps == (50, 80)
    for size, stride in ((0, None), (100, 101), (100, 0), ((100, 50), 60)):
        with pytest.raises(ValueError, match=r"tiles .*(must lie in|at least)"):
            Tiles(size, stride)


@pytest.mark.parametrize("size", [48, 64, (120, 50), (50, 170)])
def test_objects_that_cross_seams_are_one_and_duplicates_go(size: int | tuple[int, int]) -> None:
    image = scene()
    assert len(Tiles(size).of(*image.shape[:2])) > 2
    output, whole = predict_in_tiles(image, Tiles(size), segment_all), segment(image)
    found = output["instances"]
    assert isinstance(found.pred_masks, RunLengthMasks)
    assert len(found) == len(whole["instances"])
    assert masks_by_class(found) == masks_by_class(whole["instances"])
    assert torch.equal(found.pred_boxes.tensor, mask_boxes(found.pred_masks.tensor))
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)

    ids, segments = output["panoptic_seg"]
    assert [segment["id"] for segment in segments] == list(range(1, len(segments) + 1))
    expected_ids, expected = whole["panoptic_seg"]
    kinds = ("isthing", "category_id")
    assert sorted([s[k] for k in kinds] for s in segments) == sorted([s[k] for k in kinds] for s in expected)
    for one in expected:
        (number,) = ids[expected_ids == one["id"]].unique().tolist()
        assert torch.equal(ids == number, expected_ids == one["id"])
        assert segments[number - 1]["category_id"] == one["category_id"]


def test_the_best_score_of_the_parts_is_that_of_the_whole() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 20:90] = 50  # 800 pixels in the first tile, 1000 in the second, and 600 in both
    output = predict_in_tiles(image, Tiles(60, 40), segment_all)
    assert output["instances"].scores.tolist() == pytest.approx([1000 / 5000])
    assert [one["score"] for one in output["panoptic_seg"][1]] == pytest.approx([1000 / 5000])
    assert output["instances"].pred_masks.areas().tolist() == [1400]


def test_objects_of_different_classes_stay_apart() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 20:90] = 50

    def segment_by_place(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        for number, part in enumerate(images):
            output = segment(part)
            output["instances"].pred_classes += number
            for one in output["panoptic_seg"][1]:
                one["category_id"] += number
            yield output

    output = predict_in_tiles(image, Tiles(60, 40), segment_by_place)
    assert sorted(output["instances"].pred_classes.tolist()) == [0, 1]
    ids, segments = output["panoptic_seg"]
    assert [one["category_id"] for one in segments] == [0, 1]
    assert (ids[20, 20:50] == 1).all()  # the seam is in the middle of the overlap
    assert (ids[20, 50:90] == 2).all()


def test_what_a_neighbour_sees_better_is_not_kept_as_a_remnant() -> None:
    """An object lies in the core of the second tile; of the first, it takes what it sees of it for something else."""
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 55:70] = 50

    def mistaken(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        for number, part in enumerate(images):
            yield segment(part if number else part * 2)

    output = predict_in_tiles(image, Tiles(60, 40), mistaken)
    assert output["instances"].pred_classes.tolist() == [0]
    assert output["instances"].pred_masks.areas().tolist() == [300]
    ids, segments = output["panoptic_seg"]
    assert [one["category_id"] for one in segments] == [0]
    assert torch.equal(ids == 1, torch.from_numpy(image[:, :, 0] == 50))


def test_what_one_tile_alone_knows_is_kept() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 42:58] = 50  # in the overlap, and in the core of both

    def half_blind(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        for number, part in enumerate(images):
            yield segment(part * (number == 0))

    output = predict_in_tiles(image, Tiles(60, 40), half_blind)
    assert output["instances"].pred_masks.areas().tolist() == [320]
    assert int((output["panoptic_seg"][0] == 1).sum()) == 320


@pytest.mark.parametrize("size", [(50, 60), 64, (120, 50)])
def test_semantic_scores_are_the_mean_of_the_tiles_that_see_a_pixel(size: int | tuple[int, int]) -> None:
    image = scene()
    tiles = Tiles(size, (37, 29)).of(*image.shape[:2])
    random = np.random.default_rng(0)
    scores = [random.random((3, t.bottom - t.top, t.right - t.left), dtype=np.float32) for t in tiles]

    def given(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        for tile, part, own in zip(tiles, images, scores, strict=True):
            np.testing.assert_array_equal(part, image[tile.rows, tile.columns])
            yield {"sem_seg": torch.from_numpy(own)}

    sums, seen = np.zeros((3, *image.shape[:2])), np.zeros(image.shape[:2])
    for tile, own in zip(tiles, scores, strict=True):
        sums[:, tile.rows, tile.columns] += own
        seen[tile.rows, tile.columns] += 1
    assert seen.max() >= 3
    found = predict_in_tiles(image, Tiles(size, (37, 29)), given)["sem_seg"]
    np.testing.assert_allclose(found.numpy(), sums / seen, rtol=1e-5)
    labels = predict_in_tiles(image, Tiles(size, (37, 29)), given, labels_only=True)["sem_seg"]
    assert labels.dtype == torch.int16
    np.testing.assert_array_equal(labels.numpy(), (sums / seen).argmax(axis=0))


def test_labels_have_no_mean() -> None:
    with pytest.raises(ValueError, match="COMPACT_OUTPUTS off"):
        predict_in_tiles(scene(), Tiles(64), lambda images: ({"sem_seg": torch.zeros(x.shape[:2])} for x in images))


def test_an_image_of_one_tile_is_predicted_as_it_is() -> None:
    image = scene()
    received: list[np.ndarray] = []

    def note(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        received.extend(images)
        yield segment(received[-1])

    output, whole = predict_in_tiles(image, Tiles(170), note), segment(image)
    assert [part is image for part in received] == [True]
    assert torch.equal(output["instances"].pred_masks, whole["instances"].pred_masks)
    assert output["panoptic_seg"][1] == whole["panoptic_seg"][1]
    assert torch.equal(output["sem_seg"], whole["sem_seg"])
    labels = predict_in_tiles(image, Tiles((120, 170)), segment_all, labels_only=True)["sem_seg"]
    assert torch.equal(labels, whole["sem_seg"].argmax(dim=0).short())


def test_images_without_anything() -> None:
    output = predict_in_tiles(np.zeros((50, 80, 3), np.uint8), Tiles(32), segment_all)
    assert len(output["instances"]) == 0
    assert output["instances"].pred_masks.tensor.shape == (0, 50, 80)
    assert output["panoptic_seg"][1] == []
    assert not output["panoptic_seg"][0].any()


def test_objects_are_one_if_the_larger_covers_half_of_the_smaller() -> None:
    areas, same = (np.array([100.0]), np.array([200.0])), np.array([[True]])
    assert match(np.array([[49.0]]), *areas, same) == []
    assert match(np.array([[50.0]]), *areas, same) == [(0, 0)]
    assert match(np.array([[90.0, 95.0]]), areas[0], np.array([100.0, 400.0]), np.array([[True, True]])) == [(0, 0)]
    assert match(np.array([[90.0, 95.0]]), areas[0], np.array([100.0, 400.0]), np.array([[False, True]])) == [(0, 1)]


def test_each_object_of_a_tile_is_joined_with_one_of_a_neighbour_at_most() -> None:
    """A second, poor instance of an object does not spoil the first."""
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 20:90] = 50

    def with_doubt(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        for number, part in enumerate(images):
            instances = segment(part)["instances"]
            if number == 0:
                poor = copy.deepcopy(instances)
                poor.pred_masks[:, 5:35] = True
                poor.scores *= 0.1
                instances = Instances.cat([poor, instances])
            yield {"instances": instances}

    found = predict_in_tiles(image, Tiles(60, 40), with_doubt)["instances"]
    assert found.pred_masks.areas().tolist() == [1400, 1800]


@pytest.mark.skipif(not inference_memory.STATUS.exists(), reason="asks Linux for the peak of memory")
def test_no_more_scores_are_held_than_a_row_of_tiles_has() -> None:
    """Those of the whole image are 244 MiB."""
    image = np.zeros((20000, 64, 3), np.uint8)

    def scores(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
        for part in images:
            yield {"sem_seg": torch.ones(50, *part.shape[:2])}

    for _ in range(2):  # what a process takes once
        peak = inference_memory.peak(lambda: predict_in_tiles(image, Tiles(256), scores, labels_only=True))
    assert peak < 60
