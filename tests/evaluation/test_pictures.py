"""Which images are drawn, what they show, and where they go, for the three tasks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mask2former
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.events import EventStorage
from mask2former.d2.structures import Instances
from mask2former.evaluation import build_evaluators
from mask2former.evaluation.pictures import PictureEvaluator, choose_images, draw_comparison
from mask2former.modeling.masks import PackedMasks

SIZE = (48, 64)
MASK = np.zeros(SIZE, dtype=bool)
MASK[8:40, 8:40] = True


def polygon() -> list[list[float]]:
    return [[8, 8, 40, 8, 40, 40, 8, 40]]


def truth_of(kind: str, folder: Path, number: int) -> dict[str, Any]:
    """A square of class `number % 3`, as a data set of that kind has it."""
    category = number % 3
    if kind == "panoptic":
        ids = np.zeros((*SIZE, 3), dtype=np.uint8)
        ids[MASK, 0] = 9
        Image.fromarray(ids).save(folder / f"{number}.png")
        segment = {"id": 9, "category_id": category, "isthing": True, "iscrowd": 0}
        return {"pan_seg_file_name": str(folder / f"{number}.png"), "segments_info": [segment]}
    if kind == "instance":
        return {"annotations": [{"segmentation": polygon(), "category_id": category, "iscrowd": 0}]}
    labels = np.full(SIZE, 255, dtype=np.uint8)
    labels[MASK] = category
    Image.fromarray(labels).save(folder / f"{number}.png")
    return {"sem_seg_file_name": str(folder / f"{number}.png")}


def output_of(kind: str) -> dict[str, Any]:
    if kind == "panoptic":
        segments = [{"id": 1, "category_id": 1, "isthing": True, "score": 0.9}]
        return {"panoptic_seg": (torch.from_numpy(MASK).int(), segments)}
    if kind == "instance":
        masks = torch.from_numpy(np.stack([MASK, ~MASK]))
        found = Instances(SIZE, pred_masks=PackedMasks.pack(masks), pred_classes=torch.tensor([1, 2]))
        found.scores = torch.tensor([0.9, 0.4])
        return {"instances": found}
    return {"sem_seg": torch.from_numpy(np.stack([~MASK, MASK, 0 * MASK]).astype(np.float32))}


@pytest.fixture(params=["panoptic", "instance", "semantic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def dataset(kind: str, tmp_path: Path) -> Iterator[str]:
    """Seven grey images; the classes are 0, 1, 2, 0, 1, 2, 0."""
    records = []
    for number in range(7):
        Image.new("RGB", (SIZE[1], SIZE[0]), (120, 120, 120)).save(tmp_path / f"image {number}.jpg")
        record = {"file_name": str(tmp_path / f"image {number}.jpg"), "image_id": number}
        records.append({**record, **truth_of(kind, tmp_path, number)})
    name = f"pictures_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    colors = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    metadata = {"thing_classes": ["a", "b", "c"], "thing_colors": colors}
    MetadataCatalog.get(name).set(
        **metadata, stuff_classes=["a", "b", "c"], stuff_colors=colors, ignore_label=255,
        thing_dataset_id_to_contiguous_id={0: 0, 1: 1, 2: 2},
    )  # fmt: skip
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def numbers(records: list[dict[str, Any]]) -> list[int]:
    return [record["image_id"] for record in records]


def test_all_classes_come_first_then_the_rest_is_spread(dataset: str) -> None:
    records, metadata = DatasetCatalog.get(dataset), MetadataCatalog.get(dataset)
    assert numbers(choose_images(records, metadata, 3)) == [0, 1, 2]
    assert numbers(choose_images(records[3:], metadata, 3)) == [3, 4, 5]
    assert numbers(choose_images(records, metadata, 5)) == [0, 1, 2, 3, 6]
    assert numbers(choose_images(records, metadata, 99)) == list(range(7))
    assert choose_images([], metadata, 3) == []


def test_an_image_of_many_classes_goes_before_others() -> None:
    records = [
        {"file_name": "", "image_id": number, "annotations": [{"category_id": c, "iscrowd": 0} for c in classes]}
        for number, classes in enumerate([[0], [0, 1], [], [2, 0, 1], [3]])
    ]
    metadata = MetadataCatalog.get("nothing_of_it")
    assert numbers(choose_images(records, metadata, 2)) == [3, 4]
    for record in records:
        del record["annotations"]
    assert numbers(choose_images(records, metadata, 2)) == [0, 4]  # no labels at all


def test_image_truth_and_prediction_side_by_side(dataset: str, kind: str) -> None:
    """Class 0 is red, class 1 green; the instance of a low score, which would be blue, is left out."""
    record, metadata = DatasetCatalog.get(dataset)[0], MetadataCatalog.get(dataset)
    picture = draw_comparison(record, output_of(kind), metadata)
    left, middle, right = (picture[150, 8 + column * 488 + 100] for column in range(3))
    assert np.abs(left - 120.0).max() < 5
    assert middle[0] > 1.5 * middle[1] > 0
    assert middle[0] > 1.5 * middle[2]
    assert right[1] > 1.5 * right[0] > 0
    outside = picture[380, 8 + 2 * 488 + 470].astype(int)
    assert (outside[0] > 150 > outside[2]) if kind == "semantic" else np.abs(outside - 120).max() < 5
    unlabelled = draw_comparison({"file_name": record["file_name"]}, output_of(kind), metadata)
    assert unlabelled.shape[1] == 2 * 488 + 8


def evaluate(dataset: str, kind: str, folder: Path) -> None:
    evaluator = PictureEvaluator(dataset, str(folder), count=3)
    evaluator.reset()
    for record in DatasetCatalog.get(dataset):
        evaluator.process([record], [output_of(kind)])
    assert evaluator.evaluate() is None


def test_files_and_training(dataset: str, kind: str, tmp_path: Path) -> None:
    evaluate(dataset, kind, tmp_path / "out")
    names = ["00_image_0.jpg", "01_image_1.jpg", "02_image_2.jpg"]
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == names
    with EventStorage(41) as storage:
        evaluate(dataset, kind, tmp_path / "out")
    folder = tmp_path / "out" / "pictures" / "0000041"
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [(name, step) for name, _, step in storage._vis_data] == [
        (f"{tmp_path.name}/{dataset}/{name[:-4]}", 41) for name in names
    ]
    shown = storage._vis_data[1][1]
    assert np.array_equal(shown.numpy().transpose(1, 2, 0), np.asarray(Image.open(folder / names[1])))


def test_ranks_share_the_images(
    dataset: str, kind: str, tmp_path: Path, as_ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr("mask2former.evaluation.pictures.write_bytes", lambda path, _: written.append(path.name))
    ranks = [PictureEvaluator(dataset, str(tmp_path / "out"), count=3) for _ in range(2)]
    for number, record in enumerate(DatasetCatalog.get(dataset)):
        ranks[number % 2].process([record], [output_of(kind)])
    as_ranks(ranks)
    alone = ["00_image_0.jpg", "02_image_2.jpg", "01_image_1.jpg"]  # `as_ranks` asks each process alone first
    assert written == [*alone, "00_image_0.jpg", "01_image_1.jpg", "02_image_2.jpg"]


@pytest.mark.parametrize(("count", "folder"), [(0, True), (2, False)])
def test_off_means_that_nothing_is_chosen_or_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, folder: bool
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("images were chosen")

    monkeypatch.setattr("mask2former.evaluation.pictures.choose_images", never)
    cfg = mask2former.get_cfg()
    cfg.TEST.PICTURES = count
    monkeypatch.setattr("mask2former.evaluation.build.find_builder", lambda name: lambda *args: [])
    build_evaluators(cfg, "any", str(tmp_path) if folder else None)
