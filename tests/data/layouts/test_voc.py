"""Folders as http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and CVAT's export "Segmentation mask" have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.images import DataError
from mask2former.data.labels import read_labels
from mask2former.data.layouts import describe
from mask2former.data.layouts.values import voc_color
from tests.helpers.pictures import SIZE, masks_of, picture, save, square

PALETTE = [part for index in range(256) for part in voc_color(index)]
CLASSES = np.where(square(), 15, 0).astype(np.uint8)
CLASSES[0, 1:5] = 255
CLASSES[4:, 6:] = 2
OBJECTS = CLASSES.copy()
OBJECTS[CLASSES == 15] = 1
OBJECTS[4:, 6] = 2  # two bicycles side by side
OBJECTS[4:, 7] = 3


def indexed(path: Path, values: np.ndarray) -> None:
    """A PNG with VOC's palette, as the releases have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Image.fromarray(values, "P")
    file.putpalette(PALETTE)
    file.save(path)


def colored(path: Path, values: np.ndarray) -> None:
    table = np.array(PALETTE, np.uint8).reshape(-1, 3)
    save(path, table[values])


def write(root: Path, save_map=indexed) -> Path:
    """VOC2012's folders, with an image in each list, and one that has no masks."""
    for name in ("2007_1", "2007_2", "boxes_only"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_1", "2007_2"):
        save_map(root / "SegmentationClass" / f"{name}.png", CLASSES)
        save_map(root / "SegmentationObject" / f"{name}.png", OBJECTS)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", "2007_1"), ("val", "2007_2"), ("trainval", "2007_1\n2007_2")):
        (lists / f"{split}.txt").write_text(f"{names}\n")
    return root


def test_colors_of_the_labels() -> None:
    """From the table of VOC's development kit."""
    assert [voc_color(index) for index in (0, 1, 2, 15, 20, 255)] == [
        *((0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)),
    ]


def test_semantic(tmp_path: Path) -> None:
    write(tmp_path / "VOCdevkit" / "VOC2012")
    description = describe(tmp_path)
    assert (description.layout, description.task) == ("voc", "semantic")
    assert [len(description.classes), *list(description.classes)[14:16]] == [21, "motorbike", "person"]
    (record,) = description.load("val")
    np.testing.assert_array_equal(read_labels(record), CLASSES)
    assert description.metadata()["stuff_colors"][15] == [192, 128, 128]


@pytest.mark.parametrize("save_map", [indexed, colored])
def test_instances(tmp_path: Path, save_map) -> None:
    write(tmp_path / "VOC2012", save_map)
    description = describe(tmp_path, "instance")
    assert len(description.classes) == 20
    (record,) = description.load("train")
    names = [list(description.classes)[item["category_id"]] for item in record["annotations"]]
    assert sorted(names) == ["bicycle", "bicycle", "person"]
    masks = dict(zip(names, masks_of(record), strict=True))
    np.testing.assert_array_equal(masks["person"], square())
    assert masks["bicycle"].sum() == 2


@pytest.mark.parametrize("save_map", [indexed, colored])
def test_classes_of_a_labelmap(tmp_path: Path, save_map) -> None:
    """As CVAT writes it; the colours are in the file."""
    write(tmp_path, save_map)
    lines = [
        f"{name}:{','.join(map(str, voc_color(i)))}::" for name, i in (("background", 0), ("cart", 2), ("rider", 15))
    ]
    (tmp_path / "labelmap.txt").write_text(
        "\n".join(["# label:color_rgb:parts:actions", *lines, "void:224,224,192::", ""])
    )
    description = describe(tmp_path)
    assert list(description.classes) == ["background", "cart", "rider"]
    labels = read_labels(description.load("train")[0])
    np.testing.assert_array_equal(labels, np.select([CLASSES == 2, CLASSES == 15, CLASSES == 255], [1, 2, 255], 0))


def test_other_folders_in_the_form_of_voc_have_no_names_of_voc(tmp_path: Path) -> None:
    write(tmp_path)
    description = describe(tmp_path)
    assert list(description.classes) == ["class_0", "class_2", "class_15"]
    labels = np.select([CLASSES == 2, CLASSES == 15, CLASSES == 255], [1, 2, 255], 0)
    np.testing.assert_array_equal(read_labels(description.load("train")[0]), labels)
    assert "label 255 is ignored" in description.table()


def test_missing_label_map(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "SegmentationClass" / "2007_2.png").unlink()
    with pytest.raises(DataError, match=r"1 label maps that lists of ImageSets/Seg.* are missing: .*2007_2"):
        describe(tmp_path)


def test_missing_image(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "JPEGImages" / "2007_2.jpg").unlink()
    with pytest.raises(DataError, match=r"val\.txt: there is no image .*2007_2\.jpg"):
        describe(tmp_path)


def test_size_of_another_image(tmp_path: Path) -> None:
    write(tmp_path)
    picture(tmp_path / "JPEGImages" / "2007_1.jpg", (SIZE[0], 9))
    with pytest.raises(DataError, match=r"2007_1\.png is 8x6 pixels .*2007_1\.jpg says 9x6"):
        describe(tmp_path)


def test_objects_that_are_not_told_apart(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "SegmentationObject" / "2007_1.png").unlink()
    with pytest.raises(DataError, match=r"no label map of objects .*2007_1\.png; add it, or use task semantic"):
        describe(tmp_path, "instance")


def test_object_of_no_class(tmp_path: Path) -> None:
    write(tmp_path)
    wrong = OBJECTS.copy()
    wrong[5, 0] = 9  # on the background
    indexed(tmp_path / "SegmentationObject" / "2007_1.png", wrong)
    with pytest.raises(DataError, match=r"2007_1\.png: object 9: most of it lies on label 0"):
        describe(tmp_path, "instance")
