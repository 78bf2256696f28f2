"""Data sets without labels: predictions in the form that benchmark servers take, and no scores."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from mask2former import register_coco_instances, register_coco_panoptic, register_images, register_semantic
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog
from mask2former.d2.structures import Instances
from mask2former.data.datasets.cityscapes import register_cityscapes
from mask2former.data.images import DataError
from mask2former.evaluation import SemSegEvaluator, build_evaluators
from mask2former.evaluation.output import prediction_name
from tests.helpers.catalog import registered_below

SIZE = (6, 8)
TEST = {"PANOPTIC_ON": True, "INSTANCE_ON": True, "SEMANTIC_ON": True, "BOUNDARY_ON": False}
CFG = CfgNode({"MODEL": {"MASK_FORMER": {"TEST": TEST}}, "TEST": {"PICTURES": 0, "REPORT": False}})
CATEGORIES = [{"id": 7, "name": "dog", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}]


@pytest.fixture(autouse=True)
def empty_catalog(tmp_path: Path) -> Iterator[None]:
    with registered_below(tmp_path):
        yield


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)


def image_info(folder: Path) -> Path:
    """As COCO's files of test sets: images and categories, no annotations."""
    write_image(folder / "images" / "000000000005.jpg")
    images = [{"id": 5, "file_name": "000000000005.jpg", "height": SIZE[0], "width": SIZE[1]}]
    (folder / "info.json").write_text(json.dumps({"images": images, "categories": CATEGORIES}))
    return folder / "info.json"


def predicted() -> dict[str, Any]:
    """An object of class 0 on the left half, and class 1 on the right one."""
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, :, :4] = True
    ids = torch.where(mask[0], 1, 2).int()
    segments = [
        {"id": 1, "isthing": True, "category_id": 0, "score": 1.0},
        {"id": 2, "isthing": False, "category_id": 1, "score": 1.0},
    ]
    instances = Instances(SIZE, pred_masks=mask, scores=torch.tensor([0.5]), pred_classes=torch.tensor([0]))
    return {"sem_seg": ids.to(torch.int16) - 1, "panoptic_seg": (ids, segments), "instances": instances}


def evaluate(name: str, output_dir: Path) -> Any:
    evaluators = build_evaluators(CFG, name, str(output_dir))
    evaluators.reset()
    for record in DatasetCatalog.get(name):
        evaluators.process([record], [predicted()])
    return evaluators.evaluate()


def read_png(path: Path) -> list[Any]:
    image = Image.open(path)
    return np.asarray(image.convert("L") if image.mode == "1" else image)[0].tolist()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


LEFT = np.arange(SIZE[1]) < 4


def test_coco_instances(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    register_coco_instances("test_dev", image_root=tmp_path / "images", json_file=image_info(tmp_path))
    (record,) = DatasetCatalog.get("test_dev")
    assert record.keys() == {"file_name", "height", "image_id", "width"}
    with caplog.at_level(logging.INFO):
        assert evaluate("test_dev", tmp_path / "out") == {}
    assert "test_dev has no labels" in caplog.text
    (result,) = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert (result["image_id"], result["category_id"], result["score"]) == (5, 7, 0.5)
    assert (mask_util.decode(result["segmentation"]).astype(bool) == LEFT).all()


def test_coco_panoptic(tmp_path: Path) -> None:
    register_coco_panoptic(
        "test_panoptic", image_root=tmp_path / "images", panoptic_root=None, panoptic_json=image_info(tmp_path)
    )
    assert evaluate("test_panoptic", tmp_path / "out") == {}
    content = json.loads((tmp_path / "out" / "panoptic_predictions.json").read_text())
    segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 90}]
    annotation = {"image_id": 5, "file_name": "000000000005.png", "segments_info": segments}
    assert content == {"annotations": [annotation]}
    pixels = read_png(tmp_path / "out" / "panoptic_predictions" / "000000000005.png")
    assert pixels == [[1, 0, 0]] * 4 + [[2, 0, 0]] * 4
    assert read_png(tmp_path / "out" / "semantic_predictions" / "000000000005.png") == [0] * 4 + [1] * 4
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


