"""A small panoptic data set on disk, with everything that makes ground truth difficult."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.images import id_to_rgb
from tests.helpers.panoptic import CATEGORIES, CLASS_OF, Sample


@pytest.fixture
def make_dataset(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Returns a function that writes samples {image id: (ids, segments)} and registers them."""
    registered = []

    def make(samples: dict[int, Sample], **metadata: Any) -> str:
        name = f"{tmp_path.name}_{len(registered)}"
        root = tmp_path / name
        root.mkdir()
        annotations, records = [], []
        for image_id, (ids, segments) in samples.items():
            Image.fromarray(id_to_rgb(ids)).save(root / f"{image_id:06d}.png")
            annotations.append({"image_id": image_id, "file_name": f"{image_id:06d}.png", "segments_info": segments})
            records.append({"image_id": image_id, "file_name": f"{image_id:06d}.jpg"})
        images = [{"id": i, "height": ids.shape[0], "width": ids.shape[1]} for i, (ids, _) in samples.items()]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        names = [str(category["name"]) for category in CATEGORIES]
        DatasetCatalog.register(name, lambda: records)
        things = {c["id"]: CLASS_OF[c["id"]] for c in CATEGORIES if c["isthing"]}
        MetadataCatalog.get(name).set(
            thing_classes=[str(category["name"]) for category in CATEGORIES if category["isthing"]],
            stuff_classes=names,
            thing_dataset_id_to_contiguous_id=things,
            stuff_dataset_id_to_contiguous_id=CLASS_OF,
            panoptic_root=str(root),
            panoptic_json=str(tmp_path / f"{name}.json"),
            evaluator_type="coco_panoptic_seg",
            ignore_label=255,
            **metadata,
        )
        registered.append(name)
        return name

    yield make
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def as_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Returns a function that calls `evaluate` of evaluators as if each ran on a rank of its own.

    Every collective is answered with what all evaluators would send, found by a first round that records it.
    """
    from mask2former.d2 import comm

    def run(evaluators: list[Any]) -> list[Any]:
        sent: list[list[Any]] = []
        for evaluator in evaluators:
            calls: list[Any] = []

            def record(value: Any, calls: list[Any] = calls) -> list[Any]:
                calls.append(value)
                return [value]

            monkeypatch.setattr(comm, "gather", record)
            monkeypatch.setattr(comm, "all_gather", record)
            evaluator.evaluate()
            sent.append(calls)
        results = []
        for rank, evaluator in enumerate(evaluators):
            rounds = iter(zip(*sent, strict=True))
            answer = lambda value, rounds=rounds: list(next(rounds))  # noqa: E731
            monkeypatch.setattr(comm, "gather", answer)
            monkeypatch.setattr(comm, "all_gather", answer)
            monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 0)
            results.append(evaluator.evaluate())
        return results

    return run
