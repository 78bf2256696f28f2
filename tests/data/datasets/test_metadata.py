import pytest

from mask2former.data.datasets import load_categories
from mask2former.data.datasets.metadata import (
    check_categories,
    instance_metadata,
    panoptic_metadata,
    things_first,
)
from mask2former.data.images import DataError


def test_coco_table_is_the_published_one() -> None:
    categories = load_categories("coco_panoptic_133")
    metadata = panoptic_metadata(categories)
    assert (len(metadata["thing_classes"]), len(metadata["stuff_classes"])) == (80, 133)
    things = metadata["thing_dataset_id_to_contiguous_id"]
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    assert (len(things), len(stuff)) == (80, 133)
    assert (things[1], things[90], stuff[92], stuff[200]) == (0, 79, 80, 132)
    assert metadata["thing_classes"][0] == "person"
    assert metadata["thing_colors"][0] == [220, 20, 60]
    assert things_first(list(reversed(categories))) == categories


def test_classes_without_colour_get_distinct_ones() -> None:
    colors = instance_metadata([{"id": number, "name": str(number)} for number in range(50)])["thing_colors"]
    assert len({tuple(color) for color in colors}) == 50
    assert all(0 <= value <= 255 for color in colors for value in color)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "empty"),
        ([{"id": 1, "name": "a"}], "lacks isthing"),
        ([{"id": 1, "isthing": 1}], "lacks name"),
        ([{"id": 1, "name": "a", "isthing": 1}, {"id": 1, "name": "b", "isthing": 0}], "id 1 .* 'a' and 'b'"),
    ],
)
def test_broken_categories_name_the_file(categories: list, message: str) -> None:
    with pytest.raises(DataError, match=f"x.json: .*{message}"):
        check_categories(categories, "x.json", panoptic=True)


def test_instance_categories_need_no_thing_flag() -> None:
    check_categories([{"id": 1, "name": "a"}], "x.json", panoptic=False)
