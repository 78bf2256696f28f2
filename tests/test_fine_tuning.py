"""The recipe of docs/fine_tuning.md, with a small model in place of the published one."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mask2former.checkpoint.published import get_checkpoint_url
from mask2former.config import get_cfg
from mask2former.d2.config_file import merge_config_file
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import register_coco_panoptic
from mask2former.engine.setup import default_argument_parser
from tests.helpers.models import small_cfg, small_model
from tests.helpers.training import restored_logging
from tools.train_net import main

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = [
    {"id": 5, "name": "bright", "isthing": 1},
    {"id": 7, "name": "dark", "isthing": 1},
    {"id": 9, "name": "ground", "isthing": 0},
]
COCO_CLASSES = 133
ITERATIONS = 30


def write_images(root: Path, count: int) -> None:
    """Write grey images with a bright and a dark square, in COCO's panoptic format."""
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    rng = np.random.default_rng(0)
    annotations = []
    for i in range(count):
        image = rng.integers(100, 140, (64, 64, 3), dtype=np.uint8)
        ids = np.full((64, 64, 3), (3, 0, 0), dtype=np.uint8)
        for number, (value, column) in enumerate(((240, 0), (15, 32)), start=1):
            y, x = rng.integers(0, 32, 2)
            square = (slice(y, y + 24), slice(column + x // 4, column + x // 4 + 24))
            image[square], ids[square] = value, (number, 0, 0)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(ids).save(root / "panoptic" / f"{i}.png")
        segments = [{"id": n, "category_id": c, "iscrowd": 0} for n, c in ((1, 5), (2, 7), (3, 9))]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(count)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "panoptic.json").write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path):
    """The sets `garden_train` and `garden_val` of the recipe."""
    for split, count in (("train", 8), ("val", 2)):
        folder = tmp_path / split
        write_images(folder, count)
        register_coco_panoptic(
            f"garden_{split}",
            image_root=folder / "images",
            panoptic_root=folder / "panoptic",
            panoptic_json=folder / "panoptic.json",
        )
    yield tmp_path
    for split in ("train", "val"):
        DatasetCatalog.remove(f"garden_{split}")
        MetadataCatalog.remove(f"garden_{split}")


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A model of COCO's classes, in the published format and where a download would put it."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    state = small_model(MODEL__SEM_SEG_HEAD__NUM_CLASSES=COCO_CLASSES).state_dict()
    url = get_checkpoint_url("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep")
    file = tmp_path / "cache" / url.partition("//")[2].partition("/")[2]
    file.parent.mkdir(parents=True)
    content = {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "me"}
    file.write_bytes(pickle.dumps(content))
    return state


def recipe() -> str:
    """Return the YAML of the guide."""
    guide = (ROOT / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", guide, re.M | re.S)
    return block


def test_recipe_fits_the_published_config(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "fine_tune.yaml").write_text(recipe())
    cfg = get_cfg()
    merge_config_file(cfg, tmp_path / "fine_tune.yaml")
    base = get_cfg()
    merge_config_file(base, tmp_path / yaml.safe_load(recipe())["_BASE_"])
    assert "zoo://" + str(Path(yaml.safe_load(recipe())["_BASE_"]).with_suffix(""))[8:] == cfg.MODEL.WEIGHTS
    assert cfg.SOLVER.BASE_LR / cfg.SOLVER.IMS_PER_BATCH == base.SOLVER.BASE_LR / base.SOLVER.IMS_PER_BATCH
    assert cfg.SOLVER.STEPS[-1] < cfg.SOLVER.MAX_ITER


def test_coco_checkpoint_learns_three_classes(data, checkpoint, tmp_path, caplog):
    small = small_cfg(
        INPUT__DATASET_MAPPER_NAME="coco_panoptic_lsj",
        INPUT__IMAGE_SIZE=64,
        INPUT__MIN_SIZE_TEST=64,
        DATALOADER__NUM_WORKERS=0,
        SEED=3,
    )
    (tmp_path / "small.yaml").write_text(small.dump())
    (tmp_path / "fine_tune.yaml").write_text(re.sub("_BASE_: .*", "_BASE_: small.yaml", recipe()))
    output = tmp_path / "out"
    options = ["--config-file", str(tmp_path / "fine_tune.yaml"), "OUTPUT_DIR", str(output)]
    options += ["SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.STEPS", "(28,)", "SOLVER.BASE_LR", "0.003"]
    with restored_logging():
        main(default_argument_parser().parse_args(options))

    assert "Rows of the class head kept by name: none. New, with random values: bright, dark, ground" in caplog.text
    assert "re-initialised" not in caplog.text
    assert "missing in the file" not in caplog.text
    assert "skipped" not in caplog.text
    trained = torch.load(output / "model_final.pth", weights_only=True)["model"]
    heads = {name for name in trained if trained[name].shape != checkpoint[name].shape}
    prefix = "sem_seg_head.predictor.class_embed"
    assert heads == {f"{prefix}.weight", f"{prefix}.bias", "criterion.empty_weight"}
    assert trained[f"{prefix}.weight"].shape == (4, 32)
    # What was loaded is where training went on from: at this rate nothing moves far in these steps.
    name = "sem_seg_head.predictor.query_feat.weight"
    assert 0 < (trained[name] - checkpoint[name]).abs().max() < 0.1
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == ITERATIONS - 1
    # At a rate of 0.001 these steps end between 7 and 77 by the seed, whether or not the row of "no object" is kept.
    assert lines[-1]["sem_seg/mIoU"] > 50  # "ground" everywhere would have 28
    assert lines[-1]["panoptic_seg/PQ"] > 50
    assert lines[-1]["segm/AP50"] > 50
