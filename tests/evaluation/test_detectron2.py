"""Detectron2's own evaluators and ours give the same numbers on our data sets, one after the other on one output."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import d2, register_coco_panoptic
from mask2former.d2.data import DatasetCatalog
from mask2former.d2.structures import Boxes, Instances
from mask2former.data.datasets.metadata import panoptic_metadata
from mask2former.data.images import id_to_rgb
from mask2former.data.prepare.segments import instance_annotations
from mask2former.evaluation import COCOPanopticEvaluator, InstanceSegEvaluator, SemSegEvaluator
from mask2former.modeling.inference import mask_boxes
from tests.helpers.catalog import registered_below
from tests.helpers.panoptic import CATEGORIES, CLASS_OF, disturb, random_panoptic

SIZE = (60, 80)
THINGS = {category["id"]: category["id"] for category in CATEGORIES if category["isthing"]}

if d2.SOURCE != "official":
    pytest.skip("needs Detectron2", allow_module_level=True)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Registers a panoptic set with semantic labels and instances, and returns what a fair model gives on it."""
    rng = np.random.default_rng(6)
    samples = {i: random_panoptic(rng, size=SIZE, segments=12, max_id=90000) for i in range(1, 5)}
    with registered_below(tmp_path):
        _write(tmp_path, samples)
        register_coco_panoptic(
            "d2_set",
            image_root=tmp_path,
            panoptic_root=tmp_path / "panoptic",
            panoptic_json=tmp_path / "panoptic.json",
            categories=CATEGORIES,
            instances_json=tmp_path / "instances.json",
            sem_seg_root=tmp_path / "semantic",
            **panoptic_metadata(CATEGORIES),
        )
        DatasetCatalog.get("d2_set")
        yield [_output(disturb(rng, sample), rng) for sample in samples.values()]


def _write(root: Path, samples: dict[int, Any]) -> None:
    for folder in ("panoptic", "semantic"):
        (root / folder).mkdir()
    panoptic, instances = [], []
    for image_id, (ids, segments) in samples.items():
        name = f"{image_id:012d}.png"
        Image.fromarray(id_to_rgb(ids)).save(root / "panoptic" / name)
        panoptic.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        labels = np.full(SIZE, 255, dtype=np.uint8)
        for segment in segments:
            labels[ids == segment["id"]] = CLASS_OF[segment["category_id"]]
        Image.fromarray(labels).save(root / "semantic" / name)
        of_thing = {s["id"]: s["category_id"] for s in segments if s["category_id"] in THINGS}
        crowds = {s["id"] for s in segments if s["iscrowd"]}
        instances += instance_annotations(ids, of_thing, image_id, crowds=crowds)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in samples]
    for name, annotations in (("panoptic", panoptic), ("instances", instances)):
        numbered = [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)]
        categories = [c for c in CATEGORIES if name == "panoptic" or c["isthing"]]
        content = {"images": images, "annotations": numbered, "categories": categories}
        (root / f"{name}.json").write_text(json.dumps(content))


def _output(prediction: Any, rng: np.random.Generator) -> dict[str, Any]:
    ids, segments = prediction
    labels = rng.integers(len(CATEGORIES), size=SIZE)
    for segment in segments:
        labels[ids == segment["id"]] = segment["category_id"]
    things = [segment for segment in segments if segment["isthing"]]
    masks = torch.stack([torch.from_numpy(ids == segment["id"]) for segment in things])
    instances = Instances(SIZE, pred_masks=masks, pred_boxes=Boxes(mask_boxes(masks)))
    instances.scores = torch.from_numpy(rng.permutation(len(things)) / len(things))
    instances.pred_classes = torch.tensor([segment["category_id"] for segment in things])
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels), len(CATEGORIES)).permute(2, 0, 1).float()
    return {"panoptic_seg": (torch.from_numpy(ids), segments), "sem_seg": scores, "instances": instances}


def both(theirs: Any, ours: Any, outputs: list[dict[str, Any]], task: str) -> tuple[dict[str, float], dict[str, float]]:
    results = []
    for evaluator in (theirs, ours):
        evaluator.reset()
        for record, output in zip(DatasetCatalog.get("d2_set"), outputs, strict=True):
            evaluator.process([record], [output])
        results.append(evaluator.evaluate()[task])
    return results[0], results[1]


def assert_equal(theirs: dict[str, float], ours: dict[str, float]) -> None:
    """In all metrics that both have."""
    common = theirs.keys() & ours.keys()
    assert len(common) >= 6
    for name in common:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6, nan_ok=True), name


def test_panoptic_quality(outputs: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("panopticapi")
    from detectron2.evaluation import COCOPanopticEvaluator as Theirs

    ours = COCOPanopticEvaluator("d2_set", output_dir=str(tmp_path / "ours"), distributed=False)
    theirs, results = both(Theirs("d2_set", str(tmp_path / "theirs")), ours, outputs, "panoptic_seg")
    assert all("isthing" not in segment for output in outputs for segment in output["panoptic_seg"][1])  # rewritten
    assert_equal(theirs, results)
    assert 20 < results["PQ"] < 90


def test_average_precision(outputs: list[dict[str, Any]], tmp_path: Path) -> None:
    from detectron2.evaluation import COCOEvaluator as Theirs

    evaluator = Theirs("d2_set", tasks=("segm",), distributed=False, output_dir=str(tmp_path), use_fast_impl=False)
    ours = InstanceSegEvaluator("d2_set", output_dir=str(tmp_path / "ours"), distributed=False)
    theirs, results = both(evaluator, ours, outputs, "segm")
    assert_equal(theirs, results)
    assert 20 < results["AP"] < 90


def test_mean_iou(outputs: list[dict[str, Any]], tmp_path: Path) -> None:
    from detectron2.evaluation import SemSegEvaluator as Theirs

    evaluator = Theirs("d2_set", distributed=False, output_dir=str(tmp_path))
    ours = SemSegEvaluator("d2_set", distributed=False, output_dir=str(tmp_path / "ours"))
    theirs, results = both(evaluator, ours, outputs, "sem_seg")
    assert_equal(theirs, results)
    assert 20 < results["mIoU"] < 90
