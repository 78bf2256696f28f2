"""Results: masks in every form, boxes, names, pictures and files."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from mask2former.d2.structures import Boxes, Instances
from mask2former.data.datasets.metadata import metadata_of
from mask2former.data.images import rgb_to_id
from mask2former.modeling.masks import PackedMasks
from mask2former.predict.result import Result

METADATA = metadata_of(
    [
        {"id": 7, "name": "boat", "isthing": 1, "color": [200, 30, 30]},
        {"id": 3, "name": "water", "isthing": 0, "color": [30, 30, 200]},
        {"id": 5, "name": "sky", "isthing": 0},
    ]
)
HEIGHT, WIDTH = 20, 30
IMAGE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MASKS = np.zeros((3, HEIGHT, WIDTH), dtype=bool)
MASKS[0, 4:9, 6:17] = True
MASKS[1, 8:, 10:] = True
MASKS[1, 12:14, 15:18] = False  # a hole; mask 2 is empty
BOXES = [[6, 4, 17, 9], [10, 8, 30, 20], [0, 0, 0, 0]]
AREAS = [55, 12 * 20 - 6, 0]


def instances(masks: object = None) -> Result:
    found = Instances(
        (HEIGHT, WIDTH),
        pred_masks=torch.from_numpy(MASKS) if masks is None else masks,
        pred_boxes=Boxes(torch.full((3, 4), 99.0)),  # no true ones
        scores=torch.tensor([0.9, 0.5, 0.25]),
        pred_classes=torch.tensor([0, 2, 9]),
    )
    return Result(IMAGE, {"instances": found}, METADATA, name="a.jpg")


def label_map() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    labels[MASKS[1]] = 5
    labels[MASKS[0]] = 2
    return labels


def panoptic() -> Result:
    segments = [
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.75},
        {"id": 5, "category_id": 1, "isthing": False},
    ]
    return Result(IMAGE, {"panoptic_seg": (torch.from_numpy(label_map()), segments)}, METADATA)


def semantic() -> Result:
    labels = torch.from_numpy(np.where(label_map() == 2, 2, 1))
    return Result(IMAGE, {"sem_seg": torch.stack([labels == 0, labels == 1, labels == 2]).float()}, METADATA)


@pytest.mark.parametrize("packed", [False, True])
def test_instances(packed: bool) -> None:
    result = instances(PackedMasks.pack(torch.from_numpy(MASKS)) if packed else None)
    assert (len(result), result.task, result.name, result.size) == (3, "instance", "a.jpg", (HEIGHT, WIDTH))
    assert result.names == ["boat", "sky", "9"]
    assert result.scores == pytest.approx([0.9, 0.5, 0.25])
    assert result.boxes.tolist() == BOXES
    assert result.areas.tolist() == AREAS
    np.testing.assert_array_equal(result.masks.dense(), MASKS)
    np.testing.assert_array_equal(result.masks.packed().tensor.numpy(), MASKS)
    np.testing.assert_array_equal(mask_util.decode(result.masks.rle()).transpose(2, 0, 1), MASKS)
    first, second, _ = result
    assert (first.name, first.category, first.box, first.area) == ("boat", 0, (6, 4, 17, 9), 55)
    assert second.score == 0.5
    np.testing.assert_array_equal(second.mask, MASKS[1])
    assert second.rle == result.masks.rle()[1]
    with pytest.raises(ValueError, match="instances overlap"):
        _ = result.label_map


def test_polygons_enclose_the_masks() -> None:
    first, second, empty = instances().masks.polygons()
    assert first[0].tolist() == [[6, 4], [6, 8], [16, 8], [16, 4]]
    canvas = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), second, 1)
    assert int(canvas.sum()) == AREAS[1] + 6  # with the hole
    assert empty == []
    slope = np.tril(np.ones((HEIGHT, HEIGHT), bool))
    slope[10, 11] = True
    rough = instances(torch.from_numpy(slope)[None].expand(3, -1, -1)).masks
    assert len(rough.polygons()[0][0]) > len(rough.polygons(tolerance=2.0)[0][0]) == 3


def test_panoptic_and_semantic_results() -> None:
    result = panoptic()
    assert (result.task, result.names, result.segment_ids) == ("panoptic", ["boat", "water"], [2, 5])
    np.testing.assert_array_equal(result.label_map, label_map())
    assert result.scores[0] == 0.75
    assert np.isnan(result.scores[1])
    assert result.boxes.tolist() == [[6, 4, 17, 9], [10, 8, 30, 20]]
    np.testing.assert_array_equal(result.masks[1], label_map() == 5)
    result = semantic()
    assert (result.task, result.names, result.segment_ids) == ("semantic", ["water", "sky"], [1, 2])
    assert result.areas.tolist() == [HEIGHT * WIDTH - 55, 55]
    assert np.isnan(result.scores).all()


def test_nothing_found() -> None:
    empty = Result(IMAGE, {"panoptic_seg": (torch.zeros(HEIGHT, WIDTH, dtype=torch.int32), [])}, METADATA)
    assert (len(empty), empty.names, list(empty), empty.to_coco(), empty.crops()) == (0, [], [], [], [])
    assert empty.boxes.shape == (0, 4)
    assert empty.masks.dense().shape == (0, HEIGHT, WIDTH)
    np.testing.assert_array_equal(empty.draw()[::32, ::32].shape, (14, 21, 3))
    with pytest.raises(ValueError, match="the model made sem_seg, which tells nothing for panoptic results"):
        semantic().as_task("panoptic")


def test_a_model_of_several_outputs() -> None:
    both = Result(IMAGE, {**instances().output, **panoptic().output}, METADATA)
    assert both.task == "panoptic"
    assert both.as_task("instance").names == ["boat", "sky", "9"]
    assert both["panoptic_seg"][1][0]["id"] == 2
    assert "sem_seg" not in both
    assert both.keys() == {"instances", "panoptic_seg"}


def test_coco() -> None:
    first, second, _ = json.loads(json.dumps(instances().to_coco(image_id=4, first_id=11)))
    assert (first["id"], first["image_id"], first["category_id"], first["iscrowd"]) == (11, 4, 7, 0)
    assert (first["bbox"], first["area"], first["score"]) == ([6, 4, 11, 5], 55, pytest.approx(0.9))
    np.testing.assert_array_equal(mask_util.decode(second["segmentation"]), MASKS[1])
    assert ["score" in annotation for annotation in panoptic().to_coco()] == [True, False]


def test_panoptic_png(tmp_path: Path) -> None:
    annotation = json.loads(json.dumps(panoptic().to_panoptic_png(tmp_path / "p.png", image_id=4)))
    np.testing.assert_array_equal(rgb_to_id(np.asarray(Image.open(tmp_path / "p.png"))), label_map())
    assert annotation == {
        "image_id": 4,
        "file_name": "p.png",
        "segments_info": [
            {"id": 2, "category_id": 7, "area": 55, "bbox": [6, 4, 11, 5], "iscrowd": 0, "score": 0.75},
            {"id": 5, "category_id": 3, "area": int((label_map() == 5).sum()), "bbox": [10, 8, 20, 12], "iscrowd": 0},
        ],
    }
    annotation = semantic().to_panoptic_png(tmp_path / "s.png")
    ids = rgb_to_id(np.asarray(Image.open(tmp_path / "s.png")))
    assert [int((ids == segment["id"]).sum()) for segment in annotation["segments_info"]] == [HEIGHT * WIDTH - 55, 55]
    with pytest.raises(ValueError, match="instances overlap"):
        instances().to_panoptic_png(tmp_path / "i.png")


def test_pictures(tmp_path: Path) -> None:
    drawn = instances().draw(tmp_path / "drawn.png")
    assert drawn.shape == (20 * 22, 30 * 22, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), drawn)
    assert not np.array_equal(drawn, panoptic().draw())
    assert not np.array_equal(drawn, instances().draw(label_size=0.05))
    instances().draw(tmp_path / "drawn.jpg")
    assert Image.open(tmp_path / "drawn.jpg").format == "JPEG"


def test_crops() -> None:
    first, second, empty = instances().crops()
    np.testing.assert_array_equal(first, IMAGE[4:9, 6:17])
    np.testing.assert_array_equal(second, IMAGE[8:, 10:])
    assert empty.size == 0
    np.testing.assert_array_equal(instances().crops(padding=5)[0], IMAGE[:14, 1:22])
    assert instances().crops(padding=5)[2].size == 0
    cut = instances().crops(cut_out=True)[1]
    np.testing.assert_array_equal(cut[..., 3], MASKS[1, 8:, 10:] * 255)


def test_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **given: given))
    given = instances().to_supervision()
    assert given["xyxy"].tolist() == BOXES
    np.testing.assert_array_equal(given["mask"], MASKS)
    assert given["confidence"] == pytest.approx([0.9, 0.5, 0.25])
    assert given["class_id"].tolist() == [0, 2, 9]
    assert given["data"]["class_name"].tolist() == ["boat", "sky", "9"]
    assert semantic().to_supervision()["confidence"] is None
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mask2former\[supervision\]'"):
        instances().to_supervision()
