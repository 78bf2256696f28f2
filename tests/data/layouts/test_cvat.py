"""Files as https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/ describes them."""

from pathlib import Path

import numpy as np
import pytest

from mask2former.data.images import DataError
from mask2former.data.layouts import describe
from tests.helpers.pictures import SIZE, masks_of, picture, square

POLYGON = (
    '<polygon label="boat" source="manual" occluded="0" points="1.00,1.00;5.00,1.00;5.00,4.00;1.00,4.00" z_order="0"/>'
)
BOX = '<box label="buoy" occluded="0" xtl="1.00" ytl="1.00" xbr="5.00" ybr="4.00" z_order="0"/>'
LABELS = "<labels><label><name>boat</name></label><label><name>buoy</name></label></labels>"


def document(images: str, labels: str = LABELS) -> str:
    meta = f"<meta><task><id>7</id>{labels}</task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'


def image(shapes: str, name: str = "a.jpg", **other: str) -> str:
    more = "".join(f' {key}="{value}"' for key, value in other.items())
    return f'<image id="0" name="{name}"{more} width="8" height="6">{shapes}</image>'


def write(root: Path, shapes: str, **labels: str) -> None:
    """Two images of a project's export, whose subsets tell the split."""
    for subset in ("train", "val"):
        picture(root / "images" / subset / "a.jpg")
    images = image(shapes, subset="train") + image(POLYGON, subset="val")
    (root / "annotations.xml").write_text(document(images, **labels))


def loaded(root: Path, shapes: str) -> dict:
    write(root, shapes)
    return describe(root).load("train")[0]


def test_polygons_and_boxes(tmp_path: Path) -> None:
    record = loaded(tmp_path, BOX + POLYGON)
    description = describe(tmp_path)
    assert (description.layout, list(description.classes)) == ("cvat", ["boat", "buoy"])
    assert [item["category_id"] for item in record["annotations"]] == [1, 0]
    np.testing.assert_array_equal(masks_of(record), np.stack([square(), square()]))
    files = {split: description.load(split)[0]["file_name"] for split in ("train", "val")}  # of the same name
    assert files == {split: str(tmp_path / "images" / split / "a.jpg") for split in ("train", "val")}


def test_subsets_with_images_of_one_folder(tmp_path: Path) -> None:
    for name in ("x.jpg", "y.jpg"):
        picture(tmp_path / "images" / name)
    images = image(POLYGON, "x.jpg", subset="Train") + image(BOX, "y.jpg", subset="Validation")
    (tmp_path / "annotations.xml").write_text(document(images))
    description = describe(tmp_path)
    found = {split: [Path(r["file_name"]).name for r in description.load(split)] for split in description.splits}
    assert found == {"train": ["x.jpg"], "val": ["y.jpg"]}


def test_a_task_without_subsets_is_drawn_from(tmp_path: Path) -> None:
    for name in ("x.jpg", "y.jpg"):
        picture(tmp_path / name)
    (tmp_path / "annotations.xml").write_text(document(image(POLYGON, "x.jpg") + image("", "y.jpg")))
    description = describe(tmp_path)
    assert sorted(len(r["annotations"]) for split in ("train", "val") for r in description.load(split)) == [0, 1]
    assert any("are drawn" in note for note in description.notes)
    assert describe(tmp_path / "annotations.xml").load("val") == description.load("val")


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    other = '<polygon label="boat" points="6,0;8,0;8,2;6,2" group_id="3"/>'
    record = loaded(tmp_path, POLYGON.replace("z_order", 'group_id="3" z_order') + other)
    expected = square()
    expected[:2, 6:] = True
    np.testing.assert_array_equal(masks_of(record), expected[None])


def test_masks(tmp_path: Path) -> None:
    """Run lengths from the box's first pixel, rows after each other, outside first."""
    record = loaded(tmp_path, '<mask label="boat" rle="1, 2, 2, 1" left="2" top="3" width="3" height="2"/>')
    expected = np.zeros(SIZE, bool)
    expected[3:5, 2:5] = [[0, 1, 1], [0, 0, 1]]
    np.testing.assert_array_equal(masks_of(record), expected[None])


def test_ellipses_and_turned_boxes(tmp_path: Path) -> None:
    ellipse = '<ellipse label="boat" cx="4" cy="3" rx="3" ry="1" rotation="0"/>'
    turned = '<box label="boat" xtl="3" ytl="1" xbr="5" ybr="5" rotation="90"/>'
    masks = masks_of(loaded(tmp_path, ellipse + turned))
    rows, columns = np.mgrid[:6, :8] + 0.5
    assert (masks[0] != ((rows - 3) ** 2 + (columns - 4) ** 2 / 9 <= 1)).sum() <= 2  # at its tips
    expected = np.zeros(SIZE, bool)
    expected[2:4, 2:6] = True
    np.testing.assert_array_equal(masks[1], expected)


def test_what_has_no_area_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path, f'{POLYGON}<points label="boat" points="1,1"/><polyline label="boat" points="1,1;2,2"/>')
    description = describe(tmp_path)
    assert len(description.load("train")[0]["annotations"]) == 1
    assert [note for note in description.notes if "have no area" in note] == [
        "1 shapes of type points have no area and are left out",
        "1 shapes of type polyline have no area and are left out",
    ]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ('<polygon label="boat" points="1,1;2,2"/>', "a polygon of 2 points"),
        ('<polygon label="boat" points="1,1;2;3,3"/>', "points that are none"),
        ('<polygon label="whale" points="1,1;2,2;3,1"/>', "unknown label 'whale'; there are boat, buoy"),
        ('<polygon points="1,1;2,2;3,1"/>', "polygon has no label"),
        ('<mask label="boat" rle="1,2" left="0" top="0" width="3" height="2"/>', "run lengths that do not add up"),
        ('<mask label="boat" rle="0,6" left="7" top="0" width="3" height="2"/>', "a mask that leaves the image"),
        ('<box label="boat" xtl="a" ytl="1" xbr="5" ybr="4"/>', "xtl of box is 'a', no number"),
    ],
)
def test_wrong_shapes(tmp_path: Path, shapes: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"annotations\.xml: shape 1 of a\.jpg: {message}"):
        loaded(tmp_path, shapes)


PLAIN = document(image(POLYGON))
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            document(image(POLYGON)).replace("<annotations>", f"{BOMB}<annotations>"),
            "declares a document type or entities",
        ),
        (
            document(image(POLYGON)).replace("<annotations>", f"{BOMB}<annotations>").encode("utf-16"),
            "not valid XML in UTF-8",
        ),
        (document(image(POLYGON))[:-5], "not valid XML"),
    ],
)
def test_xml_that_is_not_read(tmp_path: Path, content: str | bytes, message: str) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "annotations.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"annotations\.xml: .*{message}"):
        describe(tmp_path)


def test_missing_image_and_another_size(tmp_path: Path) -> None:
    write(tmp_path, POLYGON)
    picture(tmp_path / "images" / "train" / "a.jpg", (6, 9))
    with pytest.raises(DataError, match=r"a\.jpg is 9x6 pixels .* says 8x6"):
        describe(tmp_path)
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    (tmp_path / "images" / "val" / "a.jpg").unlink()
    with pytest.raises(DataError, match="none of its images is below"):
        describe(tmp_path)
