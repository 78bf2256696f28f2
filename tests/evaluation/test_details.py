"""What evaluators write for a report: columns, confusion and images, by hand for each task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.evaluation.confusion import MISSED, NOTHING
from mask2former.evaluation.details import Details, ImageScore, describe_errors, read_details
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.evaluation.panoptic import COCOPanopticEvaluator
from mask2former.evaluation.semantic import SemSegEvaluator
from tests.evaluation.test_instance import SIZE, feed, instances

CAT, DOG = 3, 7  # ids in the files; classes 0 and 1 of 5


@pytest.fixture
def dataset(make_dataset: Callable[..., str]) -> str:
    """Image 1: a cat above a dog. Image 2: void."""
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[:50], ids[50:100] = 1, 2
    return make_dataset(
        {
            1: (ids, [{"id": 1, "category_id": CAT, "iscrowd": 0}, {"id": 2, "category_id": DOG, "iscrowd": 0}]),
            2: (np.zeros(SIZE, dtype=np.int32), []),
        }
    )


def rows(start: int, stop: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[start:stop] = True
    return mask


def details_of(evaluator: Any, folder: Path) -> Details:
    assert evaluator.evaluate() is not None
    (details,) = read_details(folder)
    return details


def test_instances(dataset: str, tmp_path: Path) -> None:
    evaluator = InstanceSegEvaluator(dataset, str(tmp_path), details=True)
    feed(
        evaluator,
        {
            1: instances([rows(0, 50), rows(50, 100), rows(0, 9)], [0, 0, 0], [0.75, 0.5, 0.125]),
            2: instances([rows(0, 9)], [1], [0.875]),
        },
    )
    details = details_of(evaluator, tmp_path)
    assert details.classes == ["cat", "dog", "cow"]
    assert (details.task, details.dataset, details.unit, details.score_name) == ("segm", dataset, "objects", "F1")
    assert details.columns["objects"] == [1, 1, 0]
    assert details.columns["AP"] == [pytest.approx(100), 0, None]
    assert details.columns["F1"] == [100, None, None]
    assert details.score_thresholds == {"cat": 0.75}
    # cat found, dog missed (the detection on it is below the cats' threshold), a dog of image 2 where there is none
    assert details.confusion == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert details.images == [
        ImageScore(image=1, score=pytest.approx(2 / 3), errors=[[1, MISSED, 1]]),  # type: ignore[list-item]
        ImageScore(image=2, score=0, errors=[[NOTHING, 1, 1]]),  # type: ignore[list-item]
    ]


def test_panoptic(dataset: str, tmp_path: Path) -> None:
    evaluator = COCOPanopticEvaluator(dataset, str(tmp_path), details=True)
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:40], ids[50:100], ids[120:] = 1, 2, 3
    segments = [{"id": i, "category_id": c, "isthing": c < 3} for i, c in ((1, 0), (2, 4), (3, 4))]
    names = [{"image_id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    evaluator.process(names, [{"panoptic_seg": (ids, segments)}, {"panoptic_seg": (ids * 0, [])}])
    details = details_of(evaluator, tmp_path)
    assert details.classes == ["cat", "dog", "cow", "sky", "sea"]
    assert details.columns["segments"] == [1, 1, 0, 0, 0]
    assert details.columns["missed"] == [0, 1, 0, 0, 0]
    assert details.columns["made up"] == [0, 0, 0, 0, 1]  # the one on void is forgiven
    assert details.columns["PQ"] == [pytest.approx(80), 0, None, None, 0]
    table = np.array(details.confusion)
    assert table.shape == (7, 6)
    assert table[0, 0] == table[1, 4] == table[-2, 4] == table.sum() - 2 == 1
    first, second = details.images
    assert first.score == pytest.approx(0.8 / (1 + 0.5 + 0.5))
    assert describe_errors(first.errors, details.classes, details.unit) == ["1x dog taken for sea"]
    assert (second.score, second.errors) == (None, [])
    assert details.points == []


def test_semantic(dataset: str, tmp_path: Path) -> None:
    evaluator = SemSegEvaluator(dataset, str(tmp_path), details=True)
    labels = torch.full(SIZE, 2, dtype=torch.int16)
    labels[:50], labels[50:60] = 0, 1
    empty = torch.full(SIZE, 4, dtype=torch.int16)
    names = [{"image_id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    evaluator.process(names, [{"sem_seg": labels}, {"sem_seg": empty}])
    details = details_of(evaluator, tmp_path)
    width = SIZE[1]
    assert details.columns["% of pixels"] == [50, 50, 0, 0, 0]
    assert details.columns["IoU"] == [100, 20, None, None, None]
    table = np.array(details.confusion)
    assert table[1].tolist() == [0, 10 * width, 40 * width, 0, 0, 0]
    assert table[-2].tolist() == [0, 0, 50 * width, 0, SIZE[0] * width, 0]
    assert details.images[0].score == pytest.approx(0.6)
    assert describe_errors(details.images[0].errors, details.classes, "pixels") == [
        f"{40 * width} pixels: dog taken for cow"
    ]
    assert details.images[1].score is None


def test_errors_in_words() -> None:
    errors = [(0, MISSED, 3), (NOTHING, 1, 2), (1, 0, 1)]
    assert describe_errors(errors, ["cat", "dog"], "objects") == [
        "3x cat missed",
        "2x dog where there is none",
        "1x dog taken for cat",
    ]


@pytest.mark.parametrize("kind", [InstanceSegEvaluator, COCOPanopticEvaluator, SemSegEvaluator])
def test_nothing_is_written_unless_asked_for(dataset: str, tmp_path: Path, kind: Any) -> None:
    for evaluator in (kind(dataset, str(tmp_path)), kind(dataset, details=True)):
        evaluator.evaluate()
    assert not (tmp_path / "details").exists()


@pytest.mark.parametrize("kind", [InstanceSegEvaluator, COCOPanopticEvaluator, SemSegEvaluator])
def test_a_set_without_any_prediction(dataset: str, tmp_path: Path, kind: Any) -> None:
    details = details_of(kind(dataset, str(tmp_path), details=True), tmp_path)
    assert details.images == []
    assert np.sum(details.confusion) == 0


def test_ranks_add_up(dataset: str, tmp_path: Path, as_ranks: Callable[..., list[Any]]) -> None:
    predictions = {1: instances([rows(0, 50)], [0], [0.5]), 2: instances([rows(0, 9)], [1], [0.5])}
    alone = InstanceSegEvaluator(dataset, str(tmp_path / "alone"), details=True)
    feed(alone, predictions)
    expected = details_of(alone, tmp_path / "alone")
    ranks = [InstanceSegEvaluator(dataset, str(tmp_path / "ranks"), details=True) for _ in range(2)]
    for evaluator, image_id in zip(ranks, (1, 2), strict=True):
        feed(evaluator, {image_id: predictions[image_id]})
    as_ranks(ranks)
    assert list(read_details(tmp_path / "ranks")) == [expected]
