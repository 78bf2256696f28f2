"""Files as https://github.com/wkentaro/labelme writes them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data.images import DataError
from mask2former.data.layouts import describe
from tests.helpers.pictures import SIZE, masks_of, picture, square

CORNERS = [[1, 1], [5, 1], [5, 4], [1, 4]]


def shape(label: str = "boat", points: Any = CORNERS, kind: str = "polygon", **other: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **other}


def write(root: Path, shapes: list, name: str = "a", **other: Any) -> None:
    """The file of an image, and the image."""
    picture(root / f"{name}.jpg")
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1], **other}
    (root / f"{name}.json").write_text(json.dumps(content))


def loaded(root: Path, shapes: list, **other: Any) -> dict[str, Any]:
    write(root / "train", shapes, **other)
    write(root / "val", [shape()], "b")
    return describe(root).load("train")[0]


def test_polygons_and_boxes(tmp_path: Path) -> None:
    record = loaded(tmp_path, [shape("buoy"), shape("boat", [[5, 4], [1, 1]], "rectangle")])
    assert [item["category_id"] for item in record["annotations"]] == [1, 0]  # by name: boat, buoy
    np.testing.assert_array_equal(masks_of(record), np.stack([square(), square()]))


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    other = [[6, 0], [8, 0], [8, 2], [6, 2]]
    record = loaded(tmp_path, [shape(group_id=1), shape(points=other, group_id=1), shape(points=other, group_id=2)])
    expected = square()
    expected[:2, 6:] = True
    masks = masks_of(record)
    assert len(masks) == 2
    np.testing.assert_array_equal(masks[0], expected)


def test_circle(tmp_path: Path) -> None:
    (mask,) = masks_of(loaded(tmp_path, [shape(points=[[4, 3], [4, 5]], kind="circle")]))
    rows, columns = np.mgrid[:6, :8] + 0.5
    expected = (rows - 3) ** 2 + (columns - 4) ** 2 <= 4
    np.testing.assert_array_equal(mask, expected)


def test_mask(tmp_path: Path) -> None:
    pixels = np.array([[1, 0, 1], [0, 1, 0]], bool)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    record = loaded(
        tmp_path, [shape(points=[[2, 3], [4, 4]], kind="mask", mask=base64.b64encode(stream.getvalue()).decode())]
    )
    expected = np.zeros(SIZE, bool)
    expected[3:5, 2:5] = pixels
    np.testing.assert_array_equal(masks_of(record), expected[None])


def test_what_has_no_area_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path / "train", [shape(), shape("tip", [[1, 1]], "point"), shape("__ignore__")])
    write(tmp_path / "val", [shape()], "b")
    picture(tmp_path / "val" / "not_annotated.jpg")
    description = describe(tmp_path)
    assert list(description.classes) == ["boat"]
    assert len(description.load("train")[0]["annotations"]) == 1
    notes = " ".join(description.notes)
    assert "1 shapes of type point" in notes
    assert "labelled __ignore__ are left out" in notes
    assert "1 images have no JSON file" in notes


def test_an_image_without_shapes(tmp_path: Path) -> None:
    assert loaded(tmp_path, [])["annotations"] == []


def test_paths_of_windows(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.jpg")
    record = loaded(tmp_path, [shape()], imagePath="..\\photos\\a.jpg")
    assert Path(record["file_name"]).resolve() == tmp_path / "photos" / "a.jpg"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shape(points=[[1, 1], [2, 2]])], "shape 1: a polygon of 2 points"),
        ([shape(), shape(points=[[1, 1, 1]])], "shape 2: points of a polygon that are none"),
        ([shape(points=[[1, 1], [2, 2]], kind="mask", mask="no")], "shape 1: a mask that cannot be read"),
        ([{"points": CORNERS}], "shape 1 has no label or no points"),
    ],
)
def test_wrong_shapes(tmp_path: Path, shapes: list, message: str) -> None:
    with pytest.raises(DataError, match=rf"train/a\.json: {message}"):
        loaded(tmp_path, shapes)


def test_missing_image(tmp_path: Path) -> None:
    write(tmp_path, [shape()])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.json: there is no image .*a\.jpg"):
        describe(tmp_path)


def test_size_of_another_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg is 8x6 pixels .* says 9x6"):
        loaded(tmp_path, [shape()], imageWidth=9)


def test_class_that_came_later(tmp_path: Path) -> None:
    write(tmp_path / "train", [shape()])
    write(tmp_path / "val", [shape()], "b")
    description = describe(tmp_path)
    write(tmp_path / "train", [shape("whale")])
    with pytest.raises(DataError, match=r"a\.json: shape 1: class 'whale', which the description does not list"):
        description.load("train")
