"""The Ray Data recipe on a Ray of this machine alone; skipped where Ray is not installed, see the extra `ray`."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from mask2former.checkpoint.description import describe
from mask2former.predict import ray_data
from mask2former.predict.predictor import Predictor
from tests.helpers.brightness_model import brightness_config

MODULE = "tests.helpers.brightness_model"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: extra `ray`")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of a model that finds what is bright."""
    cfg = brightness_config()
    cfg.MODEL.CATEGORIES = [{"id": 7, "name": "boat", "isthing": 1}, {"id": 3, "name": "water", "isthing": 0}]
    torch.save({"model": {"threshold": torch.tensor(100.0)}, **describe(cfg)}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = importlib.import_module("ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="ERROR")
    yield ray
    ray.shutdown()


def pictures() -> dict[str, np.ndarray]:
    """Half bright, bright in a corner, and dark, of two sizes."""
    half, corner, dark = (np.zeros((40, width, 3), np.uint8) for width in (60, 60, 50))
    half[:, 30:] = 200
    corner[:20, :20] = 200
    return {"half.png": half, "corner.png": corner, "dark.png": dark}


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@needs_ray
def test_from_images_to_parquet_and_coco(ray: Any, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, pixels in pictures().items():
        (folder / name).write_bytes(png(pixels))
    (folder / "broken.png").write_bytes(b"no image")

    images = ray_data.read_images(str(folder))
    found = ray_data.predict_dataset(images, model, task="instance", threshold=0.6, batch_size=2, modules=[MODULE])
    found.write_parquet(str(tmp_path / "parquet"))
    stored = ray.data.read_parquet(str(tmp_path / "parquet"))
    rows = {Path(row["file_name"]).name: row for row in stored.take_all()}
    assert rows.keys() == {*pictures(), "broken.png"}
    assert "broken.png: cannot be read as an image" in rows["broken.png"]["error"]
    assert [row["error"] for name, row in rows.items() if name != "broken.png"] == [""] * 3

    assert ray_data.write_coco(stored, tmp_path / "found.json") == 3
    assert sorted(path.name for path in tmp_path.glob("found*")) == ["found.json"]
    coco = COCO(str(tmp_path / "found.json"))
    assert coco.dataset["categories"] == [{"id": 7, "name": "boat"}]
    assert len(coco.imgs) == 3
    predictor = Predictor(model, task="instance", threshold=0.6)
    for image in coco.imgs.values():
        pixels = pictures()[Path(image["file_name"]).name]
        assert (image["height"], image["width"]) == pixels.shape[:2]
        annotations = [coco.anns[i] for i in coco.getAnnIds(image["id"])]
        expected = predictor(pixels).to_coco(image_id=image["id"])
        assert [{**one, "id": 0} for one in annotations] == [{**one, "id": 0} for one in expected]
        assert len(annotations) == 2
    assert sorted(coco.anns) == [1, 2, 3, 4, 5, 6]


@needs_ray
def test_images_in_parquet_and_as_arrays(ray: Any, model: Path, tmp_path: Path) -> None:
    from mask2former.predict.ray_data import predict_dataset

    half = pictures()["half.png"]
    rows = [{"image": {"bytes": png(half), "path": "half.png"}, "id": 5}]
    ray.data.from_items(rows).write_parquet(str(tmp_path / "images"))
    options: dict[str, Any] = {"task": "semantic", "modules": [MODULE], "column": "image", "name": "id"}
    for dataset in (ray.data.read_parquet(str(tmp_path / "images")), ray.data.from_items([{"image": half, "id": 5}])):
        (row,) = predict_dataset(dataset, model, **options).take_all()
        assert (row["file_name"], row["height"], row["width"], row["error"]) == ("5", 40, 60, "")
        assert [(one["category"], one["area"], one["score"]) for one in row["annotations"]] == [
            ("boat", 1200, None),
            ("water", 1200, None),
        ]
    assert ray_data.write_coco(predict_dataset(dataset, model, **options), tmp_path / "found.json") == 1
    assert "score" not in json.loads((tmp_path / "found.json").read_text())["annotations"][0]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="ray")

    monkeypatch.setattr(ray_data, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"Ray Data needs ray.*mask2former\[ray\]"):
        ray_data.read_images("images")
