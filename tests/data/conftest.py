"""A small panoptic set on disk, drawn once and copied for each test, so that a test may damage its copy."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import register_coco_panoptic
from mask2former.data.datasets.shapes import CATEGORIES, write_split

COUNT = 12


@dataclass
class PanopticSet:
    """Paths of a registered copy."""

    name: str
    root: Path

    @property
    def json(self) -> Path:
        return self.root / "annotations" / "panoptic_train2017.json"

    @property
    def images(self) -> list[Path]:
        return sorted((self.root / "train2017").iterdir())

    @property
    def pngs(self) -> list[Path]:
        return sorted((self.root / "panoptic_train2017").iterdir())

    def edit(self, change: Any) -> None:
        """Calls `change` with the parsed JSON and writes it back."""
        content = json.loads(self.json.read_text())
        change(content)
        self.json.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    for _ in write_split(root, "train", COUNT, size=(64, 80)):
        pass
    return root


@pytest.fixture
def panoptic_set(drawn: Path, tmp_path: Path) -> Iterator[PanopticSet]:
    root = tmp_path / "shapes"
    shutil.copytree(drawn, root)
    register_coco_panoptic(
        "test_shapes",
        image_root=root / "train2017",
        panoptic_root=root / "panoptic_train2017",
        panoptic_json=root / "annotations" / "panoptic_train2017.json",
        instances_json=root / "annotations" / "instances_train2017.json",
        categories=CATEGORIES,
    )
    yield PanopticSet("test_shapes", root)
    DatasetCatalog.remove("test_shapes")
    MetadataCatalog.remove("test_shapes")


@pytest.fixture
def cfg() -> CfgNode:
    """Large-scale jitter to 64 pixels on the small set, with seed 3 and no workers."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("test_shapes",)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    cfg.INPUT.IMAGE_SIZE = 64
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.MODEL.DEVICE = "cpu"
    cfg.SEED = 3
    return cfg
