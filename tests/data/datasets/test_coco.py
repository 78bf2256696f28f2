import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.structures import BoxMode
from mask2former.data.datasets import dataset_metadata, register_coco_instances, register_coco_panoptic
from mask2former.data.datasets.coco import instance_dicts, register_coco
from mask2former.data.datasets.coco_json import instances_by_image, read_annotations
from mask2former.data.datasets.shapes import CATEGORIES, THING_IDS
from mask2former.data.images import DataError
from mask2former.evaluation.ground_truth import InstanceGroundTruth


@pytest.fixture
def name() -> Iterator[str]:
    yield "test_own"
    DatasetCatalog.pop("test_own", None)
    MetadataCatalog.pop("test_own", None)


def register(name: str, root: Path, **options: Any) -> None:
    register_coco_panoptic(
        name,
        image_root=root / "train2017",
        panoptic_root=root / "panoptic_train2017",
        panoptic_json=root / "annotations" / "panoptic_train2017.json",
        **options,
    )


def test_dicts_hold_what_the_json_says(panoptic_set) -> None:
    content = json.loads(panoptic_set.json.read_text())
    records = DatasetCatalog.get(panoptic_set.name)
    assert len(records) == len(content["images"])
    contiguous = {category["id"]: index for index, category in enumerate(CATEGORIES)}
    for record, image, annotation in zip(records, content["images"], content["annotations"], strict=True):
        assert record["image_id"] == image["id"]
        assert (record["height"], record["width"]) == (image["height"], image["width"])
        assert Path(record["file_name"]).is_file()
        assert Path(record["pan_seg_file_name"]).is_file()
        assert "sem_seg_file_name" not in record
        for segment, source in zip(record["segments_info"], annotation["segments_info"], strict=True):
            assert segment["category_id"] == contiguous[source["category_id"]]
            assert segment["isthing"] is (source["category_id"] in THING_IDS.values())
            assert {key: segment[key] for key in ("id", "area", "bbox", "iscrowd")} == {
                key: source[key] for key in ("id", "area", "bbox", "iscrowd")
            }


def test_metadata_stands_at_registration(panoptic_set) -> None:
    metadata = MetadataCatalog.get(panoptic_set.name)
    assert metadata.panoptic_json == str(panoptic_set.json)
    assert metadata.image_root == str(panoptic_set.root / "train2017")
    assert metadata.panoptic_root == str(panoptic_set.root / "panoptic_train2017")
    assert metadata.json_file == str(panoptic_set.root / "annotations" / "instances_train2017.json")
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.label_divisor) == ("coco_panoptic_seg", 255, 1000)
    assert metadata.thing_dataset_id_to_contiguous_id == {number: number - 1 for number in THING_IDS.values()}
    assert metadata.stuff_dataset_id_to_contiguous_id == {number: number - 1 for number in range(1, 9)}


def test_categories_come_from_the_file_when_not_given(panoptic_set, name: str) -> None:
    panoptic_set.edit(lambda content: content["categories"].reverse())
    register(name, panoptic_set.root, evaluator_type="mine", note="x")
    assert MetadataCatalog.get(name).get("thing_classes") is None
    metadata = dataset_metadata(name)
    assert metadata.stuff_classes == [category["name"] for category in CATEGORIES]
    assert metadata.thing_classes == list(THING_IDS)
    assert metadata.evaluator_type == "mine"
    assert metadata.note == "x"
    assert DatasetCatalog.get(name) == DatasetCatalog.get(panoptic_set.name)


