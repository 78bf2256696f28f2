"""Files as VGG Image Annotator 1 and 2 write them (https://www.robots.ox.ac.uk/~vgg/software/via/)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.data.images import DataError
from mask2former.data.layouts import describe
from tests.helpers.pictures import masks_of, picture, square

POLYGON = {"name": "polygon", "all_points_x": [1, 5, 5, 1], "all_points_y": [1, 1, 4, 4]}
RECT = {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 3}


def region(shape: dict[str, Any] = POLYGON, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def write(folder: Path, regions: Any, *, project: bool = False, name: str = "a.jpg") -> None:
    """The file of one image, and the image."""
    picture(folder / name)
    entries = {f"{name}1234": {"filename": name, "size": 1234, "regions": regions, "file_attributes": {}}}
    content = {"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}} if project else entries
    (folder / "via_region_data.json").write_text(json.dumps(content))


def loaded(root: Path, regions: Any, **other: Any) -> dict[str, Any]:
    write(root / "train", regions, **other)
    write(root / "val", [region(type="boat")])
    return describe(root).load("train")[0]


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("shape", [POLYGON, RECT])
def test_version_2(tmp_path: Path, project: bool, shape: dict) -> None:
    record = loaded(tmp_path, [region(shape, type="buoy"), region(shape, type="boat", note="old")], project=project)
    assert [item["category_id"] for item in record["annotations"]] == [1, 0]  # by name: boat, buoy
    np.testing.assert_array_equal(masks_of(record), np.stack([square(), square()]))


def test_version_1(tmp_path: Path) -> None:
    """As the balloons of Matterport's Mask R-CNN: regions by number, no attributes."""
    for split in ("train", "val"):
        write(tmp_path / split, {"0": region(), "1": region()})
    description = describe(tmp_path)
    assert list(description.classes) == ["object"]
    np.testing.assert_array_equal(masks_of(description.load("val")[0]), np.stack([square(), square()]))


def test_ellipses(tmp_path: Path) -> None:
    circle = {"name": "circle", "cx": 4, "cy": 3, "r": 2}
    turned = {"name": "ellipse", "cx": 4, "cy": 3, "rx": 1, "ry": 3, "theta": np.pi / 2}
    masks = masks_of(loaded(tmp_path, [region(circle, type="boat"), region(turned, type="boat")]))
    rows, columns = np.mgrid[:6, :8] + 0.5
    np.testing.assert_array_equal(masks[0], (rows - 3) ** 2 + (columns - 4) ** 2 <= 4)
    expected = (rows - 3) ** 2 + (columns - 4) ** 2 / 9 <= 1
    assert (masks[1] != expected).sum() <= 2  # at its tips


def test_checkboxes_and_points(tmp_path: Path) -> None:
    point = {"name": "point", "cx": 1, "cy": 1}
    write(tmp_path / "train", [region(kind={"boat": True, "buoy": False}), region(point)])
    write(tmp_path / "val", [])
    description = describe(tmp_path)
    assert list(description.classes) == ["boat"]
    assert len(description.load("train")[0]["annotations"]) == 1
    assert description.load("val")[0]["annotations"] == []
    assert any("1 shapes of type point" in note for note in description.notes)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([region({**POLYGON, "all_points_x": [1, 5], "all_points_y": [1, 1]}, type="boat")], "a polygon of 2 points"),
        ([region({**POLYGON, "all_points_x": [1, 5]}, type="boat")], "a polygon that lacks or contradicts itself"),
        ([region({"name": "cube"}, type="boat")], "a shape of type 'cube'"),
        ([region(type="")], "no class: its attributes type are empty"),
        ([region(type={"boat": True, "buoy": True})], "type names 2 classes; a region has one"),
    ],
)
def test_wrong_regions(tmp_path: Path, regions: list, message: str) -> None:
    with pytest.raises(DataError, match=rf"via_region_data\.json: region 1 of a\.jpg: {message}"):
        loaded(tmp_path, regions)


def test_missing_image(tmp_path: Path) -> None:
    write(tmp_path / "train", [region(type="boat")])
    (tmp_path / "train" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"via_region_data\.json: none of its images is below .*the first: a\.jpg"):
        describe(tmp_path)
