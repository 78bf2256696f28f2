"""The published data sets under their registered names, on tiny sets in the true layouts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import (
    ade20k,
    cityscapes,
    coco,
    coco_stuff,
    load_categories,
    mapillary_vistas,
)
from mask2former.data.datasets.metadata import list_of_things
from mask2former.data.images import DataError, read_label_map, read_panoptic_png
from mask2former.data.prepare import ade20k as prepare_ade20k
from mask2former.data.prepare import coco as prepare_coco
from mask2former.data.prepare import mapillary_vistas as prepare_mapillary
from mask2former.data.targets import panoptic_targets
from tests.helpers import layouts
from tests.helpers.catalog import registered_below

FORMATS = Path(__file__).parents[4] / "shared" / "data" / "formats"

ALL = (
    ade20k.register_ade20k,
    cityscapes.register_cityscapes,
    coco.register_coco,
    coco_stuff.register_coco_stuff,
    mapillary_vistas.register_mapillary_vistas,
)

# Name → evaluator type, number of things (thing_classes) and of classes (stuff_classes), None where not listed.
EXPECTED: dict[str, tuple[str, int | None, int | None]] = {
    **{f"ade20k_sem_seg_{split}": ("sem_seg", None, 150) for split in ("train", "val")},
    **{f"ade20k_full_sem_seg_{split}": ("sem_seg", None, 847) for split in ("train", "val")},
    **{f"ade20k_instance_{split}": ("coco", 100, None) for split in ("train", "val")},
    **{f"ade20k_panoptic_{split}": ("ade20k_panoptic_seg", 100, 150) for split in ("train", "val")},
    **{f"cityscapes_fine_sem_seg_{s}": ("cityscapes_sem_seg", None, 19) for s in ("train", "val", "test")},
    **{f"cityscapes_fine_instance_seg_{s}": ("cityscapes_instance", 8, None) for s in ("train", "val", "test")},
    **{f"cityscapes_fine_panoptic_{split}": ("cityscapes_panoptic_seg", 19, 19) for split in ("train", "val")},
    **{f"coco_2017_{split}": ("coco", 80, None) for split in ("train", "val")},
    **{f"coco_2017_{split}_panoptic": ("coco_panoptic_seg", 133, 133) for split in ("train", "val")},
    **{f"coco_2017_{split}_panoptic_with_sem_seg": ("coco_panoptic_seg", 80, 133) for split in ("train", "val")},
    "coco_2017_test-dev": ("coco", 80, None),
    "coco_2017_test-dev_panoptic": ("coco_panoptic_seg", 133, 133),
    **{f"coco_2017_{split}_stuff_10k_sem_seg": ("sem_seg", None, 171) for split in ("train", "test")},
    **{f"mapillary_vistas_sem_seg_{split}": ("sem_seg", None, 65) for split in ("train", "val")},
    **{f"mapillary_vistas_instance_{split}": ("coco", 37, None) for split in ("train", "val")},
    **{f"mapillary_vistas_panoptic_{s}": ("mapillary_vistas_panoptic_seg", 65, 65) for s in ("train", "val")},
    **{f"mapillary_vistas_v2_sem_seg_{split}": ("sem_seg", None, None) for split in ("train", "val")},
    **{f"mapillary_vistas_v2_panoptic_{s}": ("mapillary_vistas_panoptic_seg", None, None) for s in ("train", "val")},
}


def test_names_and_metadata(tmp_path: Path) -> None:
    with registered_below(tmp_path, *ALL) as names:
        assert set(names) == set(EXPECTED)
        for name, (evaluator_type, things, stuff) in EXPECTED.items():
            metadata = MetadataCatalog.get(name)
            assert metadata.evaluator_type == evaluator_type
            for key, count in (("thing_classes", things), ("stuff_classes", stuff)):
                assert len(metadata.get(key) or []) == (count or 0), name
        for register in ALL:
            register(tmp_path / "other")  # names in use stay, as where Detectron2 has registered them
        assert MetadataCatalog.get("ade20k_sem_seg_val").image_root.startswith(str(tmp_path / "ADE"))
    assert set(EXPECTED) <= set(DatasetCatalog.list())


@pytest.mark.parametrize(
    ("name", "table", "things", "ids"),
    [
        ("coco_2017_val_panoptic_with_sem_seg", "coco_panoptic_133", 80, 133),
        ("coco_2017_val_panoptic", "coco_panoptic_133", 80, 53),
        ("ade20k_panoptic_val", "ade20k_150", 100, 150),
        ("mapillary_vistas_panoptic_val", "mapillary_vistas_65", 37, 65),
        ("cityscapes_fine_panoptic_val", "cityscapes_19", 8, 11),
    ],
)
def test_maps_of_ids_are_the_published_ones(tmp_path: Path, name: str, table: str, things: int, ids: int) -> None:
    with registered_below(tmp_path, *ALL):
        metadata = MetadataCatalog.get(name)
        thing_ids, stuff_ids = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
        assert (len(thing_ids), len(stuff_ids)) == (things, ids)
        if ids == len(metadata.stuff_classes):  # Detectron2's evaluators turn classes back by this map
            assert list(stuff_ids.values()) == list(range(ids))
            assert thing_ids.items() <= stuff_ids.items()
        kind = list_of_things(metadata)
        assert (kind == "stuff") == (name == "ade20k_panoptic_val")
        names = {category["id"]: category["name"] for category in load_categories(table)}
        assert [metadata.get(f"{kind}_classes")[index] for index in thing_ids.values()] == [names[i] for i in thing_ids]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_missing_is_an_error_with_the_way_out(tmp_path: Path, name: str) -> None:
    with (
        registered_below(tmp_path, *ALL),
        pytest.raises(FileNotFoundError, match=rf"{tmp_path}/.*; .*(datasets/|DETECTRON2_DATASETS)"),
    ):
        DatasetCatalog.get(name)


def test_ignore_labels(tmp_path: Path) -> None:
    with registered_below(tmp_path, *ALL):
        for name, label in {
            "ade20k_full_sem_seg_val": 65535,
            "ade20k_sem_seg_val": 255,
            "mapillary_vistas_sem_seg_val": 65,
            "mapillary_vistas_panoptic_val": 65,
            "cityscapes_fine_panoptic_val": 255,
        }.items():
            assert MetadataCatalog.get(name).ignore_label == label


@pytest.mark.parametrize("table", ["ade20k_150", "cityscapes_19", "mapillary_vistas_65", "coco_stuff_10k"])
def test_tables(table: str) -> None:
    categories = load_categories(table)
    assert len({category["id"] for category in categories}) == len(categories) == int("".join(_digits(table)))
    key = "trainId" if "trainId" in categories[0] else "id"
    assert [category[key] for category in categories] == sorted(category[key] for category in categories)


def _digits(table: str) -> str:
    return "171" if table == "coco_stuff_10k" else table.rsplit("_", 1)[1]


def test_instances_of_ade20k_are_things_of_its_150() -> None:
    things = [category["id"] for category in load_categories("ade20k_150") if category["isthing"]]
    assert [category["id"] for category in load_categories("ade20k_instance_100")] == things
    assert list(prepare_ade20k.instance_to_sceneparse().values()) == things


# --- tiny sets ------------------------------------------------------------------------


def test_ade20k(tmp_path: Path) -> None:
    folder = layouts.make_ade20k(tmp_path)
    with registered_below(tmp_path, ade20k.register_ade20k):
        with pytest.raises(FileNotFoundError, match=r"annotations_detectron2.*prepare_ade20k_sem_seg\.py"):
            DatasetCatalog.get("ade20k_sem_seg_val")
        prepare_ade20k.prepare_panoptic(folder)
        semantic = DatasetCatalog.get("ade20k_sem_seg_val")
        assert [record["image_id"] for record in semantic] == ["ADE_val_00000001", "ADE_val_00000002"]
        instance = DatasetCatalog.get("ade20k_instance_val")[0]
        person = [c["name"] for c in load_categories("ade20k_instance_100")].index("person")
        assert [annotation["category_id"] for annotation in instance["annotations"]] == [person] * 2
        panoptic = DatasetCatalog.get("ade20k_panoptic_val")[0]
        assert panoptic["image_id"] == "ADE_val_00000001"
        assert panoptic["sem_seg_file_name"] == semantic[0]["sem_seg_file_name"]
        assert panoptic["file_name"] == semantic[0]["file_name"] == instance["file_name"]
        assert Path(panoptic["file_name"]).is_file()
        assert [(s["category_id"], s["isthing"]) for s in panoptic["segments_info"]] == [
            (0, False),
            (12, True),
            (12, True),
        ]


def test_half_prepared_ade20k(tmp_path: Path) -> None:
    folder = layouts.make_ade20k(tmp_path)
    prepare_ade20k.prepare_panoptic(folder)
    with registered_below(tmp_path, ade20k.register_ade20k):
        (folder / "annotations_detectron2/validation/ADE_val_00000002.png").unlink()
        with pytest.raises(DataError, match=r"1 of the 2 files .*ADE_val_00000002\.jpg; .*prepare_ade20k_sem_seg\.py"):
            DatasetCatalog.get("ade20k_sem_seg_val")
        (folder / "annotations_detectron2").rename(folder / "elsewhere")
        with pytest.raises(FileNotFoundError, match=r"annotations_detectron2.*prepare_ade20k_panoptic\.py"):
            DatasetCatalog.get("ade20k_panoptic_val")
        (folder / "ade20k_instance_val.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"ade20k_instance_val\.json; .*prepare_ade20k_instance\.py"):
            DatasetCatalog.get("ade20k_instance_val")


def test_ade20k_full(tmp_path: Path) -> None:
    prepare_ade20k.prepare_full(layouts.make_ade20k_full(tmp_path))
    with registered_below(tmp_path, ade20k.register_ade20k):
        (record,) = DatasetCatalog.get("ade20k_full_sem_seg_train")
        labels = read_label_map(record["sem_seg_file_name"])
        assert np.unique(labels).tolist() == [0, 65535]


def test_coco_stuff(tmp_path: Path) -> None:
    prepare_coco.prepare_stuff_10k(layouts.make_coco_stuff(tmp_path))
    with registered_below(tmp_path, coco_stuff.register_coco_stuff):
        (record,) = DatasetCatalog.get("coco_2017_test_stuff_10k_sem_seg")
        assert Path(record["file_name"]).is_file()
        assert np.unique(read_label_map(record["sem_seg_file_name"])).tolist() == [0, 170, 255]


def test_mapillary(tmp_path: Path) -> None:
    prepare_mapillary.prepare_instance(layouts.make_mapillary(tmp_path))
    with registered_below(tmp_path, mapillary_vistas.register_mapillary_vistas):
        (semantic,) = DatasetCatalog.get("mapillary_vistas_sem_seg_train")
        assert np.unique(read_label_map(semantic["sem_seg_file_name"])).tolist() == [0, 2, 65]
        (panoptic,) = DatasetCatalog.get("mapillary_vistas_panoptic_train")
        assert panoptic["sem_seg_file_name"] == semantic["sem_seg_file_name"]
        assert [(s["category_id"], s["isthing"]) for s in panoptic["segments_info"]] == [
            (0, True),
            (0, True),
            (2, False),
        ]
        (instance,) = DatasetCatalog.get("mapillary_vistas_instance_train")
        assert [annotation["category_id"] for annotation in instance["annotations"]] == [0, 0]


def test_mapillary_v2_takes_its_classes_from_the_files(tmp_path: Path) -> None:
    folder = layouts.make_mapillary(tmp_path)
    with registered_below(tmp_path, mapillary_vistas.register_mapillary_vistas):
        DatasetCatalog.get("mapillary_vistas_v2_sem_seg_val")
        metadata = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_val")
        assert (metadata.stuff_classes, metadata.ignore_label) == (["Bird", "Ground Animal", "Curb"], 3)
        (panoptic,) = DatasetCatalog.get("mapillary_vistas_v2_panoptic_val")
        assert [segment["category_id"] for segment in panoptic["segments_info"]] == [0, 0, 1]
        layouts.write_json(folder / "config_v2.0.json", {"labels": [{"name": "a", "readable": "A", "color": [0] * 3}]})
        with pytest.raises(DataError, match=r"config_v2\.0\.json: the last label must be void--unlabeled"):
            DatasetCatalog.get("mapillary_vistas_v2_sem_seg_train")
        layouts.write_json(folder / "config_v2.0.json", {})
        with pytest.raises(DataError, match=r"config_v2\.0\.json: no config of Mapillary Vistas"):
            DatasetCatalog.get("mapillary_vistas_v2_sem_seg_train")


def test_cityscapes_test_split_has_no_labels(tmp_path: Path) -> None:
    layouts.make_cityscapes(tmp_path)
    with registered_below(tmp_path, cityscapes.register_cityscapes):
        for task in ("sem_seg", "instance_seg"):
            (record,) = DatasetCatalog.get(f"cityscapes_fine_{task}_test")
            assert Path(record["file_name"]).is_file()
            assert set(record) == {"file_name", "image_id"}
        with pytest.raises(DataError, match=r"no partner.*prepare_cityscapes\.py"):
            DatasetCatalog.get("cityscapes_fine_sem_seg_val")


# --- files of the releases ------------------------------------------------------------


@pytest.fixture
def formats() -> Path:
    if not FORMATS.is_dir():
        pytest.skip(f"{FORMATS}, examples of the releases, is absent")
    return FORMATS


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def test_true_cityscapes_labels(tmp_path: Path, formats: Path) -> None:
    link(formats / "cityscapes", tmp_path / "cityscapes")
    with registered_below(tmp_path, cityscapes.register_cityscapes):
        (record,) = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
        assert record["image_id"] == "frankfurt/frankfurt_000000_000294"
        assert read_label_map(record["sem_seg_file_name"]).max() == 255


def test_true_ade20k_labels(tmp_path: Path, formats: Path) -> None:
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            link(formats / "ade20k" / kind / "validation", tmp_path / "ADEChallengeData2016" / kind / split)
    prepare_ade20k.prepare_semantic(tmp_path / "ADEChallengeData2016")
    with registered_below(tmp_path, ade20k.register_ade20k):
        records = DatasetCatalog.get("ade20k_sem_seg_val")
        assert len(records) == 2
        for record in records:
            raw = read_label_map(formats / "ade20k/annotations/validation" / Path(record["sem_seg_file_name"]).name)
            labels = read_label_map(record["sem_seg_file_name"])
            assert np.array_equal(labels, np.where(raw == 0, 255, raw - 1))


@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_true_mapillary_files(tmp_path: Path, formats: Path, version: str) -> None:
    folder = tmp_path / "mapillary_vistas"
    source = formats / "mapillary_vistas_fixture"
    link(source / "config_v2.0.json", folder / "config_v2.0.json")
    for ours, theirs in (("training", "train"), ("validation", "val")):
        link(source / theirs / "images", folder / ours / "images")
        link(source / theirs / "v2.0", folder / ours / "v2.0")
        for kind in ("labels", "instances", "panoptic"):
            link(source / theirs / "v1.2" / kind, folder / ours / kind)
    with registered_below(tmp_path, mapillary_vistas.register_mapillary_vistas):
        assert len(DatasetCatalog.get("mapillary_vistas_sem_seg_val")) == 2
        if version == "v1.2":  # the fixture's own categories, one of which v1.2 does not have
            with pytest.raises(DataError, match=r"panoptic_2018\.json: .*unknown category id 100"):
                DatasetCatalog.get("mapillary_vistas_panoptic_val")
            return
        for record in DatasetCatalog.get("mapillary_vistas_v2_panoptic_val"):
            ids = read_panoptic_png(record["pan_seg_file_name"])
            things = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
            assert len(panoptic_targets(ids, record["segments_info"], "").classes) == len(things)


@pytest.mark.parametrize("prepare", [prepare_ade20k.prepare_instance, prepare_mapillary.prepare_instance])
def test_a_wrong_folder_is_named(tmp_path: Path, prepare: Callable[..., None]) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no files \*\.png in {tmp_path}.*; unpack "):
        prepare(tmp_path)
