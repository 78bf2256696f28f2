"""Panoptic quality: golden values by hand, and equality with panopticapi."""

import contextlib
import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.d2.data import MetadataCatalog
from mask2former.data.images import read_panoptic_png
from mask2former.evaluation.panoptic import (
    COCOPanopticEvaluator,
    joint_areas,
    panoptic_quality,
    panoptic_statistics,
)
from tests.helpers.panoptic import CATEGORIES, disturb, random_panoptic

MakeDataset = Callable[..., str]


def statistics(pred: list[list[int]], pred_classes: dict[int, int], gt: list[list[int]], gt_segments: list) -> Any:
    return panoptic_statistics(
        pred_ids=np.array(pred, dtype=np.int32),
        pred_segments=[{"id": i, "category_id": c} for i, c in pred_classes.items()],
        gt_ids=np.array(gt, dtype=np.int32),
        gt_segments=gt_segments,
        num_classes=3,
    )


def feed(evaluator: Any, predictions: dict[int, Any]) -> None:
    for image_id, (ids, segments) in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])


def test_joint_areas_counts_pairs() -> None:
    first = np.array([[0, 0, 5], [5, 5, 2**24 - 1]], dtype=np.int32)
    second = np.array([[1, 1, 1], [1, 0, 0]], dtype=np.int32)
    assert joint_areas(first, second) == {(0, 1): 2, (5, 1): 2, (5, 0): 1, (2**24 - 1, 0): 1}
    assert joint_areas(first[:0], second[:0]) == {}


