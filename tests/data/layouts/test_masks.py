from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.images import DataError
from mask2former.data.labels import read_labels
from mask2former.data.layouts import describe
from tests.helpers.pictures import SIZE, picture, save

INDEX = np.repeat(np.array([[0, 0, 1, 1, 2, 2, 2, 255]], np.uint8), SIZE[0], axis=0)


def write(root: Path, maps: dict[str, np.ndarray], images: str = "images", labels: str = "labels") -> None:
    """A data set of which each name has a label map."""
    for name, values in maps.items():
        picture(root / images / f"{name}.jpg")
        save(root / labels / f"{name}.png", values)


def classes_and_labels(root: Path, split: str = "train") -> tuple[list[str], np.ndarray]:
    description = describe(root)
    return list(description.classes), read_labels(description.load(split)[0])


def test_folders_of_splits_without_names(tmp_path: Path) -> None:
    write(tmp_path, {"train/a": INDEX, "train/b": INDEX, "val/c": INDEX})
    description = describe(tmp_path)
    assert (description.layout, description.task) == ("masks", "semantic")
    assert list(description.classes) == ["class_0", "class_1", "class_2"]
    assert [len(description.load(split)) for split in ("train", "val")] == [2, 1]
    record = description.load("val")[0]
    assert (record["height"], record["width"]) == SIZE
    np.testing.assert_array_equal(read_labels(record), INDEX)
    assert description.ignore_label == 255


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{}/images", "{}/masks"),
        ("{}_images", "{}_masks"),
        ("{}", "{}annot"),
        ("images/{}/city", "annotations/{}/city"),
        ("leftImg8bit/{}", "gt/{}"),
        ("JPEGImages/{}", "SegmentationLabels/{}"),
    ],
)
def test_names_of_folders(tmp_path: Path, images: str, labels: str) -> None:
    for split in ("train", "val"):
        write(tmp_path, {split: INDEX}, images.format(split), labels.format(split))
    description = describe(tmp_path)
    for split in ("train", "val"):
        (record,) = description.load(split)
        assert Path(record["file_name"]) == tmp_path / images.format(split) / f"{split}.jpg"
        assert Path(record["sem_seg_file_name"]) == tmp_path / labels.format(split) / f"{split}.png"


def test_roboflow_masks(tmp_path: Path) -> None:
    """As exported: `x_mask.png` beside `x.jpg`, and `_classes.csv`."""
    for split in ("train", "valid"):
        picture(tmp_path / split / "x.jpg")
        save(tmp_path / split / "x_mask.png", np.where(INDEX == 255, 0, INDEX))
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, wheat\n2, weed\n")
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["background", "wheat", "weed"]
    np.testing.assert_array_equal(labels, np.where(INDEX == 255, 0, INDEX))


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA"])
def test_black_and_white(tmp_path: Path, mode: str) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[2:, 3:] = 255
    for name in "abcde":
        picture(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).convert(mode).save(tmp_path / "masks" / f"{name}.png")
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["class_0", "class_1"]
    np.testing.assert_array_equal(labels, (mask > 0).astype(int))


def test_names_of_black_and_white(tmp_path: Path) -> None:
    mask = np.where(INDEX == 1, 255, 0).astype(np.uint8)
    write(tmp_path, {"a": mask, "b": mask})
    (tmp_path / "classes.txt").write_text("crack\n")
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["background", "crack"]
    np.testing.assert_array_equal(labels, (INDEX == 1).astype(int))


def test_names_and_void(tmp_path: Path) -> None:
    """camvid's form: the last label is void."""
    write(tmp_path, {"train/a": np.where(INDEX == 255, 3, INDEX).astype(np.uint8), "val/b": INDEX})
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\nvoid\n")
    description = describe(tmp_path)
    assert list(description.classes) == ["sky", "road", "car"]
    np.testing.assert_array_equal(read_labels(description.load("train")[0]), INDEX)


def test_labels_from_one(tmp_path: Path) -> None:
    write(
        tmp_path, {"a": np.where(INDEX == 255, 3, INDEX + 1).astype(np.uint8), "b": (INDEX != 1).astype(np.uint8) + 1}
    )
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    description = describe(tmp_path)
    assert any("count from 1" in note for note in description.notes)
    labels = {r["image_id"]: read_labels(r) for split in description.splits for r in description.load(split)}
    np.testing.assert_array_equal(labels["a"], np.where(INDEX == 255, 2, INDEX))


def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.where(INDEX == 255, 65535, INDEX.astype(np.int32) + 299).astype(np.uint16)
    write(tmp_path, {"a": values, "b": values})
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["class_0", "class_1", "class_2", "class_3"]  # levels far from 0: all four are classes
    np.testing.assert_array_equal(labels, np.where(INDEX == 255, 3, INDEX))


COLORS = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)


def test_colors_with_a_list(tmp_path: Path) -> None:
    colored = COLORS[np.where(INDEX == 255, 0, INDEX)]
    write(tmp_path, {"a": colored, "b": colored})
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\ncar,0,0,142\nroad,128,64,128\nVoid,0,0,0\n")
    description = describe(tmp_path)
    assert list(description.classes) == ["car", "road"]
    labels = read_labels(description.load("train")[0])
    np.testing.assert_array_equal(labels[0], [255, 255, 1, 1, 0, 0, 0, 255])
    assert description.metadata()["stuff_colors"] == [[0, 0, 142], [128, 64, 128]]


def test_labelmap_of_cvat(tmp_path: Path) -> None:
    colored = COLORS[np.where(INDEX == 255, 0, INDEX)]
    write(tmp_path, {"a": colored, "b": colored})
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar:0,0,142::\n"
    (tmp_path / "labelmap.txt").write_text(text)
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["background", "road", "car"]
    np.testing.assert_array_equal(labels, np.where(INDEX == 255, 0, INDEX))


