"""What is taken for what, by hand and against mask AP and panoptic quality on random data."""

import math

import numpy as np
import pytest

from mask2former.data.rle import encode_mask
from mask2former.evaluation.average_precision import HIT, IGNORED, count_objects, match_image
from mask2former.evaluation.confusion import (
    MISSED,
    NOTHING,
    VOID,
    confusion_table,
    f1_score,
    instance_events,
    overlapping_instances,
    pixel_events,
    pixels_on_void,
    renumbered,
    segment_events,
)
from mask2former.evaluation.curves import best_points, outcomes_at_half
from mask2former.evaluation.ground_truth import GroundTruthInstance
from mask2former.evaluation.panoptic import FN, FP, TP, joint_areas, panoptic_statistics
from tests.helpers.panoptic import CLASS_OF, disturb, random_panoptic


def strip(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((4, 20), dtype=bool)
    mask[:, start:stop] = True
    return mask


def truth(category: int, start: int, stop: int, *, crowd: bool = False) -> GroundTruthInstance:
    mask = strip(start, stop)
    return GroundTruthInstance(category_id=category, rle=encode_mask(mask), area=float(mask.sum()), iscrowd=crowd)


def events(predicted: list[tuple[int, float, int, int]], objects: list[GroundTruthInstance], thresholds: list[float]):
    overlaps = overlapping_instances(
        classes=np.array([p[0] for p in predicted], dtype=np.int64),
        scores=np.array([p[1] for p in predicted]),
        rles=[encode_mask(strip(*p[2:])) for p in predicted],
        truth=objects,
    )
    return instance_events(overlaps, np.array(thresholds))


def test_instances_by_hand() -> None:
    """Found, named wrongly, missed, made up, and on a crowd; what is below its class's threshold is not there."""
    predicted = [(0, 0.9, 0, 5), (1, 0.8, 5, 10), (0, 0.7, 15, 18), (1, 0.6, 18, 20), (0, 0.2, 10, 15)]
    objects = [truth(0, 0, 5), truth(0, 5, 10), truth(1, 10, 15), truth(1, 18, 20, crowd=True)]
    found = events(predicted, objects, [0.5, 0.5])
    assert found == {(0, 0): 1, (0, 1): 1, (1, MISSED): 1, (NOTHING, 0): 1, (VOID, 1): 1}
    assert f1_score(found) == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
    assert events(predicted, objects, [0.1, 0.5])[1, 0] == 1  # the fifth, of another class than its object
    assert events(predicted, objects, [0.95, 0.95]) == {(0, MISSED): 2, (1, MISSED): 1}


def test_an_object_goes_to_its_own_class_first_and_to_one_detection() -> None:
    """The better scored and better fitting detection of another class leaves it to the one that names it rightly."""
    found = events([(1, 0.9, 0, 5), (0, 0.5, 0, 4), (0, 0.4, 0, 5)], [truth(0, 0, 5)], [0.1, 0.1])
    assert found == {(0, 0): 1, (NOTHING, 1): 1, (NOTHING, 0): 1}


def test_nothing_at_all() -> None:
    assert events([], [], [0.5]) == {}
    assert events([], [truth(0, 0, 5)], [0.5]) == {(0, MISSED): 1}
    assert events([(0, 0.9, 0, 5)], [], [0.5]) == {(NOTHING, 0): 1}
    assert math.isnan(f1_score({}))
    assert math.isnan(f1_score({(VOID, 0): 3}))
    assert confusion_table([], 2).tolist() == [[0, 0, 0]] * 4


def test_the_diagonal_is_what_mask_ap_has_matched() -> None:
    rng = np.random.default_rng(0)
    matched, objects, tables = [], np.zeros((4, 3), dtype=np.int64), []
    for _ in range(30):
        starts = rng.integers(0, 16, size=(2, 6))
        true = [truth(int(rng.integers(3)), s, s + 4, crowd=bool(rng.random() < 0.1)) for s in starts[0]]
        classes, scores = rng.integers(3, size=6), rng.random(6)
        rles = [encode_mask(strip(s, s + 4)) for s in starts[1]]
        matched.append(match_image(classes=classes, scores=scores, rles=rles, truth=true))
        tables.append(overlapping_instances(classes=classes, scores=scores, rles=rles, truth=true))
        objects += count_objects(true, 3)
    points = best_points(matched, objects)
    thresholds = np.array([point.threshold for point in points if point])
    table = confusion_table([instance_events(image, thresholds) for image in tables], 3)
    for c in range(3):
        outcomes = np.concatenate(
            [outcomes_at_half(m)[(m.classes == c) & (m.scores >= thresholds[c])] for m in matched]
        )
        assert table[c, c] == (outcomes == HIT).sum() > 5
        point = points[c]
        assert point is not None
        assert table[c].sum() == objects[0, c]
        assert table[c, c] / table[c].sum() == pytest.approx(point.recall)
        assert table[c, c] / (outcomes != IGNORED).sum() == pytest.approx(point.precision)


def test_segments_by_hand() -> None:
    true = np.array([[1, 1, 1, 2, 2, 2, 0, 0, 3, 3, 3, 4, 4]])
    pred = np.array([[5, 5, 0, 6, 6, 6, 7, 7, 8, 0, 0, 9, 9]])
    gt = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}, {"id": 3, "category_id": 2}]
    gt.append({"id": 4, "category_id": 2, "iscrowd": 1})
    segments = [{"id": i, "category_id": c} for i, c in ((5, 0), (6, 2), (7, 1), (8, 2), (9, 0))]
    found = segment_events(joint_areas(true, pred), gt, segments)
    assert found == {(0, 0): 1, (1, 2): 1, (VOID, 1): 1, (2, MISSED): 1, (NOTHING, 2): 1, (VOID, 0): 1}


