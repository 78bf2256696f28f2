"""Boundary metrics: golden values by hand, a plain erosion as the judge, and their place in AP and PQ."""

from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from scipy.ndimage import binary_erosion

from mask2former.d2.structures import Instances
from mask2former.data.rle import encode_mask
from mask2former.evaluation.boundary import boundary_iou, boundary_width, mask_boundary, rle_boundary
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.evaluation.panoptic import COCOPanopticEvaluator, panoptic_statistics

SIZE = (120, 160)  # 2 % of the diagonal are 4 pixels


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_width_is_two_percent_of_the_diagonal() -> None:
    assert boundary_width(*SIZE) == 4
    assert boundary_width(480, 640) == 16
    assert boundary_width(3, 4) == 1


def test_boundary_of_a_box() -> None:
    expected = box(20, 60, 30, 90) & ~box(24, 56, 34, 86)
    assert np.array_equal(mask_boundary(box(20, 60, 30, 90)), expected)


def test_the_edge_of_the_image_is_contour() -> None:
    assert np.array_equal(mask_boundary(np.ones(SIZE, dtype=bool)), ~box(4, 116, 4, 156))


def test_small_and_empty_masks() -> None:
    assert np.array_equal(mask_boundary(box(3, 9, 3, 9)), box(3, 9, 3, 9))
    assert not mask_boundary(box(0, 0, 0, 0)).any()
    assert boundary_iou(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 0
    assert mask_boundary(np.zeros((0, 5), dtype=bool)).shape == (0, 5)


@pytest.mark.parametrize("width", [None, 1, 3])
def test_equals_a_plain_erosion(width: int | None) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((12, 16)) < 0.6, np.ones((10, 10), dtype=bool))
    side = 2 * (width or 4) + 1
    inner = binary_erosion(mask, np.ones((side, side)), border_value=0)
    boundary = mask_boundary(mask, width)
    assert np.array_equal(boundary, mask & ~inner)
    if width is None:
        assert np.array_equal(mask_util.decode(rle_boundary(encode_mask(mask))).astype(bool), boundary)


def test_boundary_iou_is_strict_on_large_masks() -> None:
    first, second = box(10, 110, 10, 150), box(12, 112, 10, 150)
    mask_iou = np.count_nonzero(first & second) / np.count_nonzero(first | second)
    rings = [mask & ~inner for mask, inner in ((first, box(14, 106, 14, 146)), (second, box(16, 108, 14, 146)))]
    expected = np.count_nonzero(rings[0] & rings[1]) / np.count_nonzero(rings[0] | rings[1])
    assert boundary_iou(first, second) == pytest.approx(expected)
    assert expected < 0.7 < 0.9 < mask_iou


def test_ignored_pixels_do_not_count() -> None:
    # Their rings, 4 pixels wide, differ right of column 56 only.
    first, second, ignored = box(10, 50, 10, 60), box(10, 50, 10, 70), box(0, 120, 56, 160)
    assert boundary_iou(first, second) < 0.8
    assert boundary_iou(first, second, ignored=ignored) == 1


def shifted_panoptic(shift: int) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.zeros(SIZE, dtype=np.int32), np.zeros(SIZE, dtype=np.int32)
    truth[10:110, 10:140] = 5
    predicted[10 + shift : 110 + shift, 10:140] = 1
    return truth, predicted


def test_panoptic_statistics_use_the_lower_iou() -> None:
    truth, predicted = shifted_panoptic(3)
    truth[truth == 0] = 6  # void would forgive what lies on it
    segments = {
        "pred_segments": [{"id": 1, "category_id": 0}],
        "gt_segments": [{"id": 5, "category_id": 0}, {"id": 6, "category_id": 1}],
    }
    arguments = {"pred_ids": predicted, "gt_ids": truth, "num_classes": 2, **segments}
    plain, boundary = (panoptic_statistics(**arguments, boundary=on)[:, 0] for on in (False, True))
    assert plain[0] == pytest.approx(97 / 103)
    expected = boundary_iou(truth == 5, predicted == 1)
    assert expected < 0.5
    assert boundary.tolist() == [0, 0, 1, 1]  # no match: one false alarm, one miss
    truth[:], predicted[:] = shifted_panoptic(1)
    truth[truth == 0] = 6
    boundary = panoptic_statistics(**arguments, boundary=True)[:, 0]
    assert boundary.tolist() == [pytest.approx(boundary_iou(truth == 5, predicted == 1)), 1, 0, 0]


def test_void_does_not_count_against_the_boundary_of_a_prediction() -> None:
    truth, predicted = np.zeros(SIZE, dtype=np.int32), np.zeros(SIZE, dtype=np.int32)
    truth[10:110, 10:60] = 5
    predicted[10:110, 10:70] = 1  # ten columns on void
    statistics = panoptic_statistics(
        pred_ids=predicted,
        gt_ids=truth,
        pred_segments=[{"id": 1, "category_id": 0}],
        gt_segments=[{"id": 5, "category_id": 0}],
        num_classes=1,
        boundary=True,
    )
    ring = 100 * 50 - 92 * 42
    assert statistics[:, 0].tolist() == [pytest.approx(1 - 92 * 4 / ring), 1, 0, 0]


def test_evaluators_report_both(make_dataset: Callable[..., str]) -> None:
    truth, predicted = shifted_panoptic(3)
    name = make_dataset({1: (truth, [{"id": 5, "category_id": 3, "iscrowd": 0, "area": int((truth == 5).sum())}])})
    instances = Instances(
        SIZE,
        pred_masks=torch.from_numpy(predicted == 1)[None],
        pred_classes=torch.zeros(1, dtype=torch.int64),
        scores=torch.ones(1),
    )
    segments = [{"id": 1, "category_id": 0, "isthing": True}]
    output = {"instances": instances, "panoptic_seg": (torch.from_numpy(predicted), segments)}
    results = {}
    for build in (COCOPanopticEvaluator, InstanceSegEvaluator):
        evaluator = build(name, boundary=True)
        evaluator.process([{"image_id": 1}], [output])
        results.update(evaluator.evaluate() or {})
    assert set(results) == {"panoptic_seg", "boundary_panoptic_seg", "segm", "boundary_segm"}
    assert results["segm"]["AP"] == pytest.approx(90)
    assert results["boundary_segm"]["AP"] == 0
    assert results["panoptic_seg"]["PQ"] > 90
    assert results["boundary_panoptic_seg"].keys() == results["panoptic_seg"].keys()
    instances.pred_masks = torch.from_numpy(truth == 5)[None]
    evaluator = InstanceSegEvaluator(name, boundary=True)
    evaluator.process([{"image_id": 1}], [output])
    assert (evaluator.evaluate() or {})["boundary_segm"]["AP"] == pytest.approx(100)
