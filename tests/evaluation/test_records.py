"""Ground truth of data sets that are registered as functions, without a file that metadata name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.structures import Instances
from mask2former.data.datasets.metadata import instance_metadata, panoptic_metadata
from mask2former.data.images import DataError, id_to_rgb
from mask2former.evaluation import COCOPanopticEvaluator, InstanceSegEvaluator, SemSegEvaluator
from tests.helpers.pictures import SIZE, save

CATEGORIES = [{"id": 3, "name": "boat", "isthing": 1}, {"id": 8, "name": "water", "isthing": 0}]
SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Any]:
    names = []

    def register(records: list[dict[str, Any]], **metadata: Any) -> str:
        name = f"{tmp_path.name}_{len(names)}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def record(**entries: Any) -> dict[str, Any]:
    return {"file_name": "a.jpg", "image_id": "a", "height": SIZE[0], "width": SIZE[1], **entries}


def predicted(rows: slice, columns: slice) -> dict[str, Any]:
    instances = Instances(SIZE)
    instances.pred_masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    instances.pred_masks[0, rows, columns] = True
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    return {"instances": instances}


@pytest.mark.parametrize(("columns", "expected"), [(slice(1, 5), 100.0), (slice(4, 8), 0.0)])
def test_instances(registered: Any, columns: slice, expected: float) -> None:
    annotations = [
        {"category_id": 0, "iscrowd": 0, "segmentation": [SQUARE]},
        {"category_id": 0, "iscrowd": 1, "segmentation": [[0, 4, 2, 4, 2, 6, 0, 6]]},
    ]
    evaluator = InstanceSegEvaluator(
        registered([record(annotations=annotations)], **instance_metadata(CATEGORIES[:1])), distributed=False
    )
    evaluator.process([{"image_id": "a"}], [predicted(slice(1, 4), columns)])
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(expected)


def test_a_broken_mask_names_its_image(registered: Any) -> None:
    wrong = {"category_id": 0, "segmentation": {"size": list(SIZE), "counts": "77"}}
    name = registered([record(annotations=[wrong])], **instance_metadata(CATEGORIES[:1]))
    evaluator = InstanceSegEvaluator(name, distributed=False)
    with pytest.raises(DataError, match=r"a\.jpg: object 1: run lengths that do not add up"):
        evaluator.process([{"image_id": "a"}], [predicted(slice(1, 4), slice(1, 5))])


def test_panoptic_with_void_segments(registered: Any, tmp_path: Path) -> None:
    ids = np.full(SIZE, 1)
    ids[1:4, 1:5], ids[4:, :] = 2, 3
    path = str(save(tmp_path / "a.png", id_to_rgb(ids)))
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 0}]
    truth = record(pan_seg_file_name=path, segments_info=segments, void_segments=[3])
    name = registered([truth], ignore_label=255, **panoptic_metadata(CATEGORIES))
    found = torch.from_numpy(ids.copy())
    found[4:] = 1  # the void is all that differs
    shown = [{"id": 1, "category_id": 1, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}]
    evaluator = COCOPanopticEvaluator(name, distributed=False)
    evaluator.process([{"image_id": "a"}], [{"panoptic_seg": (found, shown)}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)

    things = InstanceSegEvaluator(name, distributed=False)
    things.process([{"image_id": "a"}], [predicted(slice(1, 4), slice(1, 5))])
    results = things.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(100)

    semantic = SemSegEvaluator(name, distributed=False)
    labels = torch.from_numpy(np.where(ids == 2, 0, 1))
    semantic.process([{"image_id": "a"}], [{"sem_seg": labels}])
    results = semantic.evaluate()
    assert results is not None
    assert results["sem_seg"]["pACC"] == pytest.approx(100)


def test_label_maps_of_other_values(registered: Any, tmp_path: Path) -> None:
    values = np.zeros(SIZE, np.uint8)
    values[:, 4:] = 200
    path = str(save(tmp_path / "a.png", values))
    truth = record(sem_seg_file_name=path, sem_seg_values={0: 1, 200: 0})
    evaluator = SemSegEvaluator(registered([truth], stuff_classes=["a", "b"], ignore_label=255), distributed=False)
    evaluator.process([{"image_id": "a"}], [{"sem_seg": torch.from_numpy(np.where(values == 0, 1, 0))}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)


def test_without_annotations_nothing_is_scored(registered: Any, tmp_path: Path) -> None:
    name = registered([record()], **instance_metadata(CATEGORIES[:1]))
    evaluator = InstanceSegEvaluator(name, str(tmp_path), distributed=False)
    evaluator.process([{"image_id": "a"}], [predicted(slice(1, 4), slice(1, 5))])
    assert evaluator.evaluate() == {}