def test_semantic_labels_are_named_where_they_are(panoptic_set, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = panoptic_set.root / "semseg"
    register(name, panoptic_set.root, sem_seg_root=folder)
    assert MetadataCatalog.get(name).sem_seg_root == str(folder)
    assert "sem_seg_file_name" not in DatasetCatalog.get(name)[0]
    assert "semseg is absent" in caplog.text
    folder.mkdir()
    assert DatasetCatalog.get(name)[0]["sem_seg_file_name"] == str(folder / panoptic_set.pngs[0].name)


@pytest.mark.parametrize("part", ["train2017", "panoptic_train2017", "annotations"])
def test_missing_folder_is_named_at_use_only(panoptic_set, name: str, part: str) -> None:
    (panoptic_set.root / part).rename(panoptic_set.root / "elsewhere")
    register(name, panoptic_set.root, missing_hint="ask Ada")
    with pytest.raises(FileNotFoundError, match=rf"{panoptic_set.root / part}.*ask Ada"):
        DatasetCatalog.get(name)


def test_taken_name(panoptic_set) -> None:
    with pytest.raises(AssertionError, match="already registered"):
        register(panoptic_set.name, panoptic_set.root)


def first_segments(content: dict) -> list[dict]:
    return content["annotations"][0]["segments_info"]


BROKEN: dict[str, tuple[Callable[[dict], Any], str]] = {
    "unknown category": (
        lambda c: first_segments(c)[0].update(category_id=77),
        r"image 1 \(000000000001\.png\): segment \d+: unknown category id 77; known are 1, 2",
    ),
    "segment twice": (
        lambda c: first_segments(c).append(first_segments(c)[0]),
        r"image 1 .*: segment \d+: segment ids must be unique",
    ),
    "segment zero": (lambda c: first_segments(c)[0].update(id=0), r"image 1 .*: segment 0: .* within 1\.\."),
    "image twice": (lambda c: c["images"].append(c["images"][2]), "images listed more than once: 3"),
    "annotation twice": (lambda c: c["annotations"].append(c["annotations"][2]), "annotated more than once: 3"),
    "no annotation": (lambda c: c["annotations"].pop(4), "listed under images but not annotated: 5"),
    "no image": (lambda c: c["images"].pop(4), "annotated but not listed under images: 5"),
    "no images key": (lambda c: c.pop("images"), "lacks images"),
    "no categories": (lambda c: c["categories"].clear(), "categories is empty"),
    "categories of texts": (lambda c: c.update(categories=["a"]), "categories is no list of records"),
    "category id of lists": (lambda c: c["categories"][0].update(id=[1]), "an id that is no number"),
    "images in a dict": (lambda c: c.update(images={"1": 1}), "images is no list of records"),
    "annotations of numbers": (lambda c: c.update(annotations=[3]), "annotations is no list of records"),
    "image without id": (lambda c: c["images"][2].pop("id"), "image number 3 of the list: lacks id"),
    "image without height": (lambda c: c["images"][2].pop("height"), "image 3: lacks height"),
    "image of no height": (lambda c: c["images"][2].update(height=0), "image 3: height and width are 0 and"),
    "height as text": (lambda c: c["images"][2].update(height="9"), "image 3: height and width are 9 and"),
    "huge image": (lambda c: c["images"][2].update(height=10**5, width=10**5), "image 3: 100000x100000 pixels, more"),
    "file name of a number": (lambda c: c["images"][2].update(file_name=3), "image 3: file_name is a int"),
    "id of a list": (lambda c: c["images"][2].update(id=[1]), "image a list: an id that is a list"),
    "ids of two types": (lambda c: c["images"][2].update(id="3"), "some image ids are numbers and some are texts"),
    "annotation without image": (lambda c: c["annotations"][2].pop("image_id"), "number 3 of the list: lacks image_id"),
    "annotation without file": (lambda c: c["annotations"][2].pop("file_name"), "annotation of image 3: lacks file_n"),
    "segments in a dict": (lambda c: c["annotations"][2].update(segments_info={}), "of image 3: .* segments_info no l"),
    "segment of a number": (lambda c: first_segments(c).append(3), "image 1 .*: segment number"),
    "segment without id": (lambda c: first_segments(c)[0].pop("id"), "image 1 .*: segment number 1 .*: lacks id"),
    "segment 1.5": (lambda c: first_segments(c)[0].update(id=1.5), "image 1 .*: segment 1.5: segment ids must"),
    "category of a list": (lambda c: first_segments(c)[0].update(category_id=[1]), "image 1 .*: an id that is a list"),
    "area of a text": (
        lambda c: first_segments(c)[0].update(area="9"),
        r"image 1 .*: segment \d+: unsupported",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contradictions_name_file_image_and_id(panoptic_set, name: str, case: str) -> None:
    change, message = BROKEN[case]
    panoptic_set.edit(change)
    register(name, panoptic_set.root)
    with pytest.raises(DataError, match=rf"{panoptic_set.json}: .*{message}"):
        DatasetCatalog.get(name)


def test_invalid_json(panoptic_set, name: str) -> None:
    panoptic_set.json.write_text("{")
    register(name, panoptic_set.root)
    with pytest.raises(DataError, match=rf"{panoptic_set.json}: not valid JSON"):
        DatasetCatalog.get(name)


# --- instances ----------------------------------------------------------------


MASK = np.zeros((6, 8), dtype=np.uint8)
MASK[1:3, 2:6] = 1


def write_instances(root: Path) -> Path:
    counts = mask_api.encode(np.asfortranarray(MASK))["counts"].decode()
    size = {"height": 6, "width": 8}

    def annotation(number: int, category: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
        record = {"id": number, "image_id": "b", "category_id": category, "segmentation": segmentation}
        return {**record, "bbox": [2, 1, 4, 2], "iscrowd": iscrowd}

    content = {
        "images": [{"id": "b", "file_name": "b.jpg", **size}, {"id": "a", "file_name": "a.jpg", **size}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            annotation(1, 9, {"size": [6, 8], "counts": counts}),
            annotation(2, 4, [[0, 0, 2, 0, 2, 2], [0, 0, 1, 1]]),
            annotation(3, 4, {"size": [6, 8], "counts": [12, 4, 32]}, iscrowd=1),
        ],
    }
    path = root / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_instance_dicts(tmp_path: Path, name: str) -> None:
    register_coco_instances(name, image_root=tmp_path, json_file=write_instances(tmp_path))
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    assert (metadata.evaluator_type, metadata.image_root) == ("coco", str(tmp_path))
    assert [record["image_id"] for record in records] == ["a", "b"]
    assert records[0]["annotations"] == []
    dog, cat, crowd = records[1]["annotations"]
    assert np.array_equal(mask_api.decode(dog["segmentation"]), MASK)
    assert (dog["category_id"], dog["iscrowd"], dog["bbox_mode"]) == (1, 0, BoxMode.XYWH_ABS)
    assert cat["segmentation"] == [[0, 0, 2, 0, 2, 2]]
    assert crowd["iscrowd"] == 1
    assert mask_api.area(crowd["segmentation"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segmentation": [[math.nan, 0, 2, 0, 2, 2]]},
            "annotation 1 of image b: a polygon with coordinates that",
        ),
        (
            {"segmentation": [[0, 0, 2, 0, 2, math.nan]]},
            "annotation 1 of image b: a polygon with coordinates that",
        ),
        (
            {"segmentation": [[0, 0, 2, 0, 2, math.inf]]},
            "annotation 1 of image b: a polygon with coordinates that",
        ),
        ({"segmentation": [[1e8, 0, 2, 0, 2, 2]]}, "annotation 1 of image b: .* beyond ±800 pixels"),
        ({"segmentation": [[0, -(10**400), 2, 0, 2, 2]]}, "annotation 1 of image b: .* beyond ±800 pixels"),
        ({"segmentation": [[0, 0, 2, 0, 2, 2, 1]]}, "annotation 1 of image b: a polygon of 7 numbers"),
        ({"segmentation": [["0", 0, 2, 0, 2, 2]]}, "annotation 1 of image b: unsupported operand"),
        ({"segmentation": [[None, 0, 2, 0, 2, 2]]}, "annotation 1 of image b: unsupported operand"),
        ({"segmentation": [0, 0, 2, 0, 2, 2]}, "annotation 1 of image b: object of type 'int' has no len"),
        ({"segmentation": "polygon"}, "annotation 1 of image b: no mask"),
        ({"segmentation": ["polygon"]}, "annotation 1 of image b: a polygon that is a str"),
        ({"segmentation": {"size": [3, 3], "counts": [1, 8]}}, r"annotation 1 of image b: .* of size \[3, 3\] in an"),
        ({"segmentation": {"size": [1 << 33, 8], "counts": [0]}}, r"annotation 1 of image b: .* of size \[8589934592"),
        ({"segmentation": {"size": [10**5, 10**5], "counts": "0"}}, "annotation 1 of image b: .* of size"),
        ({"segmentation": {"size": 8, "counts": "0"}}, "annotation 1 of image b: 'int' object is not iterable"),
        ({"segmentation": {"size": [6, 8], "counts": [1, 8000]}}, "annotation 1 of image b: .* do not add up"),
        ({"segmentation": {"size": [6, 8], "counts": [-1, 49]}}, "annotation 1 of image b: .* do not add up"),
        ({"segmentation": {"size": [6, 8], "counts": [1.5, 46.5]}}, "annotation 1 of image b: .* do not add up"),
        ({"segmentation": {"size": [6, 8], "counts": {}}}, "annotation 1 of image b: run lengths that are a dict"),
        ({"segmentation": {"size": [6, 8], "counts": ""}}, "annotation 1 of image b: .* do not add up"),
        ({"segmentation": {"size": [6, 8], "counts": "zzzzzzzzzzzz"}}, "annotation 1 of image b: .* do not add up"),
        ({"segmentation": {"size": [6, 8], "counts": "\u20ac"}}, "annotation 1 of image b: .* do not add up"),
        ({"segmentation": {"size": [6, 8], "counts": "0`"}}, "annotation 1 of image b: .* do not add up"),
        ({"bbox": None}, "annotation 1 of image b: object of type 'NoneType'"),
        ({"bbox": [1, 2, 3]}, "annotation 1 of image b: a bbox that is not four numbers"),
        ({"bbox": [1, 2, 3, math.nan]}, "annotation 1 of image b: a bbox that is not four numbers"),
        ({"iscrowd": "no"}, "annotation 1 of image b: iscrowd is no, neither 0 nor 1"),
        ({"id": 1.5}, "annotation 1.5 of image b: an id that is 1.5"),
        ({"image_id": ["b"]}, "annotation 1 of image a list: unhashable"),
        ({"category_id": {}}, "annotation 1 of image b: an id that is a dict"),
        ({"image_id": "z"}, "annotation 1 of image z: no such image"),
        ({"category_id": 5}, "annotation 1 of image b: unknown category id 5"),
        ({"segmentation": []}, "annotation 1 of image b: no mask"),
        ({"id": 2}, "annotation ids given twice: 2"),
    ],
)
def test_broken_instances_name_file_and_annotation(tmp_path: Path, name: str, change: dict, message: str) -> None:
    path = write_instances(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0].update(change)
    path.write_text(json.dumps(content))
    register_coco_instances(name, image_root=tmp_path, json_file=path)
    with pytest.raises(DataError, match=rf"{path}: {message}"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "segmentation"])
def test_instances_that_lack_a_part_are_named(tmp_path: Path, key: str) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    del content["annotations"][1][key]
    with pytest.raises(DataError, match=r"x\.json: annotation (2|of image b|2 of image b): (lacks|no mask)"):
        instances_by_image(content, "x.json")


@pytest.mark.parametrize("text", ["{", "[" * 200_000, "\xff", "[]", "3", '{"images": 1e999}'])
def test_what_is_no_file_of_annotations(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"x\.json: (not valid JSON|lacks )"):
        read_annotations(str(tmp_path / "x.json"))


def test_evaluators_read_the_same_checked_annotations(tmp_path: Path) -> None:
    path = write_instances(tmp_path)
    truth = InstanceGroundTruth(json_file=str(path), class_of={9: 0, 4: 1})
    assert [item.area for item in truth.instances("b")] == [8, 1, 4], "of the masks, as the file does not say"
    path.write_text(path.read_text().replace("[0, 0, 2, 0, 2, 2]", "[NaN, 0, 2, 0, 2, 2]"))
    with pytest.raises(DataError, match=r"instances\.json: annotation 2 of image b: a polygon with coordinates"):
        InstanceGroundTruth(json_file=str(path), class_of={9: 0, 4: 1})


def test_instance_file_with_bad_categories(tmp_path: Path, name: str) -> None:
    path = write_instances(tmp_path)
    content = json.loads(path.read_text())
    register_coco_instances(name, image_root=tmp_path, json_file=path)
    content["categories"][0]["id"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{path}: category id 4 is given to both 'dog' and 'cat'"):
        DatasetCatalog.get(name)
    del content["categories"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{path}: lacks categories"):
        DatasetCatalog.get(name)


# --- built-in names -----------------------------------------------------------


def test_builtin_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        f"coco_2017_{split}{kind}" for split in ("train", "val") for kind in ("", "_panoptic", "_panoptic_with_sem_seg")
    ]
    assert set(names) <= set(DatasetCatalog.list())
    kept = MetadataCatalog.get("coco_2017_val_panoptic").panoptic_json
    register_coco(tmp_path)  # names in use, as with Detectron2 installed, stay as they are
    assert MetadataCatalog.get("coco_2017_val_panoptic").panoptic_json == kept

    saved = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names}
    try:
        register_coco(tmp_path)
        metadata = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
        folder = tmp_path / "coco"
        assert metadata.panoptic_json == str(folder / "annotations/panoptic_val2017.json")
        assert metadata.panoptic_root == str(folder / "panoptic_val2017")
        assert metadata.sem_seg_root == str(folder / "panoptic_semseg_val2017")
        assert metadata.json_file == str(folder / "annotations/instances_val2017.json")
        assert len(MetadataCatalog.get("coco_2017_train").thing_classes) == 80
        with pytest.raises(FileNotFoundError, match=r"panoptic_val2017\.json; set DETECTRON2_DATASETS"):
            DatasetCatalog.get("coco_2017_val_panoptic")
    finally:
        for name, (function, metadata) in saved.items():
            DatasetCatalog[name], MetadataCatalog[name] = function, metadata


def test_a_missing_box_is_that_of_the_mask(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[4:9, 7:19] = 1
    shapes = [mask_api.encode(mask), [[2, 3, 12, 3, 12, 8], [20, 5, 22, 5, 22, 15]]]
    annotations = [{"id": i, "image_id": 1, "category_id": 1, "segmentation": shape} for i, shape in enumerate(shapes)]
    annotations[1]["bbox"] = []  # as some tools write where there is none
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}], "annotations": annotations}
    (record,) = instance_dicts(content, "x.json", image_root=tmp_path, contiguous_ids={1: 0})
    assert [item["bbox"] for item in record["annotations"]] == [[7, 4, 12, 5], [2, 3, 20, 12]]
