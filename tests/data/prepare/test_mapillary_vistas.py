import json
from pathlib import Path

from mask2former.data.datasets import load_categories
from mask2former.data.prepare.mapillary_vistas import prepare_instance
from tests.helpers.layouts import SIZE, make_mapillary


def test_instances_of_things_alone(tmp_path: Path) -> None:
    folder = make_mapillary(tmp_path)
    prepare_instance(folder)
    content = json.loads((folder / "mapillary_vistas_instance_train.json").read_text())
    assert content["images"] == [{"id": "abc", "file_name": "abc.jpg", "height": SIZE[0], "width": SIZE[1]}]
    assert [(a["category_id"], a["area"], a["bbox"]) for a in content["annotations"]] == [
        (1, 6, [0, 0, 1, 6]),
        (1, 6, [1, 0, 1, 6]),
    ]
    things = [category for category in load_categories("mapillary_vistas_65") if category["isthing"]]
    assert content["categories"] == things
