"""Semantic metrics: golden values by hand, labels of 16 bits, and truth derived from panoptic PNGs."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.evaluation.semantic import SemSegEvaluator, confusion_matrix, label_map, semantic_metrics
from tests.helpers.panoptic import CLASS_OF, random_panoptic

Register = Callable[..., str]


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    """Returns a function that writes label maps and registers them as a semantic data set."""
    names = []

    def make(labels: dict[str, np.ndarray], *, classes: int, ignore_label: int = 255) -> str:
        name = f"{tmp_path.name}_{len(names)}"
        records = []
        for stem, array in labels.items():
            path = tmp_path / f"{stem}.{'png' if array.dtype == np.uint8 else 'tif'}"
            Image.fromarray(array).save(path)
            records.append({"file_name": f"{stem}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            stuff_classes=[f"c{i}" for i in range(classes)],
            ignore_label=ignore_label,
            evaluator_type="sem_seg",
        )
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def scores(labels: np.ndarray, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).permute(2, 0, 1).float()


def feed(evaluator: SemSegEvaluator, stem: str, labels: np.ndarray, classes: int) -> None:
    evaluator.process([{"file_name": f"{stem}.jpg"}], [{"sem_seg": scores(labels, classes)}])


TRUTH = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], dtype=np.uint8)
PREDICTED = np.array([[0, 0, 1, 1], [1, 2, 2, 0]])


def test_by_hand(register: Register) -> None:
    # Counted pixels 6, hits 2 + 2. Class 0: 2/3. Class 1: 2 of union 4. Class 2 has no truth: left out.
    name = register({"a": TRUTH}, classes=3)
    evaluator = SemSegEvaluator(name)
    feed(evaluator, "a", PREDICTED, 3)
    results = evaluator.evaluate()
    assert results is not None
    sem_seg = results["sem_seg"]
    assert math.isnan(sem_seg.pop("IoU-c2"))
    assert math.isnan(sem_seg.pop("ACC-c2"))
    expected = {
        "mIoU": 100 * (2 / 3 + 1 / 2) / 2,
        "fwIoU": 100 * (2 / 3 + 1 / 2) / 2,
        "mACC": 100 * 2 / 3,
        "pACC": 100 * 4 / 6,
        "IoU-c0": 100 * 2 / 3,
        "IoU-c1": 50,
        "ACC-c0": 100 * 2 / 3,
        "ACC-c1": 100 * 2 / 3,
    }
    assert sem_seg == pytest.approx(expected)


def test_frequency_weights() -> None:
    metrics = semantic_metrics(np.array([[6, 0], [1, 1]]), ["a", "b"])
    assert metrics["fwIoU"] == pytest.approx(100 * (6 / 7 * 6 / 8 + 1 / 2 * 2 / 8))


def test_all_ignored_is_nan(register: Register) -> None:
    evaluator = SemSegEvaluator(register({"a": np.full((2, 2), 255, dtype=np.uint8)}, classes=2))
    feed(evaluator, "a", np.zeros((2, 2), dtype=int), 2)
    results = evaluator.evaluate()
    assert results is not None
    assert all(math.isnan(value) for value in results["sem_seg"].values())


def test_sixteen_bit_labels(register: Register) -> None:
    truth = np.array([[846, 300, 65535]], dtype=np.uint16)
    evaluator = SemSegEvaluator(register({"a": truth}, classes=847, ignore_label=65535))
    feed(evaluator, "a", np.array([[846, 300, 5]]), 847)
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["mIoU"] == 100
    assert math.isnan(results["sem_seg"]["IoU-c5"])


def test_label_out_of_range_names_file_and_value(register: Register) -> None:
    name = register({"bad": np.array([[0, 7]], dtype=np.uint8)}, classes=3)
    with pytest.raises(ValueError, match=r"bad\.png: label 7 is outside 0\.\.2 and not the ignore label 255"):
        feed(SemSegEvaluator(name), "bad", np.zeros((1, 2), dtype=int), 3)


def test_wrong_sizes(register: Register) -> None:
    name = register({"a": TRUTH}, classes=3)
    with pytest.raises(ValueError, match=r"a\.png: the prediction is \(1, 2\), the ground truth \(2, 4\)"):
        feed(SemSegEvaluator(name), "a", np.zeros((1, 2), dtype=int), 3)
    with pytest.raises(ValueError, match=r"scores 4 classes, .* has 3"):
        feed(SemSegEvaluator(name), "a", PREDICTED, 4)
    with pytest.raises(KeyError, match=r"'b\.jpg' has no sem_seg_file_name"):
        feed(SemSegEvaluator(name), "b", PREDICTED, 3)
    with pytest.raises(KeyError, match="SEMANTIC_ON"):
        SemSegEvaluator(name).process([{"file_name": "a.jpg"}], [{}])
    with pytest.raises(ValueError, match="predicted class -1"):
        confusion_matrix(np.array([[-1]]), np.array([[0]]), num_classes=2, ignore_label=255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_label_map_is_argmax(dtype: torch.dtype) -> None:
    """With ties, of which the first wins, and on scores that are not contiguous."""
    scores = torch.randint(0, 4, (30, 17, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    for given in (scores, scores.flip(0).transpose(1, 2), scores[:1], scores[:, :0]):
        expected = given.numpy().argmax(axis=0) if dtype != torch.bfloat16 else given.float().numpy().argmax(axis=0)
        assert np.array_equal(label_map(given), expected)
    with pytest.raises(ValueError, match="hold no class"):
        label_map(torch.zeros(0, 2, 2))


def test_empty_map() -> None:
    nothing = np.zeros((0, 4), dtype=np.uint8)
    assert confusion_matrix(nothing, nothing, num_classes=2, ignore_label=255).tolist() == [[0, 0], [0, 0]]


def test_truth_from_panoptic_annotations(make_dataset: Callable[..., str]) -> None:
    """Every segment, crowds too, is painted with its class; void is ignored."""
    rng = np.random.default_rng(1)
    ids, segments = random_panoptic(rng, size=(40, 50), segments=12, max_id=2**24)
    assert any(segment["iscrowd"] for segment in segments)
    labels = np.zeros(ids.shape, dtype=int)
    for segment in segments:
        labels[ids == segment["id"]] = CLASS_OF[segment["category_id"]]
    predicted = np.where(rng.random(ids.shape) < 0.2, 2, labels)
    evaluator = SemSegEvaluator(make_dataset({4: (ids, segments)}))
    evaluator.process([{"image_id": 4}], [{"sem_seg": scores(predicted, 5)}])
    results = evaluator.evaluate()
    assert results is not None
    counted = ids != 0
    hits = (predicted == labels) & counted
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * hits.sum() / counted.sum())
    union = ((predicted == 0) | (labels == 0)) & counted
    assert results["sem_seg"]["IoU-cat"] == pytest.approx(100 * (hits & (labels == 0)).sum() / union.sum())


def test_ranks_add_up(register: Register, as_ranks: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    name = register({"a": TRUTH, "b": TRUTH[::-1].copy(), "c": TRUTH}, classes=3)
    alone, *ranks = (SemSegEvaluator(name) for _ in range(3))
    for evaluators, stem in (((alone, ranks[0]), "a"), ((alone, ranks[1]), "b")):
        for evaluator in evaluators:
            feed(evaluator, stem, PREDICTED, 3)
    expected = alone.evaluate()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        results = as_ranks(ranks)
    assert results[0] is not None
    assert results[0]["sem_seg"] == pytest.approx(expected["sem_seg"], nan_ok=True)  # type: ignore[index]
    assert results[1] is None
    assert "no prediction for 1 of 3 images" in caplog.text
    with pytest.raises(ValueError, match=r"'a\.jpg' was evaluated twice"):
        feed(alone, "a", PREDICTED, 3)


def test_labels_may_come_in_place_of_scores(register: Register) -> None:
    name = register({"a": TRUTH}, classes=3)
    results = []
    for prediction in (scores(PREDICTED, 3), torch.from_numpy(PREDICTED).to(torch.int16)):
        evaluator = SemSegEvaluator(name)
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": prediction}])
        results.append(evaluator.evaluate())
    assert results[0] is not None
    assert results[0]["sem_seg"] == pytest.approx(results[1]["sem_seg"], nan_ok=True)  # type: ignore[index]
    with pytest.raises(ValueError, match="predicted class 3 is outside"):
        SemSegEvaluator(name).process([{"file_name": "a.jpg"}], [{"sem_seg": torch.full(TRUTH.shape, 3)}])