def test_segments_agree_with_panoptic_quality() -> None:
    """Hits are its hits; what it calls missed is missed or taken for another class."""
    rng = np.random.default_rng(1)
    statistics, table = np.zeros((4, 5)), confusion_table([], 5)
    for _ in range(30):
        ids, infos = random_panoptic(rng, size=(40, 50), segments=10, max_id=999)
        pred_ids, segments = disturb(rng, (ids, infos))
        gt = [{**info, "category_id": CLASS_OF[info["category_id"]]} for info in infos]
        statistics += panoptic_statistics(
            pred_ids=pred_ids, pred_segments=segments, gt_ids=ids, gt_segments=gt, num_classes=5
        )
        table += confusion_table([segment_events(joint_areas(ids, pred_ids), gt, segments)], 5)
    assert table.diagonal()[:5].tolist() == statistics[TP].tolist()
    assert table[:5].sum(axis=1).tolist() == (statistics[TP] + statistics[FN]).tolist()
    wrong = table[:5, :5].sum(axis=0) - table.diagonal()[:5] + table[NOTHING, :5]
    assert (statistics[FP] <= wrong + table[VOID, :5]).all()
    assert wrong.sum() > 10


def test_pixels() -> None:
    predicted, true = np.array([[0, 1, 1, 2]]), np.array([[0, 0, 255, 255]])
    assert pixels_on_void(predicted, true, num_classes=3, ignore_label=255) == {(VOID, 1): 1, (VOID, 2): 1}
    assert pixel_events(np.array([[3, 0], [2, 0]])) == {(0, 0): 3, (1, 0): 2}


def test_renumbered() -> None:
    before = {(7, 9): 1, (7, MISSED): 2, (NOTHING, 9): 3, (VOID, 7): 4}
    assert renumbered(before, {7: 0, 9: 1}) == {(0, 1): 1, (0, MISSED): 2, (NOTHING, 1): 3, (VOID, 0): 4}
