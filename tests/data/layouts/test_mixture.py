"""Several data sets that one model is trained on: their classes, ratios, and the one file that describes them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from mask2former.config import get_cfg
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.images import DataError
from mask2former.data.labels import read_labels
from mask2former.data.layouts import (
    DataDescription,
    DataMixture,
    describe,
    describe_all,
    register_descriptions,
    with_common_classes,
)
from mask2former.data.loader import build_train_sampler, load_datasets, load_parts
from tests.helpers.blobs import make_instances, make_label_maps


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    return make_label_maps(tmp_path / "maps", train=2, val=1)


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    return make_instances(tmp_path / "discs", train=3, val=2)


@pytest.fixture
def shells(tmp_path: Path) -> Path:
    return make_instances(tmp_path / "other" / "discs", train=6, val=2, names=("large", "shell"))


def mixture(*sources: object) -> DataMixture:
    made = describe_all([str(source) for source in sources])
    assert isinstance(made, DataMixture)
    return made


def test_one_list_of_classes(maps: Path, tmp_path: Path) -> None:
    describe(maps).to_yaml(tmp_path / "d.yaml")
    content = yaml.safe_load((tmp_path / "d.yaml").read_text())
    content |= {"name": "other", "classes": {"soil": "class_0", "class_2": "class_2"}}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    first, second = with_common_classes([describe(maps), describe(tmp_path / "d.yaml")])
    assert list(first.classes) == ["class_0", "class_1", "class_2", "soil"] == list(second.classes)
    values = [np.unique(read_labels(part.load("val")[0])) for part in (first, second)]
    np.testing.assert_array_equal(values[0], [0, 1, 2])
    np.testing.assert_array_equal(values[1], [2, 3, 255])
    second.to_yaml(tmp_path / "second.yaml")
    assert DataDescription.from_yaml(tmp_path / "second.yaml") == second


def test_one_place_is_what_describe_says(discs: Path) -> None:
    assert describe_all([discs]) == describe(discs) == describe_all([f"{discs}:3"])


def test_several_folders(discs: Path, shells: Path) -> None:
    both = mixture(discs, shells)
    assert [part.name for part in both.parts] == ["discs", "discs_2"]  # both folders have that name
    assert (both.classes, both.ratios, both.task) == (["small", "large", "shell"], (), "instance")
    assert both.register() == {"train": ("discs_train", "discs_2_train"), "val": ("discs_val", "discs_2_val")}
    assert MetadataCatalog.get("discs_train").thing_classes == MetadataCatalog.get("discs_2_val").thing_classes
    found = [{a["category_id"] for r in DatasetCatalog.get(name) for a in r["annotations"]} for name in
             ("discs_train", "discs_2_train")]  # fmt: skip
    assert found == [{0, 1}, {1, 2}]
    summaries = both.summarise(progress=False)
    assert {split: (s.images, s.empty) for split, s in summaries.items()} == {"train": (9, 2), "val": (4, 2)}
    assert summaries["train"].objects == sum(part.summarise()["train"].objects for part in both.parts)
    rows = [" ".join(line.split()) for line in both.table(summaries).splitlines()]
    assert f"discs_2 COCO instance JSON {shells}" in rows
    assert any(row.startswith("2 shell") for row in rows)


def test_ratios(discs: Path, shells: Path) -> None:
    assert mixture(f"{discs}:3", f"{shells}:0.5").ratios == [3, 0.5]
    both = mixture(f"{discs}:3", shells)
    assert both.ratios == [3, 1]
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.RATIOS = both.register()["train"], both.ratios
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    parts = load_parts(cfg)
    order = iter(build_train_sampler(cfg, parts, seed=1))
    drawn = [next(order)[1] for _ in range(72)]
    assert sum(index < 3 for index in drawn) == 54  # of the first data set, which has 3 of 9 images
    assert len(load_datasets(cfg.DATASETS.TRAIN, filter_empty=False)) == 9


def test_a_path_with_a_colon_is_a_path(discs: Path) -> None:
    odd = discs.rename(discs.parent / "discs:2")
    assert describe_all([odd]) == describe(odd)
    with pytest.raises(FileNotFoundError, match="discs:x"):
        describe_all([f"{discs}:x"])


def test_what_is_written_is_read_as_it_was(discs: Path, shells: Path, tmp_path: Path) -> None:
    both = mixture(f"{discs}:3", shells)
    both.to_yaml(tmp_path / "run" / "both.yaml")
    again = mixture(tmp_path / "run" / "both.yaml")
    assert again == both
    content = yaml.safe_load((tmp_path / "run" / "both.yaml").read_text())["data_sets"]
    assert [(part["ratio"], part["classes"]) for part in content] == [(3, ["small", "large"]), (1, ["large", "shell"])]
    register_descriptions(["both.yaml"], beside=tmp_path / "run")
    assert len(DatasetCatalog.get("discs_2_val")) == 2
    assert MetadataCatalog.get("discs_2_val").thing_classes == ["small", "large", "shell"]
    with pytest.raises(DataError, match="several data sets"):
        describe(tmp_path / "run" / "both.yaml")


def test_a_file_by_hand_names_folders(discs: Path, shells: Path, maps: Path, tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("data_sets:\n- {path: discs, ratio: 2}\n- {path: other/discs, name: beach, task: instance}\n")
    both = mixture(file)
    assert [part.name for part in both.parts] == ["discs", "beach"]
    assert both.ratios == [2, 1]
    assert len(mixture(file, maps.parent / "discs").parts) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{path: discs, ratio: 0}, {path: discs}]", "ratio 0 must be a positive number"),
        ("[{path: discs, ratio: a}]", "ratio 'a' is no number"),
        ("[{path: discs, ratios: 1}]", "unknown entry 'ratios'"),
        ("[{layout: yolo}]", "lacks task"),
        ("[discs]", "'discs' is no mapping"),
        ("[]", "no list of data sets"),
        ("[{path: discs}, {path: maps}]", "instance and semantic cannot be trained on together"),
        ("[{path: discs}]\nratio: 1", "unknown entry 'ratio'"),
    ],
)
def test_mistakes(discs: Path, maps: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "both.yaml").write_text(f"data_sets: {text}\n")
    with pytest.raises(DataError, match=message):
        describe_all([tmp_path / "both.yaml"])


def test_weights_of_classes_agree(discs: Path, shells: Path, tmp_path: Path) -> None:
    for number, (folder, weight) in enumerate(((discs, 2.0), (shells, 3.0))):
        describe(folder).to_yaml(tmp_path / f"{number}.yaml")
        with (tmp_path / f"{number}.yaml").open("a") as file:
            file.write(f"class_weights: {{large: {weight}}}\n")
    assert mixture(tmp_path / "0.yaml", shells).class_weights == {"large": 2.0}
    with pytest.raises(DataError, match=r"large has 3.*, and 2.* elsewhere"):
        mixture(tmp_path / "0.yaml", tmp_path / "1.yaml")


def test_a_ratio_for_a_file_of_several(discs: Path, shells: Path, tmp_path: Path) -> None:
    mixture(discs, shells).to_yaml(tmp_path / "both.yaml")
    with pytest.raises(DataError, match="give each a `ratio` there"):
        describe_all([f"{tmp_path}/both.yaml:2", discs])