def test_cityscapes(tmp_path: Path) -> None:
    frame = "berlin_000000_000019"
    write_image(tmp_path / "cityscapes" / "leftImg8bit" / "test" / "berlin" / f"{frame}_leftImg8bit.png")
    register_cityscapes(tmp_path)
    for kind in ("sem", "instance"):
        assert evaluate(f"cityscapes_fine_{kind}_seg_test", tmp_path / kind) == {}
    # classes 0 and 1 are road and sidewalk
    assert read_png(tmp_path / "sem" / "semantic_predictions" / f"{frame}_pred.png") == [7] * 4 + [8] * 4
    folder = tmp_path / "instance" / "instance_predictions"
    assert (folder / f"{frame}_pred.txt").read_text() == f"{frame}_0.png 24 0.5\n"  # the first object is a person
    assert read_png(folder / f"{frame}_0.png") == [255] * 4 + [0] * 4


def test_a_folder_of_images(tmp_path: Path) -> None:
    image_info(tmp_path)
    register_coco_panoptic(
        "trained_on", image_root=tmp_path / "images", panoptic_root=None, panoptic_json=tmp_path / "info.json"
    )
    write_image(tmp_path / "photos" / "day one" / "a.jpg")
    write_image(tmp_path / "photos" / "b.png")
    register_images("photos", image_root=tmp_path / "photos", like="trained_on")
    assert evaluate("photos", tmp_path / "out") == {}
    names = ["b.png", "day one/a.png"]
    assert files(tmp_path / "out") == [
        "coco_instances_results.json",
        "panoptic_predictions.json",
        *(f"panoptic_predictions/{name}" for name in names),
        *(f"semantic_predictions/{name}" for name in names),
    ]
    results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [(result["image_id"], result["category_id"]) for result in results] == [("b", 7), ("day one/a", 7)]
    with pytest.raises(DataError, match="like='typo' is no registered data set"):
        register_images("others", image_root=tmp_path, like="typo")


def test_semantic_predictions_are_written(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    for name, labels, classes in (("without", None, 2), ("many", None, 300)):
        names = [f"c{i}" for i in range(classes)]
        register_semantic(name, image_root=tmp_path / "images", label_root=labels, classes=names, ignore_label=65535)
        assert evaluate(name, tmp_path / name) == {}
        image = Image.open(tmp_path / name / "semantic_predictions" / "a.png")
        assert image.mode.startswith("I;16") is (classes > 256)
        assert np.asarray(image)[0].tolist() == [0] * 4 + [1] * 4
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "labels" / "a.png")
    register_semantic("with", image_root=tmp_path / "images", label_root=tmp_path / "labels", classes=["a", "b"])
    assert evaluate("with", tmp_path / "with")["sem_seg"]["pACC"] == 50
    assert read_png(tmp_path / "with" / "semantic_predictions" / "a.png") == [0] * 4 + [1] * 4


def test_nowhere_to_write_is_an_error(tmp_path: Path) -> None:
    register_coco_instances("test_dev", image_root=tmp_path / "images", json_file=image_info(tmp_path))
    with pytest.raises(ValueError, match="'test_dev' has no labels to score, and no output_dir"):
        build_evaluators(CFG, "test_dev")


def test_images_without_prediction_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    register_coco_instances("test_dev", image_root=tmp_path / "images", json_file=image_info(tmp_path))
    evaluators = build_evaluators(CFG, "test_dev", str(tmp_path / "out"))
    evaluators.reset()
    evaluators.evaluate()
    assert "test_dev: no prediction for 1 of 1 images" in caplog.text


@pytest.mark.parametrize("image_id", ["../a", "/a", "C:\\a"])
def test_predictions_stay_in_their_folder(image_id: str) -> None:
    assert prediction_name({"image_id": image_id, "file_name": "/images/b.c.jpg"}) == "b.c"
    assert prediction_name({"image_id": "x/y", "file_name": "/images/b.jpg"}) == "x/y"


def test_each_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_dataset: Callable[..., str]) -> None:
    """`distributed=False`: nothing is gathered, and every process reports."""

    def fail(value: Any) -> None:
        raise AssertionError("gathered")

    for name in ("gather", "all_gather"):
        monkeypatch.setattr(comm, name, fail)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    ids = np.ones(SIZE, dtype=np.int32)
    evaluator = SemSegEvaluator(
        make_dataset({3: (ids, [{"id": 1, "category_id": 7, "iscrowd": 0}])}), distributed=False, output_dir=None
    )
    labels = torch.from_numpy(ids)  # class 1, the dog, as category 7 is
    evaluator.process([{"image_id": 3}], [{"sem_seg": labels}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["mIoU"] == 100
