from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data.images import DataError, id_to_rgb
from mask2former.data.rle import encode_mask
from mask2former.data.summary import Counts, DataSummary, class_table, fullest_image, image_size, spread, summarise

NAMES = ["cat", "dog", "sky"]


def square(side: int, height: int = 10, width: int = 20) -> dict[str, Any]:
    mask = np.zeros((height, width), bool)
    mask[:side, :side] = True
    return encode_mask(mask)


def instances() -> list[dict[str, Any]]:
    cats = [{"category_id": 0, "segmentation": square(side)} for side in (1, 2, 3)]
    polygon = {"category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 5, 0, 5]]}
    crowd = {"category_id": 1, "segmentation": square(9), "iscrowd": 1}
    size = {"height": 10, "width": 20}
    return [
        {"file_name": "a.png", "annotations": [*cats, crowd], **size},
        {"file_name": "b.png", "annotations": [polygon, cats[0]], **size},
        {"file_name": "c.png", "annotations": [crowd], "height": 30, "width": 15},
        {"file_name": "d.png", "annotations": [], "height": 5, "width": 40},
    ]


def summary_of_instances(**options: Any) -> DataSummary:
    return summarise(instances(), {"thing_classes": NAMES}, progress=False, **options)


def test_instances() -> None:
    summary = summary_of_instances()
    assert (summary.kind, summary.classes) == ("annotations", tuple(NAMES))
    assert summary.things == (True, True, True)
    assert (summary.images, summary.empty, summary.objects) == (4, 2, 5)
    assert summary.most == (3, "a.png")
    assert summary.counts.images == {0: 2, 1: 1}
    assert summary.counts.objects == {0: 4, 1: 1}
    assert [summary.counts.pixels(number) for number in range(3)] == [1 + 4 + 9 + 1, 20, 0]
    assert (summary.read, summary.pixels) == (4, 200 + 200 + 450 + 200)
    assert (summary.smallest, summary.median, summary.largest) == ((5, 40), (10, 20), (30, 15))
    assert summary.sides == (5, 40)
    assert summary.areas == (1, 4, 20)  # of 1, 1, 4, 9, 20
    # of 1, 2, 3 in the one image and 1, 20**0.5 in the other, which count 1/3 and 1/2 each
    np.testing.assert_allclose(summary.relative, np.array([1, 2, 20**0.5]) / 20)


def test_masks_of_a_sample_are_read_and_objects_of_all_counted() -> None:
    summary = summary_of_instances(sample=2)
    assert summary.read == 2
    assert summary.pixels == 200 + 200  # of a.png and d.png, the ends of the list
    assert summary.objects == 5
    assert summary.empty == 2
    assert summary.areas == (1, 4, 9)  # of a.png


def test_label_maps(tmp_path: Path) -> None:
    labels = np.full((4, 6), 255, np.uint8)
    labels[:2, :3] = 2
    labels[3] = 0
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(np.zeros((8, 5, 3), np.uint8)).save(tmp_path / "image.png")
    records = [
        {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png"), "height": 4, "width": 6},
        {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "b.png")},
    ]
    summary = summarise(records, {"stuff_classes": NAMES, "ignore_label": 255}, progress=False)
    assert summary.kind == "sem_seg_file_name"
    assert summary.things == (False, False, False)
    assert (summary.objects, summary.empty, summary.most) == (2, 1, (2, "a.jpg"))
    assert [summary.counts.pixels(number) for number in range(3)] == [6, 0, 6]
    assert summary.largest == (8, 5)  # from the file, for the dict does not say

    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: labels \[7\]"):
        summarise(records, {"stuff_classes": NAMES}, progress=False)


def test_panoptic_sizes_are_of_things(tmp_path: Path) -> None:
    ids = np.zeros((10, 10), np.int32)
    ids[:1, :3] = 1000
    ids[1:3, :3] = 2
    ids[3:] = 3
    Image.fromarray(id_to_rgb(ids)).save(tmp_path / "a.png")
    segments = [{"id": 1000, "category_id": 0}, {"id": 2, "category_id": 0, "iscrowd": 1}, {"id": 3, "category_id": 2}]
    record = {
        "file_name": "a.jpg",
        "pan_seg_file_name": str(tmp_path / "a.png"),
        "segments_info": segments,
        "annotations": [],  # instances beside it are not what is counted
        "height": 10,
        "width": 10,
    }
    metadata = {"stuff_classes": NAMES, "thing_dataset_id_to_contiguous_id": {17: 0, 18: 1}}
    summary = summarise([record], metadata, progress=False)
    assert summary.kind == "pan_seg_file_name"
    assert summary.things == (True, True, False)
    assert summary.counts.objects == {0: 1, 2: 1}
    assert [summary.counts.pixels(number) for number in range(3)] == [3, 0, 70]
    assert summary.areas == (3, 3, 3)


def test_no_images_and_no_annotations() -> None:
    with pytest.raises(DataError, match="holds no images"):
        summarise([], {})
    summary = summarise([{"file_name": "a.png", "height": 4, "width": 4}], {}, progress=False)
    assert (summary.kind, summary.objects, summary.areas) == ("", 0, (0, 0, 0))


def test_a_kind_is_what_all_images_have() -> None:
    records = [*instances(), {"file_name": "e.png", "height": 4, "width": 4}]
    assert summarise(records, {"thing_classes": NAMES}, progress=False).kind == ""


def test_counts_of_several_images_add_up() -> None:
    one, other = Counts(), Counts()
    for counts, classes, areas, file in ((one, [0, 0], [3, 4], "a"), (other, [0, 1, 1], [5, 6, 7], "b")):
        counts.count(classes, file)
        counts.measure(classes, areas, (5, 10))
    one.add(other)
    assert (one.images, one.objects, one.most) == ({0: 2, 1: 1}, {0: 3, 1: 2}, (3, "b"))
    assert (one.pixels(0), one.pixels(1)) == (12, 13)
    assert one.sides[0] == [(3**0.5 / 10, 1 / 2), (4**0.5 / 10, 1 / 2), (5**0.5 / 10, 1 / 3)]
    rows = [line.split() for line in class_table(one, ["cat"], 100).splitlines()]
    assert rows[2:] == [["0", "cat", "2", "3", "12.00"], ["1", "?", "1", "2", "13.00"]]


def test_fullest_image_and_size() -> None:
    assert fullest_image(instances(), "annotations") == (3, "a.png")
    assert image_size(instances()[3]) == (5, 40)


@pytest.mark.parametrize(
    ("count", "expected"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [0])]
)
def test_spread(count: int | None, expected: list[int]) -> None:
    assert spread(range(5), count) == expected
