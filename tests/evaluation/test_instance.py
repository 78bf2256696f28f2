"""Mask AP: equality with COCOeval on data with crowds, ties, every size and empty images."""

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.d2.structures import Instances
from mask2former.evaluation.ground_truth import encode_annotation
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.modeling.masks import PackedMasks
from tests.helpers.panoptic import CATEGORIES, CLASS_OF, random_panoptic

MakeDataset = Callable[..., str]
THINGS = [category for category in CATEGORIES if category["isthing"]]
SIZE = (150, 170)


def box_mask(rng: np.random.Generator, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
    mask[y : y + side, x : x + int(side * rng.uniform(0.7, 1.3)) + 1] = True
    return mask


def random_truth(rng: np.random.Generator, image_ids: list[int]) -> dict[str, Any]:
    """COCO instances with small, medium and large objects, crowds, and polygons for some."""
    annotations: list[dict[str, Any]] = []
    for image_id in image_ids:
        for _ in range(int(rng.integers(0, 9))):
            mask = box_mask(rng, int(rng.choice([8, 30, 50, 120])))
            rle = mask_util.encode(np.asfortranarray(mask.view(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            ys, xs = np.nonzero(mask)
            x0, y0, x1, y1 = (int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
            polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice([3, 7])),  # the third thing class never occurs
                    "segmentation": polygon if rng.random() < 0.3 else rle,
                    "area": float(mask.sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    images = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in image_ids]
    return {"images": images, "annotations": annotations, "categories": THINGS}


def random_predictions(rng: np.random.Generator, truth: dict[str, Any], image_id: int, *, shift: int = 4) -> Instances:
    """Shifted copies of the objects, several an object, with equal scores among them, and noise."""
    masks, classes = [], []
    for annotation in truth["annotations"]:
        if annotation["image_id"] != image_id:
            continue
        mask = mask_util.decode(encode_annotation(annotation["segmentation"], *SIZE)).astype(bool)
        for _ in range(int(rng.integers(0, 4))):
            masks.append(np.roll(mask, tuple(rng.integers(-shift, shift + 1, size=2)), axis=(0, 1)))
            classes.append(CLASS_OF[annotation["category_id"]])
    for _ in range(int(rng.integers(0, 5))):
        masks.append(box_mask(rng, 20))
        classes.append(int(rng.integers(3)))
    return instances(masks, classes, rng.integers(1, 12, size=len(masks)) / 12)


def instances(masks: Any, classes: Any, scores: Any) -> Instances:
    masks = np.asarray(masks, dtype=bool).reshape(-1, *SIZE)
    return Instances(
        SIZE,
        pred_masks=torch.from_numpy(masks),
        pred_classes=torch.as_tensor(classes, dtype=torch.int64),
        scores=torch.as_tensor(scores, dtype=torch.float32),
    )


def feed(evaluator: InstanceSegEvaluator, predictions: dict[int, Instances]) -> None:
    for image_id, predicted in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": predicted}])


def coco_eval(json_file: Path, results_file: Path) -> dict[str, Any]:
    """Arrays of COCOeval, and its summary under `metrics`."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(json_file))
        evaluation = COCOeval(truth, truth.loadRes(str(results_file)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    return {**evaluation.eval, "metrics": dict(zip(names, 100 * evaluation.stats[:6], strict=True))}


@pytest.mark.parametrize("seed", range(4))
def test_equals_cocoeval(make_dataset: MakeDataset, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image_ids = [int(i) for i in rng.permutation(40)[:25]]
    truth = random_truth(rng, image_ids)
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    name = make_dataset({}, json_file=str(tmp_path / "instances.json"))
    evaluator = InstanceSegEvaluator(name, str(tmp_path / "out"))
    feed(evaluator, {i: random_predictions(rng, truth, i) for i in image_ids})
    results = evaluator.evaluate()
    assert results is not None
    ours = results["segm"]
    theirs = coco_eval(tmp_path / "instances.json", tmp_path / "out" / "coco_instances_results.json")
    precision = theirs["precision"]
    for metric, value in theirs["metrics"].items():
        assert ours[metric] == pytest.approx(value, abs=1e-9), metric
    for index, category in enumerate(THINGS[:2]):
        of_class = precision[:, :, index, 0, -1]
        assert ours[f"AP-{category['name']}"] == pytest.approx(100 * of_class[of_class > -1].mean(), abs=1e-9)
    assert math.isnan(ours["AP-cow"])
    assert 5 < ours["AP"] < 95


def test_more_than_a_hundred_of_a_class(make_dataset: MakeDataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = random_truth(rng, [1, 2])
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    evaluator = InstanceSegEvaluator(
        make_dataset({}, json_file=str(tmp_path / "instances.json")), str(tmp_path / "out")
    )
    predictions = {i: random_predictions(rng, truth, i) for i in (1, 2)}
    noise = [box_mask(rng, 30) for _ in range(130)]
    predictions[1] = Instances.cat([predictions[1], instances(noise, [0] * 130, rng.integers(1, 12, size=130) / 12)])
    feed(evaluator, predictions)
    results = evaluator.evaluate()
    assert results is not None
    theirs = coco_eval(tmp_path / "instances.json", tmp_path / "out" / "coco_instances_results.json")
    assert results["segm"]["AP"] == pytest.approx(theirs["metrics"]["AP"], abs=1e-9)


def test_panoptic_only_set_gets_the_same_ap(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Without an instance JSON, things of the panoptic PNGs are the truth, crowds among them."""
    rng = np.random.default_rng(3)
    samples = {i: random_panoptic(rng, size=SIZE, segments=12, max_id=90000) for i in range(8)}
    annotations: list[dict[str, Any]] = []
    for image_id, (ids, segments) in samples.items():
        for segment in segments:
            if segment["category_id"] in {category["id"] for category in THINGS}:
                rle = mask_util.encode(np.asfortranarray((ids == segment["id"]).view(np.uint8)))
                rle["counts"] = rle["counts"].decode()
                annotations.append({**segment, "id": len(annotations) + 1, "image_id": image_id, "segmentation": rle})
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in samples],
        "annotations": annotations,
        "categories": THINGS,
    }
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    predictions = {i: random_predictions(rng, truth, i, shift=0) for i in samples}
    results = []
    files = [None, str(tmp_path / "gone.json"), str(tmp_path / "instances.json")]
    for metadata in ({} if file is None else {"json_file": file} for file in files):
        evaluator = InstanceSegEvaluator(make_dataset(samples, **metadata))
        feed(evaluator, predictions)
        results.append(evaluator.evaluate())
    assert results[0] is not None
    for other in results[1:]:
        assert results[0]["segm"] == pytest.approx(other["segm"], abs=1e-9, nan_ok=True)
    assert results[0]["segm"]["AP"] > 5
    assert any(annotation["iscrowd"] for annotation in annotations)


def one_object(make_dataset: MakeDataset) -> tuple[str, np.ndarray]:
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[10:50, 20:80] = 7
    return make_dataset({1: (ids, [{"id": 7, "category_id": 7, "iscrowd": 0}])}), ids == 7


def test_by_hand(make_dataset: MakeDataset) -> None:
    # Best-scored prediction is wrong, the second has IoU 0.6 (40 of 60 columns would be 0.67): precision 1/2
    # at every recall for IoU thresholds 0.5, 0.55 and 0.6, zero beyond.
    name, mask = one_object(make_dataset)
    part, wrong = mask.copy(), np.roll(mask, 80, axis=0)
    part[:, 20 + 36 :] = False
    evaluator = InstanceSegEvaluator(name)
    feed(evaluator, {1: instances([part, wrong], [1, 1], [0.5, 0.9])})
    results = evaluator.evaluate()
    assert results is not None
    segm = results["segm"]
    assert segm["AP50"] == pytest.approx(50)
    assert segm["AP75"] == 0
    assert segm["AP"] == pytest.approx(50 * 3 / 10)
    assert segm["APm"] == segm["AP"]
    assert math.isnan(segm["APs"])
    assert segm["AP-dog"] == segm["AP"]


def test_of_objects_with_equal_iou_the_later_one_is_found(make_dataset: MakeDataset) -> None:
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[10:50, 20:60], ids[10:50, 60:100] = 1, 2
    segments = [{"id": i, "category_id": 7, "iscrowd": 0} for i in (1, 2)]
    evaluator = InstanceSegEvaluator(make_dataset({1: (ids, segments)}))
    # Both lie half in the first prediction. At 0.5 it takes the second object, which the other one then misses.
    feed(evaluator, {1: instances([ids > 0, ids == 2], [1, 1], [0.9, 0.5])})
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP50"] == pytest.approx(100 * 51 / 101)


def test_no_prediction_is_zero_and_no_object_is_nan(make_dataset: MakeDataset) -> None:
    name, _ = one_object(make_dataset)
    void = make_dataset({1: (np.zeros(SIZE, dtype=np.int32), [])})
    for dataset, expected in ((name, 0.0), (void, math.nan)):
        evaluator = InstanceSegEvaluator(dataset)
        feed(evaluator, {1: instances([], [], [])})
        results = evaluator.evaluate()
        assert results is not None
        assert results["segm"]["AP"] == pytest.approx(expected, nan_ok=True)


def test_stuff_predictions_are_left_out(make_dataset: MakeDataset) -> None:
    name, mask = one_object(make_dataset)
    evaluator = InstanceSegEvaluator(name)
    feed(evaluator, {1: instances([mask, mask], [3, 1], [0.9, 0.5])})
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(100)


def test_packed_masks_give_the_same_results(make_dataset: MakeDataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    truth = random_truth(rng, list(range(5)))
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    name = make_dataset({}, json_file=str(tmp_path / "instances.json"))
    predictions = {i: random_predictions(rng, truth, i) for i in range(5)}
    results = []
    for _ in range(2):
        evaluator = InstanceSegEvaluator(name)
        feed(evaluator, predictions)
        results.append(evaluator.evaluate())
        for predicted in predictions.values():
            predicted.pred_masks = PackedMasks.pack(torch.as_tensor(np.asarray(predicted.pred_masks)))
    assert results[0] is not None
    assert results[0]["segm"]["AP"] > 0
    assert results[0]["segm"] == pytest.approx(results[1]["segm"], nan_ok=True)  # type: ignore[index]


def test_wrong_predictions(make_dataset: MakeDataset) -> None:
    name, mask = one_object(make_dataset)
    evaluator = InstanceSegEvaluator(name)
    with pytest.raises(ValueError, match=r"predicted class 5, but .* has 5 classes"):
        feed(evaluator, {1: instances([mask], [5], [1.0])})
    with pytest.raises(KeyError, match="has no image 2"):
        feed(evaluator, {2: instances([], [], [])})
    with pytest.raises(KeyError, match="INSTANCE_ON"):
        evaluator.process([{"image_id": 1}], [{}])
    small = Instances(
        (9, 9), pred_masks=torch.ones(1, 9, 9).bool(), pred_classes=torch.tensor([1]), scores=torch.ones(1)
    )
    with pytest.raises(ValueError, match=r"image 1: predicted masks are \[9, 9\]"):
        feed(InstanceSegEvaluator(name), {1: small})


def test_ranks_add_up(make_dataset: MakeDataset, tmp_path: Path, as_ranks: Callable[..., list[Any]]) -> None:
    rng = np.random.default_rng(9)
    truth = random_truth(rng, list(range(11)))
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    name = make_dataset({}, json_file=str(tmp_path / "instances.json"))
    predictions = {i: random_predictions(rng, truth, i) for i in range(11)}
    alone = InstanceSegEvaluator(name)
    feed(alone, predictions)
    expected = alone.evaluate()
    ranks = [InstanceSegEvaluator(name, str(tmp_path / "out")) for _ in range(2)]
    for rank, evaluator in enumerate(ranks):
        feed(evaluator, {i: predictions[i] for i in range(rank, 11, 2)})
    results = as_ranks(ranks)
    assert expected is not None
    assert results[0]["segm"] == pytest.approx(expected["segm"], abs=0, nan_ok=True)
    assert results[1] is None
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(written) == sum(len(predicted) for predicted in predictions.values())


def test_a_file_without_annotations_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps({"images": [], "categories": THINGS}))
    with pytest.raises(ValueError, match=r"has no labels to score, and no output_dir was given"):
        InstanceSegEvaluator(make_dataset({}, json_file=str(tmp_path / "test.json")))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        InstanceSegEvaluator(make_dataset({}, json_file=str(tmp_path / "broken.json")))