def test_by_hand() -> None:
    # Class 0: 3 of 4 predicted pixels on 4 true ones, IoU 3/5. Class 1: missed. Class 2: a false positive.
    result = statistics(
        [[1, 1, 1, 2], [1, 0, 0, 2]],
        {1: 0, 2: 2},
        [[9, 9, 9, 9], [8, 8, 8, 8]],
        [{"id": 9, "category_id": 0, "iscrowd": 0}, {"id": 8, "category_id": 1, "iscrowd": 0}],
    )
    np.testing.assert_allclose(result, [[0.6, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    quality = panoptic_quality(result)
    np.testing.assert_allclose(quality["PQ"], [60, 0, 0])
    np.testing.assert_allclose(quality["SQ"], [60, 0, 0])
    np.testing.assert_allclose(quality["RQ"], [100, 0, 0])


def test_void_pixels_do_not_count_against_a_match() -> None:
    result = statistics([[1, 1, 1, 1]], {1: 0}, [[0, 0, 7, 7]], [{"id": 7, "category_id": 0, "iscrowd": 0}])
    np.testing.assert_allclose(result[:, 0], [1, 1, 0, 0])


def test_exactly_half_is_no_match() -> None:
    result = statistics([[1, 1, 0, 0]], {1: 0}, [[7, 7, 7, 7]], [{"id": 7, "category_id": 0, "iscrowd": 0}])
    np.testing.assert_allclose(result[:, 0], [0, 0, 1, 1])


def test_crowd_forgives_its_class_alone() -> None:
    crowd = [{"id": 7, "category_id": 0, "iscrowd": 1}]
    assert statistics([[1, 1, 1]], {1: 0}, [[7, 7, 7]], crowd).sum() == 0
    np.testing.assert_allclose(statistics([[1, 1, 1]], {1: 1}, [[7, 7, 7]], crowd)[:, 1], [0, 0, 1, 0])


def test_only_void_forgives_everything() -> None:
    assert statistics([[1, 1], [2, 2]], {1: 0, 2: 1}, [[0, 0], [0, 0]], []).sum() == 0


@pytest.mark.parametrize(("pred", "false_positives"), [([1, 1, 0, 0, 0], 0), ([1, 1, 1, 1, 0], 1)])
def test_forgiven_only_beyond_half(pred: list[int], false_positives: int) -> None:
    # The truth has another class, so the prediction is unmatched: wholly on void, or with exactly half on it.
    result = statistics([pred], {1: 0}, [[0, 0, 7, 7, 7]], [{"id": 7, "category_id": 1, "iscrowd": 0}])
    np.testing.assert_allclose(result[:, 0], [0, 0, false_positives, 0])


def test_area_of_the_annotation_goes_before_the_painted_one() -> None:
    segment = {"id": 7, "category_id": 0, "iscrowd": 0, "area": 4}
    result = statistics([[1, 1, 1]], {1: 0}, [[7, 7, 7]], [segment])
    np.testing.assert_allclose(result[:, 0], [0.75, 1, 0, 0])


def test_no_prediction_misses_everything() -> None:
    result = statistics([[0, 0]], {}, [[4, 4]], [{"id": 4, "category_id": 2, "iscrowd": 0}])
    np.testing.assert_allclose(result[:, 2], [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("pred", "classes", "message"),
    [
        ([[1, 1, 1]], {1: 0}, r"\(1, 3\).*\(1, 2\)"),
        ([[1, 2]], {1: 0}, r"painted but not listed: \[2\]"),
        ([[1, 1]], {1: 0, 5: 0}, r"listed but not painted: \[5\]"),
        ([[1, 1]], {1: 3}, r"\[3\] are outside 0..2"),
    ],
)
def test_wrong_prediction(pred: list[list[int]], classes: dict[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics(pred, classes, [[0, 0]], [])


@pytest.mark.parametrize("seed", range(4))
def test_equals_panopticapi(make_dataset: MakeDataset, tmp_path: Path, seed: int) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="panopticapi-lite is not installed")
    rng = np.random.default_rng(seed)
    truth = {i: random_panoptic(rng, size=(50, 61), segments=int(rng.integers(1, 25)), max_id=2**24) for i in range(12)}
    truth[12] = (np.zeros((9, 9), dtype=np.int32), [])
    predictions = {i: disturb(rng, sample) for i, sample in truth.items()}
    predictions[3] = (np.zeros_like(truth[3][0]), [])
    predictions[12] = (np.ones((9, 9), dtype=np.int32), [{"id": 1, "category_id": 0, "isthing": True}])
    name = make_dataset(truth)
    evaluator = COCOPanopticEvaluator(name, str(tmp_path / "out"))
    feed(evaluator, predictions)
    results = evaluator.evaluate()
    assert results is not None
    ours = results["panoptic_seg"]

    metadata = MetadataCatalog.get(name)
    stat = evaluation.PQStat()
    written = json.loads((tmp_path / "out" / "panoptic_predictions.json").read_text())["annotations"]
    truths = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
    categories = {category["id"]: category for category in CATEGORIES}
    with contextlib.redirect_stdout(io.StringIO()):
        stat += evaluation.pq_compute_single_core(
            0,
            list(zip(truths, written, strict=True)),
            metadata.panoptic_root,
            str(tmp_path / "out" / "panoptic_predictions"),
            categories,
        )
    for suffix, is_thing in (("", None), ("_th", True), ("_st", False)):
        theirs, per_class = stat.pq_average(categories, is_thing)
        for key in ("pq", "sq", "rq"):
            assert ours[key.upper() + suffix] == pytest.approx(100 * theirs[key], abs=1e-9)
        for category_id, values in per_class.items():
            for key, value in values.items():
                own = ours[f"{key.upper()}-{categories[category_id]['name']}"]
                assert (0 if math.isnan(own) else own) == pytest.approx(100 * value, abs=1e-9)
    assert 0 < ours["PQ"] < 100


def test_written_prediction_reads_back(make_dataset: MakeDataset, tmp_path: Path) -> None:
    ids = np.array([[0, 70000], [300, 300]], dtype=np.int32)
    name = make_dataset(
        {
            5: (
                ids,
                [
                    {"id": 300, "category_id": 40, "iscrowd": 0, "area": 2},
                    {"id": 70000, "category_id": 3, "iscrowd": 0, "area": 1},
                ],
            )
        }
    )
    evaluator = COCOPanopticEvaluator(name, str(tmp_path / "out"))
    feed(
        evaluator,
        {
            5: (
                ids,
                [
                    {"id": 300, "category_id": 3, "isthing": False},
                    {"id": 70000, "category_id": 0, "isthing": True},
                ],
            )
        },
    )
    results = evaluator.evaluate()
    assert results is not None
    assert results["panoptic_seg"]["PQ"] == 100
    content = json.loads((tmp_path / "out" / "panoptic_predictions.json").read_text())
    assert content["annotations"] == [
        {
            "image_id": 5,
            "file_name": "000005.png",
            "segments_info": [{"id": 300, "category_id": 40}, {"id": 70000, "category_id": 3}],
        }
    ]
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "out" / "panoptic_predictions" / "000005.png"), ids)
    assert not list((tmp_path / "out").rglob(".*"))


def test_ranks_add_up(make_dataset: MakeDataset, as_ranks: Callable[..., list[Any]]) -> None:
    rng = np.random.default_rng(0)
    truth = {i: random_panoptic(rng, size=(40, 40), segments=9, max_id=1000) for i in range(7)}
    predictions = {i: disturb(rng, sample) for i, sample in truth.items()}
    name = make_dataset(truth)
    alone = COCOPanopticEvaluator(name)
    feed(alone, predictions)
    expected = alone.evaluate()
    ranks = [COCOPanopticEvaluator(name) for _ in range(2)]
    for rank, evaluator in enumerate(ranks):
        feed(evaluator, {i: predictions[i] for i in range(rank, 7, 2)})
    results = as_ranks(ranks)
    assert expected is not None
    assert results[0]["panoptic_seg"] == pytest.approx(expected["panoptic_seg"], nan_ok=True)
    assert results[1] is None


def test_nothing_to_score_is_nan(make_dataset: MakeDataset) -> None:
    name = make_dataset({1: (np.zeros((3, 3), dtype=np.int32), [])})
    evaluator = COCOPanopticEvaluator(name)
    feed(evaluator, {1: (np.zeros((3, 3), dtype=np.int32), [])})
    results = evaluator.evaluate()
    assert results is not None
    assert all(math.isnan(value) for value in results["panoptic_seg"].values())


def test_missing_and_repeated_images(
    make_dataset: MakeDataset, as_ranks: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    empty = (np.zeros((3, 3), dtype=np.int32), [])
    name = make_dataset(dict.fromkeys(range(3), empty))
    evaluator = COCOPanopticEvaluator(name)
    feed(evaluator, {1: empty})
    with pytest.raises(ValueError, match="image 1 was evaluated twice"):
        feed(evaluator, {1: empty})
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    assert "no prediction for 2 of 3 images" in caplog.text
    assert ": 0, 2" in caplog.text
    other = COCOPanopticEvaluator(name)
    feed(other, {1: empty})
    with pytest.raises(ValueError, match="more than one rank: 1"):
        as_ranks([evaluator, other])
    with pytest.raises(KeyError, match="has no image 99"):
        feed(evaluator, {99: empty})
    evaluator.reset()
    feed(evaluator, {1: empty})


def test_names_the_switch_of_a_missing_output(make_dataset: MakeDataset) -> None:
    evaluator = COCOPanopticEvaluator(make_dataset({1: (np.zeros((3, 3), dtype=np.int32), [])}))
    with pytest.raises(KeyError, match="PANOPTIC_ON"):
        evaluator.process([{"image_id": 1}], [{"sem_seg": torch.zeros(5, 3, 3)}])


def test_errors_name_the_file(make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture) -> None:
    painted = np.full((3, 3), 4, dtype=np.int32)
    segment = {"id": 4, "category_id": 3, "iscrowd": 0}
    name = make_dataset({1: (painted, [segment, {**segment, "id": 6}]), 2: (painted, [{**segment, "category_id": 99}])})
    evaluator = COCOPanopticEvaluator(name)
    with pytest.raises(KeyError, match="category id 99"):
        feed(evaluator, {2: (painted, [])})
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match=r"000001\.png.*painted but not listed"),
    ):
        feed(evaluator, {1: (painted, [])})
    assert "segments [6]" in caplog.text


def test_ground_truth_of_one_channel_is_refused(make_dataset: MakeDataset) -> None:
    sample = (np.zeros((3, 3), dtype=np.int32), [])
    name = make_dataset({1: sample})
    path = Path(MetadataCatalog.get(name).panoptic_root) / "000001.png"
    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"000001\.png"):
        feed(COCOPanopticEvaluator(name), {1: sample})
