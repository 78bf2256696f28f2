import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from mask2former.d2.data import DatasetCatalog
from mask2former.data.datasets.cityscapes import register_cityscapes
from mask2former.data.images import DataError, read_label_map, read_panoptic_png
from mask2former.data.prepare.cityscapes import prepare, train_id_lookup, train_ids
from mask2former.data.targets import panoptic_targets
from tests.helpers.catalog import registered_below
from tests.helpers.layouts import SIZE, make_cityscapes, save


@pytest.fixture
def cityscapesscripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts without pyquaternion, which only their 3D boxes need."""
    pytest.importorskip("cityscapesscripts", reason="needs cityscapesscripts")
    if "pyquaternion" not in sys.modules:
        stand_in = ModuleType("pyquaternion")
        stand_in.Quaternion = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyquaternion", stand_in)


@pytest.mark.usefixtures("cityscapesscripts")
def test_all_three_tasks(tmp_path: Path) -> None:
    folder = make_cityscapes(tmp_path)
    prepare(folder)
    with registered_below(tmp_path, register_cityscapes):
        (semantic,) = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
        (panoptic,) = DatasetCatalog.get("cityscapes_fine_panoptic_val")
        (instance,) = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert semantic["file_name"] == panoptic["file_name"] == instance["file_name"]
    assert Path(semantic["file_name"]).is_file()
    assert panoptic["sem_seg_file_name"] == semantic["sem_seg_file_name"]
    assert read_label_map(semantic["sem_seg_file_name"])[0].tolist() == [13, 13, 13, 255, 0, 0, 0, 0]

    assert panoptic["image_id"] == instance["image_id"] == "frankfurt_000000_000019"
    segments = {segment["id"]: segment for segment in panoptic["segments_info"]}
    assert {key: (s["category_id"], s["isthing"], s["iscrowd"]) for key, s in segments.items()} == {
        7: (0, False, 0),
        26: (13, True, 1),
        26000: (13, True, 0),
        26001: (13, True, 0),
    }
    ids = read_panoptic_png(panoptic["pan_seg_file_name"])
    assert len(panoptic_targets(ids, panoptic["segments_info"], "").classes) == 3

    assert [(a["category_id"], a["iscrowd"], a["bbox"]) for a in instance["annotations"]] == [
        (2, 1, [2, 0, 1, 3]),
        (2, 0, [0, 0, 1, 6]),
        (2, 0, [1, 0, 1, 6]),
    ]


@pytest.mark.usefixtures("cityscapesscripts")
def test_train_ids_are_the_table_s(tmp_path: Path) -> None:
    from cityscapesscripts.helpers.labels import id2label

    lookup = train_id_lookup()
    for number in range(34):
        assert lookup[number] == id2label[number].trainId
    assert (lookup[34:] == 255).all()
    save(tmp_path / "bicycle.png", np.full(SIZE, 33, np.uint8))
    assert (cv2.imdecode(np.frombuffer(train_ids(lookup, tmp_path / "bicycle.png"), np.uint8), 0) == 18).all()


@pytest.mark.usefixtures("cityscapesscripts")
def test_train_ids_equal_those_drawn_of_polygons() -> None:
    """cityscapesscripts draws train ids and label ids in the same order, so one maps to the other."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    annotation = Annotation()
    annotation.fromJsonText(
        json.dumps(
            {
                "imgWidth": 20,
                "imgHeight": 10,
                "objects": [
                    {"label": label, "polygon": [[x, 0], [x + 8, 0], [x + 8, 9], [x, 6]]}
                    for x, label in enumerate(["road", "license plate", "cargroup", "sky", "ego vehicle"], start=2)
                ],
            }
        )
    )
    drawn, expected = (np.asarray(createLabelImage(annotation, kind)) for kind in ("ids", "trainIds"))
    assert np.array_equal(train_id_lookup()[drawn], expected)
    assert len(np.unique(expected)) == 4


@pytest.mark.usefixtures("cityscapesscripts")
def test_label_of_another_data_set(tmp_path: Path) -> None:
    folder = make_cityscapes(tmp_path)
    save(folder / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png", np.full(SIZE, 34, np.uint8))
    with pytest.raises(DataError, match=r"labelIds\.png: label 34 is none of Cityscapes"):
        prepare(folder)


def test_without_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    with pytest.raises(DataError, match=r"pip install 'mask2former\[cityscapes\]'"):
        prepare(make_cityscapes(tmp_path))
