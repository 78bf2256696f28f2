from pathlib import Path

import numpy as np
import pytest
import yaml

from mask2former.config import get_cfg
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.images import DataError, id_to_rgb
from mask2former.data.labels import read_labels, read_segments
from mask2former.data.layouts import DataDescription, describe, register_descriptions
from mask2former.data.layouts.splits import fraction, split_of
from mask2former.data.loader import load_datasets
from mask2former.data.mappers import build_mapper
from tests.data.layouts.test_coco import annotation, image_entry, write, write_two
from tests.helpers.pictures import SIZE, picture, save

LABELS = np.repeat(np.array([[0, 1, 2, 3]], np.uint8), 6, axis=0)


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Label maps of four classes."""
    for split in ("train", "val"):
        picture(tmp_path / "fields" / "images" / split / "a.jpg", (6, 4))
        save(tmp_path / "fields" / "labels" / split / "a.png", LABELS)
    return tmp_path / "fields"


def edited(folder: Path, path: Path, **entries: object) -> DataDescription:
    """The description of a folder after a user's edits in its file."""
    describe(folder).to_yaml(path)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **entries}))
    return DataDescription.from_yaml(path)


def test_a_written_description_is_read_as_it_was(fields: Path, tmp_path: Path) -> None:
    description = describe(fields)
    description.to_yaml(tmp_path / "data.yaml")
    assert DataDescription.from_yaml(tmp_path / "data.yaml") == description
    assert describe(tmp_path / "data.yaml") == description
    assert describe(tmp_path / "data.yaml", "semantic") == description
    with pytest.raises(DataError, match="for task semantic, not instance"):
        describe(tmp_path / "data.yaml", "instance")


def test_root_may_be_relative_to_the_file(fields: Path) -> None:
    description = edited(fields, fields / "data.yaml", root=".")
    assert description.load("train") == describe(fields / "data.yaml").load("train")


def test_classes_are_left_out_merged_and_renamed(fields: Path, tmp_path: Path) -> None:
    description = edited(fields, tmp_path / "d.yaml", classes={"plant": ["class_3", "class_1"], "soil": "class_0"})
    np.testing.assert_array_equal(read_labels(description.load("val")[0])[0], [1, 0, 255, 0])
    assert description.metadata()["stuff_classes"] == ["plant", "soil"]
    assert "left out classes: class_2" in description.table()
    assert "class_3 (3), class_1 (1)" in description.table()
    subset = edited(fields, tmp_path / "d.yaml", classes=["class_2"])
    np.testing.assert_array_equal(read_labels(subset.load("val")[0])[0], [255, 255, 0, 255])


def test_classes_of_instances(tmp_path: Path) -> None:
    write_two(tmp_path / "boats")
    description = edited(tmp_path / "boats", tmp_path / "d.yaml", classes=["buoy"])
    assert [[a["category_id"] for a in r["annotations"]] for r in description.load("train")] == [[0], []]
    assert [[a["category_id"] for a in r["annotations"]] for r in description.load("val")] == [[]]
    merged = edited(tmp_path / "boats", tmp_path / "d.yaml", classes={"afloat": ["buoy", "boat"]})
    assert [a["category_id"] for a in merged.load("val")[0]["annotations"]] == [0]
    assert merged.metadata()["thing_classes"] == ["afloat"]


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """Panoptic: two bushes (things, of two categories) on a lawn."""
    categories = [{"id": 2, "name": "lawn", "isthing": 0}, {"id": 5, "name": "bush", "isthing": 1},
                  {"id": 6, "name": "tree", "isthing": 1}]  # fmt: skip
    for split in ("train", "val"):
        ids = np.full(SIZE, 1)
        ids[1:3, 1:3], ids[4:, 5:] = 2, 3
        save(tmp_path / "garden" / f"panoptic_{split}" / "1.png", id_to_rgb(ids))
        segments = [{"id": number, "category_id": c, "iscrowd": 0} for number, c in ((1, 2), (2, 5), (3, 6))]
        content = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
        write(tmp_path / "garden" / f"panoptic_{split}.json", [image_entry(1)], content, categories,
              tmp_path / "garden" / split)  # fmt: skip
    return tmp_path / "garden"


def test_classes_of_segments(garden: Path, tmp_path: Path) -> None:
    description = edited(garden, tmp_path / "d.yaml", classes={"grass": "lawn", "wood": "tree"})
    (record,) = description.load("train")
    assert [(s["id"], s["category_id"]) for s in record["segments_info"]] == [(1, 0), (3, 1)]
    ids = read_segments(record)
    assert set(np.unique(ids)) == {0, 1, 3}
    assert (ids == 0).sum() == 4  # the bush became void
    with pytest.raises(DataError, match="'all' is made of things and stuff"):
        edited(garden, tmp_path / "d.yaml", classes={"all": ["lawn", "tree"]}).metadata()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"clases": ["a"]}, "unknown entry 'clases' .did you mean classes"),
        ({"classes": ["class_1", "class_9"]}, "'class_9' stands for 'class_9', which is no class in the files"),
        ({"classes": {"a": "class_1", "b": ["class_1"]}}, "'class_1' belongs to both 'a' and 'b'"),
        ({"classes": {"a": []}}, "'a' stands for no name"),
        ({"layout": "mask"}, "no layout 'mask' .did you mean masks"),
        ({"task": "panoptic"}, "task 'panoptic'; images and label maps is for semantic"),
        ({"splits": {"training": {}}}, "splits: unknown entry 'training' .did you mean train"),
        ({"splits": {"train": {"image": "a"}}}, "unknown entry 'image'"),
        ({"categories": []}, "categories is no list"),
    ],
)
def test_mistakes_in_a_description(fields: Path, tmp_path: Path, entries: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf"d\.yaml.*{message}"):
        edited(fields, tmp_path / "d.yaml", **entries)