def test_colors_without_a_list(tmp_path: Path) -> None:
    colored = COLORS[np.where(INDEX == 255, 0, INDEX)]
    write(tmp_path, {"a": colored, "b": colored})
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["class_0", "class_1", "class_2"]  # in the order of red, green, blue
    np.testing.assert_array_equal(labels[0], [0, 0, 2, 2, 1, 1, 1, 0])


def test_colors_of_pascal_voc(tmp_path: Path) -> None:
    """Labels in VOC's colours have VOC's order; the border of objects is ignored."""
    table = np.full((256, 3), (224, 224, 192), np.uint8)
    table[:3] = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    write(tmp_path, {"a": table[INDEX], "b": table[INDEX]})
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["class_0", "class_1", "class_2"]
    np.testing.assert_array_equal(labels, INDEX)


def test_a_palette_is_an_index(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg")
        image = Image.fromarray(np.where(INDEX == 255, 0, INDEX).astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        (tmp_path / "masks").mkdir(exist_ok=True)
        image.save(tmp_path / "masks" / f"{name}.png")
    description = describe(tmp_path)
    np.testing.assert_array_equal(read_labels(description.load("train")[0]), np.where(INDEX == 255, 0, INDEX))
    assert description.metadata()["stuff_colors"] == [[9, 9, 9], [200, 0, 0], [0, 200, 0]]


def test_grey_levels_far_apart(tmp_path: Path) -> None:
    levels = np.array([0, 100, 200], np.uint8)[np.where(INDEX == 255, 0, INDEX)]
    write(tmp_path, {"a": levels, "b": levels})
    classes, labels = classes_and_labels(tmp_path)
    assert classes == ["class_0", "class_1", "class_2"]
    np.testing.assert_array_equal(labels, np.where(INDEX == 255, 0, INDEX))


def test_images_of_a_test_split_need_no_labels(tmp_path: Path) -> None:
    write(tmp_path, {"train/a": INDEX, "val/b": INDEX})
    picture(tmp_path / "images" / "test" / "c.jpg")
    (record,) = describe(tmp_path).load("test")
    assert "sem_seg_file_name" not in record


# --- what is refused -----------------------------------------------------------


def test_missing_partner(tmp_path: Path) -> None:
    write(tmp_path, {"a": INDEX, "b": INDEX})
    (tmp_path / "labels" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 files of .* have no partner of that name in the other one: images/b\.jpg"):
        describe(tmp_path)


def test_label_that_no_name_has(tmp_path: Path) -> None:
    write(tmp_path, {"a": INDEX, "b": INDEX})
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(
        DataError, match=r"a\.png has label 2, but .*classes\.txt names 2 classes.*`ignore` as its first"
    ):
        describe(tmp_path)


def test_colour_that_no_name_has(tmp_path: Path) -> None:
    write(tmp_path, {"a": COLORS[np.where(INDEX == 255, 0, INDEX)], "b": np.zeros((*SIZE, 3), np.uint8)})
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\ncar,0,0,142\nVoid,0,0,0\n")
    with pytest.raises(DataError, match=r"a\.png has #804080, which .*class_dict\.csv does not name"):
        describe(tmp_path)


def test_size_of_another_image(tmp_path: Path) -> None:
    write(tmp_path, {"a": INDEX, "b": INDEX[:, :4]})
    with pytest.raises(DataError, match=r"labels/b\.png is 4x6 pixels .*b\.jpg says 8x6"):
        describe(tmp_path)


def test_jpeg_label_maps(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.jpg", INDEX)
    with pytest.raises(DataError, match=r"a\.jpg: a label map as JPEG, whose compression changes labels"):
        describe(tmp_path)


def test_smoothed_colours(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    picture(tmp_path / "images" / "a.jpg", (20, 20))
    save(tmp_path / "masks" / "a.png", noise)
    with pytest.raises(DataError, match="more than 256 colours"):
        describe(tmp_path)


def test_transparent_label_map(tmp_path: Path) -> None:
    write(tmp_path, {"a": np.dstack([INDEX, INDEX, INDEX, np.where(INDEX == 1, 0, 255).astype(np.uint8)])})
    with pytest.raises(DataError, match=r"a\.png: a label map with transparent pixels"):
        describe(tmp_path)


def test_two_folders_of_label_maps(tmp_path: Path) -> None:
    write(tmp_path, {"a": INDEX})
    write(tmp_path, {"a": INDEX}, labels="masks")
    with pytest.raises(DataError, match="labels, masks could hold the label maps"):
        describe(tmp_path)


def test_exif_turns_the_image_away_from_its_labels(tmp_path: Path) -> None:
    write(tmp_path, {"a": INDEX, "b": INDEX})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.jpg", exif=exif)
    with pytest.raises(DataError, match=r"labels/a\.png is 8x6 pixels .* says 6x8.*EXIF"):
        describe(tmp_path)
    save(tmp_path / "labels" / "a.png", INDEX.T)  # drawn on the image as it is shown
    assert {r["height"] for split in ("train", "val") for r in describe(tmp_path).load(split)} == {6, 8}


def test_label_that_came_later(tmp_path: Path) -> None:
    write(tmp_path, {"train/a": INDEX, "val/b": INDEX})
    description = describe(tmp_path)
    save(tmp_path / "labels" / "train" / "a.png", np.where(INDEX == 1, 77, INDEX).astype(np.uint8))
    with pytest.raises(DataError, match=r"a\.png: 77 is none of the 4 values that the classes of the data set have"):
        read_labels(description.load("train")[0])
