"""Precision, recall and the score of highest F1: cases counted by hand, and COCOeval's own arrays."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mask2former.evaluation.average_precision import HIT, IGNORED, MISS, RECALL_THRESHOLDS
from mask2former.evaluation.curves import best_point
from mask2former.evaluation.details import read_details
from mask2former.evaluation.instance import InstanceSegEvaluator
from tests.evaluation.test_instance import coco_eval, feed, random_predictions, random_truth


def test_highest_f1_by_hand() -> None:
    """Of four objects: F1 is 2/5, 2/6, 4/7 (here), 4/8, 6/9 (best), 6/10 from the highest score on."""
    outcomes = np.array([HIT, MISS, HIT, MISS, HIT, MISS])
    point = best_point(np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), outcomes, 4)
    assert point is not None
    assert (point.threshold, point.precision, point.recall) == (0.5, 3 / 5, 3 / 4)
    assert point.f1 == pytest.approx(6 / 9)


def test_equal_scores_stay_together_and_ignored_ones_count_nowhere() -> None:
    """The threshold that keeps the hit at 0.5 keeps the two misses of the same score too."""
    outcomes = np.array([MISS, HIT, MISS, IGNORED, HIT])
    point = best_point(np.array([0.5, 0.5, 0.5, 0.9, 0.4]), outcomes, 2)
    assert point is not None
    assert (point.threshold, point.precision, point.recall) == (0.4, 2 / 4, 1.0)


def test_of_equal_f1_the_higher_threshold_is_taken() -> None:
    point = best_point(np.array([0.2, 0.9]), np.array([HIT, HIT]), 2)
    assert point is not None
    assert point.threshold == 0.2
    tied = best_point(np.array([0.9, 0.8, 0.7]), np.array([HIT, MISS, MISS]), 1)
    assert tied is not None
    assert tied.threshold == 0.9
    equal = best_point(np.array([0.9, 0.8, 0.7, 0.6]), np.array([HIT, MISS, MISS, HIT]), 2)
    assert equal is not None
    assert (equal.threshold, equal.f1) == (0.9, pytest.approx(2 / 3))


@pytest.mark.parametrize(("outcomes", "objects"), [([MISS], 3), ([], 3), ([IGNORED], 3), ([MISS], 0), ([], 0)])
def test_nothing_found_has_no_threshold(outcomes: list[int], objects: int) -> None:
    assert best_point(np.full(len(outcomes), 0.5), np.array(outcomes, dtype=int), objects) is None


@pytest.mark.parametrize("seed", range(3))
def test_curves_and_thresholds_are_those_of_cocoeval(
    make_dataset: Callable[..., str], tmp_path: Path, seed: int
) -> None:
    """COCOeval gives the score at which each of its recalls is reached, here without ties."""
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, list(range(20)))
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    name = make_dataset({}, json_file=str(tmp_path / "instances.json"))
    evaluator = InstanceSegEvaluator(name, str(tmp_path / "out"), details=True)
    predictions = {i: random_predictions(rng, truth, i) for i in range(20)}
    for predicted in predictions.values():
        predicted.scores = torch.from_numpy(rng.random(len(predicted)))
    feed(evaluator, predictions)
    evaluator.evaluate()
    evaluation = coco_eval(tmp_path / "instances.json", tmp_path / "out" / "coco_instances_results.json")
    (details,) = read_details(tmp_path / "out")
    for index in (0, 1):
        precision, scores = (evaluation[key][0, :, index, 0, -1] for key in ("precision", "scores"))
        np.testing.assert_allclose(details.precision[index], precision, atol=1e-12)
        point = details.points[index]
        assert point is not None
        reached = int(np.floor(100 * point.recall + 1e-9))
        assert scores[reached] == point.threshold
        assert precision[reached] == pytest.approx(point.precision)
        f1 = 2 * precision * RECALL_THRESHOLDS / np.maximum(precision + RECALL_THRESHOLDS, 1e-9)
        assert f1.max() - 1e-9 <= point.f1 < f1.max() + 0.02  # recalls are rounded down in the table
    assert details.precision[2] == []  # no object
    assert details.points[2] is None
    assert details.columns["AP"][2] is None