# --- registering ---------------------------------------------------------------


def test_register_reads_nothing_and_fills_the_catalogs(fields: Path, tmp_path: Path) -> None:
    description = describe(fields)
    (fields / "images").rename(fields / "away")
    names = description.register()
    assert names == {"train": ("fields_train",), "val": ("fields_val",)}
    metadata = MetadataCatalog.get("fields_val")
    assert (metadata.evaluator_type, metadata.ignore_label, len(metadata.stuff_colors)) == ("sem_seg", 255, 4)
    (fields / "away").rename(fields / "images")
    assert DatasetCatalog.get("fields_val") == description.load("val")
    assert description.register("other") == {"train": ("other_train",), "val": ("other_val",)}


def test_registering_anew_replaces(fields: Path, tmp_path: Path) -> None:
    describe(fields).register()
    edited(fields, tmp_path / "d.yaml", classes=["class_1"]).register()
    assert MetadataCatalog.get("fields_train").stuff_classes == ["class_1"]
    np.testing.assert_array_equal(read_labels(DatasetCatalog.get("fields_train")[0])[0], [255, 0, 255, 255])


def test_names_of_others_are_left_alone(fields: Path) -> None:
    DatasetCatalog.register("fields_val", list)
    assert describe(fields).name == "fields_data"
    with pytest.raises(DataError, match="there is a data set fields_val already"):
        describe(fields).register("fields")


def test_descriptions_of_a_config(fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(fields).to_yaml(tmp_path / "run" / "data.yaml")
    monkeypatch.chdir(tmp_path)
    register_descriptions(["run/data.yaml"])
    assert len(DatasetCatalog.get("fields_val")) == 1
    register_descriptions(["elsewhere/data.yaml"], beside=tmp_path / "run")  # a run's folder that was moved
    with pytest.raises(FileNotFoundError, match=r"there is no file other\.yaml"):
        register_descriptions(["other.yaml"])


def test_training_sees_the_classes_of_the_description(fields: Path, garden: Path, tmp_path: Path) -> None:
    edited(fields, tmp_path / "d.yaml", classes={"plant": ["class_3", "class_1"]}).register()
    edited(garden, tmp_path / "d.yaml", classes={"grass": "lawn", "wood": "tree"}).register()
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.FORMAT = (4,), "none", "RGB"
    cfg.DATASETS.TRAIN = ("fields_train",)
    (record,) = load_datasets(cfg.DATASETS.TRAIN, filter_empty=True)
    instances = build_mapper(cfg, True)(record)["instances"]
    assert instances.gt_classes.tolist() == [0]
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), np.isin(LABELS, (1, 3)))

    cfg.DATASETS.TRAIN, cfg.INPUT.DATASET_MAPPER_NAME = ("garden_train",), "mask_former_panoptic"
    cfg.INPUT.MIN_SIZE_TRAIN = (6,)
    (record,) = load_datasets(cfg.DATASETS.TRAIN, filter_empty=True)
    example = build_mapper(cfg, True)(record)
    assert example["instances"].gt_classes.tolist() == [0, 1]
    assert not example["instances"].gt_masks.tensor[:, 1:3, 1:3].any()  # where the bush was
    assert "void_segments" not in example


# --- splits --------------------------------------------------------------------


def test_a_split_is_drawn_and_written_down(tmp_path: Path) -> None:
    root = tmp_path / "all"
    write(root / "labels.json", [image_entry(n) for n in range(1, 11)], [annotation(1, 1, 1)], [{"id": 1, "name": "a"}])
    description = describe(root, seed=3)
    train, val = ([r["image_id"] for r in description.load(split)] for split in ("train", "val"))
    assert len(val) == 2
    assert sorted(train + val) == list(range(1, 11))
    ranked = sorted(range(1, 11), key=lambda n: fraction(f"{n}.jpg", 3))
    assert set(val) == set(ranked[:2])
    assert any("2 of 10 images are drawn for it with seed 3" in note for note in description.notes)
    description.to_yaml(tmp_path / "d.yaml")
    written = DataDescription.from_yaml(tmp_path / "d.yaml")
    assert [r["image_id"] for r in written.load("val")] == val
    write(root / "labels.json", [image_entry(n) for n in range(1, 31)], [annotation(1, 1, 1)], [{"id": 1, "name": "a"}])
    assert set(val) <= {r["image_id"] for r in written.load("val")}  # images that come later move none
    assert set(train) <= {r["image_id"] for r in written.load("train")}
    assert val != [r["image_id"] for r in describe(root, seed=4).load("val")]


def test_test_is_validated_on_where_there_is_no_val(tmp_path: Path) -> None:
    write_two(tmp_path)
    (tmp_path / "instances_val.json").rename(tmp_path / "instances_test.json")
    description = describe(tmp_path)
    assert set(description.splits) == {"train", "val"}
    assert any("test is validated on" in note for note in description.notes)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("train/val.json", "val"),
        ("TrainingSet/a", "train"),
        ("trainannot", "train"),
        ("test-dev/x", "test"),
        ("trains/constraint.json", ""),
    ],
)
def test_split_of_a_path(path: str, split: str) -> None:
    assert split_of(path) == split


# --- what is not recognised ----------------------------------------------------


def test_nothing_known(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"no known layout of data: .*docs/own_data\.md"):
        describe(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        describe(tmp_path / "missing")


def test_task_that_the_data_are_not_for(fields: Path) -> None:
    with pytest.raises(DataError, match="nothing for task instance; there is images and label maps, for semantic"):
        describe(fields, "instance")
    with pytest.raises(DataError, match=r"no task 'sematic' \(did you mean semantic"):
        describe(fields, "sematic")
