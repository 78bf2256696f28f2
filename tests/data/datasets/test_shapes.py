import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.shapes import (
    CATEGORIES,
    MIN_STUFF_AREA,
    MIN_THING_AREA,
    THING_IDS,
    draw_scene,
    shape_distance,
    write_split,
)
from mask2former.data.images import read_panoptic_png

SCRIPT = Path(__file__).parents[3] / "datasets" / "make_shapes.py"


def run_script(monkeypatch: pytest.MonkeyPatch, root: Path, *arguments: str) -> None:
    fixed = ["--root", str(root), "--workers", "1", "--size", "48", "64"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *fixed, *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("index", range(10))
def test_scene_keeps_its_rules(index: int) -> None:
    scene = draw_scene("train", index, (96, 120))
    assert scene.image.dtype == np.uint8
    assert scene.image.shape[:2] == scene.ids.shape
    assert 84 <= scene.ids.shape[0] <= 108
    assert 105 <= scene.ids.shape[1] <= 135
    assert set(np.unique(scene.ids)) - {0} == {segment["id"] for segment in scene.segments}
    for segment in scene.segments:
        mask = scene.ids == segment["id"]
        isthing = segment["category_id"] in THING_IDS.values()
        assert segment["area"] == mask.sum() >= (MIN_THING_AREA if isthing else MIN_STUFF_AREA)
        x, y, width, height = segment["bbox"]
        assert mask[y : y + height, x : x + width].sum() == segment["area"]
        assert mask[y].any()
        assert mask[y + height - 1].any()
        assert mask[:, x].any()
        assert mask[:, x + width - 1].any()
    stuff = [s["category_id"] for s in scene.segments if s["category_id"] not in THING_IDS.values()]
    assert len(stuff) == len(set(stuff))


def test_scenes_repeat_and_differ() -> None:
    first = draw_scene("train", 3)
    assert np.array_equal(first.image, draw_scene("train", 3).image)
    for other in (draw_scene("val", 3), draw_scene("train", 4)):
        assert other.image.shape != first.image.shape or not np.array_equal(other.image, first.image)


def test_every_class_occurs() -> None:
    scenes = [draw_scene("val", index) for index in range(40)]
    found = {segment["category_id"] for scene in scenes for segment in scene.segments}
    assert found == {category["id"] for category in CATEGORIES}


@pytest.mark.parametrize("kind", sorted(THING_IDS))
def test_outline_is_closed_within_reach(kind: str) -> None:
    axis = np.linspace(-1.5, 1.5, 61)
    distance = shape_distance(kind, *np.meshgrid(axis, axis))
    assert (distance < 0).any()
    for border in (distance[0], distance[-1], distance[:, 0], distance[:, -1]):
        assert (border > 0).all()
    with pytest.raises(ValueError, match="no shape is called 'egg'"):
        shape_distance("egg", axis, axis)


def test_split_has_cocos_layout(drawn: Path) -> None:
    panoptic = json.loads((drawn / "annotations/panoptic_train2017.json").read_text())
    instances = json.loads((drawn / "annotations/instances_train2017.json").read_text())
    assert panoptic["images"] == instances["images"]
    assert [category["name"] for category in instances["categories"]] == list(THING_IDS)
    by_image = {image["id"]: image for image in panoptic["images"]}
    things = {}
    for annotation in panoptic["annotations"]:
        image = by_image[annotation["image_id"]]
        ids = read_panoptic_png(drawn / "panoptic_train2017" / annotation["file_name"])
        with Image.open(drawn / "train2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == ids.shape[::-1]
        for segment in annotation["segments_info"]:
            if segment["category_id"] in THING_IDS.values():
                things[image["id"], segment["category_id"], tuple(segment["bbox"])] = ids == segment["id"]
    assert len(instances["annotations"]) == len(things)
    assert len({annotation["id"] for annotation in instances["annotations"]}) == len(things)
    for annotation in instances["annotations"]:
        mask = things[annotation["image_id"], annotation["category_id"], tuple(annotation["bbox"])]
        assert np.array_equal(mask_api.decode(annotation["segmentation"]), mask)


def test_workers_do_not_change_a_byte(drawn: Path, tmp_path: Path) -> None:
    assert list(write_split(tmp_path, "train", 12, size=(64, 80), workers=2)) == list(range(1, 13))
    assert contents(tmp_path) == contents(drawn)


def test_both_splits_are_registered() -> None:
    assert {"shapes_train", "shapes_val"} <= set(DatasetCatalog.list())
    metadata = MetadataCatalog.get("shapes_val")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.stuff_classes == [category["name"] for category in CATEGORIES]
    assert metadata.thing_classes == metadata.stuff_classes[:4]


def test_script_makes_resumes_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shapes"
    run_script(monkeypatch, root, "--train", "3", "--val", "2")
    before = contents(root)
    assert len(before) == 2 * (3 + 2) + 4
    names = [{path.name for path in (root / f"{split}2017").iterdir()} for split in ("train", "val")]
    assert not names[0] & names[1]

    (root / "train2017/000000000002.jpg").unlink()
    (root / "annotations/panoptic_val2017.json").unlink()
    run_script(monkeypatch, root, "--train", "3", "--val", "2")
    assert contents(root) == before
    assert "there already" not in capsys.readouterr().out
    run_script(monkeypatch, root, "--train", "3", "--val", "2")
    assert "the 3 images of train are there already" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="--overwrite"):
        run_script(monkeypatch, root, "--train", "4", "--val", "2")
    assert contents(root) == before
    run_script(monkeypatch, root, "--train", "4", "--val", "2", "--overwrite")
    assert len(contents(root)) == len(before) + 2


@pytest.mark.parametrize("arguments", [("--train", "0"), ("--workers", "0"), ("--size", "16", "64")])
def test_script_refuses_senseless_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit):
        run_script(monkeypatch, tmp_path / "shapes", *arguments)
    assert not (tmp_path / "shapes").exists()
