"""Tiles as an option of the predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.checkpoint.description import describe
from mask2former.d2.modeling import build_model
from mask2former.predict.predictor import Predictor
from tests.helpers.brightness_model import brightness_config
from tests.helpers.models import small_cfg

CATEGORIES = [{"id": 7, "name": "boat", "isthing": 1}, {"id": 3, "name": "water", "isthing": 0}]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a model that finds what is bright."""
    cfg = brightness_config()
    cfg.MODEL.CATEGORIES = CATEGORIES
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    torch.save({"model": {"threshold": torch.tensor(100.0)}, **describe(cfg)}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a true model with random weights."""
    torch.manual_seed(0)
    cfg = small_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=2, INPUT__MIN_SIZE_TEST=48)
    cfg.MODEL.CATEGORIES = CATEGORIES
    path = tmp_path_factory.mktemp("small") / "model.pth"
    torch.save({"model": build_model(cfg).state_dict(), **describe(cfg)}, path)
    return path


def bright_bar() -> np.ndarray:
    image = np.zeros((32, 120, 3), dtype=np.uint8)
    image[8:24, 16:104] = 200
    return image


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_one_tile_that_covers_the_image_gives_the_plain_results(small: Path, task: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 97, 3), dtype=np.uint8)
    plain, tiled = (Predictor(small, task=task, threshold=0.0, tile=tile)(image) for tile in (None, 97))
    assert len(plain)
    assert plain.masks.rle() == tiled.masks.rle()
    for name in ("classes", "boxes", "scores", "areas"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(tiled, name))
    if task != "instance":
        np.testing.assert_array_equal(plain.label_map, tiled.label_map)
        assert plain.label_map.dtype == tiled.label_map.dtype
    if task != "semantic":  # random weights find one class everywhere, see below
        smaller = Predictor(small, task=task, threshold=0.0, tile=60)(image)
        assert smaller.masks.rle() != plain.masks.rle()


def test_one_tile_that_covers_the_image_gives_the_plain_scores(small: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 97, 3), dtype=np.uint8)
    plain, same, other = (Predictor.from_checkpoint(small, tile=tile)(image)["sem_seg"] for tile in (None, 97, 60))
    assert torch.equal(plain, same)
    assert other.shape == plain.shape
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_an_object_of_several_tiles_is_one(checkpoint: Path, task: str) -> None:
    options: dict[str, Any] = {"task": task, "max_instances": 1, "threshold": 0.0}
    predictor = Predictor(checkpoint, tile=(32, 60), stride=(32, 30), **options)
    found = predictor(bright_bar())
    assert [inputs["image"].shape for inputs in predictor.model.received] == 3 * [(3, 32, 60)]
    assert [segment.name for segment in found] == ["boat", "water"][: len(found)]
    np.testing.assert_array_equal(found.masks[0], bright_bar()[:, :, 0] == 200)
    whole = Predictor(checkpoint, **options)(bright_bar())
    assert found.masks.rle() == whole.masks.rle()
    np.testing.assert_array_equal(found.scores, whole.scores)


def test_tiles_run_together_and_images_stay_in_their_order(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, task="instance", tile=60, stride=30)
    sizes: list[int] = []
    model = predictor.model

    def watch(batch: list[dict[str, Any]]) -> Any:
        sizes.append(len(batch))
        return model(batch)

    predictor.model = watch
    images = [bright_bar(), bright_bar()[:, :50], bright_bar()[:, ::-1]]
    results = predictor.predict(images, batch_size=2)
    assert sizes == [2, 1, 1, 2, 1]
    assert [result.size for result in results] == [(32, 120), (32, 50), (32, 120)]
    assert [len(result) for result in results] == [3, 3, 3]
    np.testing.assert_array_equal(results[1].masks[0], images[1][:, :, 0] == 200)


def test_scores_below_the_threshold_are_left_out_before_tiles_are_joined(checkpoint: Path) -> None:
    found = Predictor(checkpoint, task="instance", threshold=0.8, tile=60, stride=30)(bright_bar())
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.areas.tolist() == [16 * 88]
    assert len(Predictor(checkpoint, task="instance", threshold=0.0, max_instances=4, tile=60)(bright_bar())) == 4


def test_scores_of_a_config_stay_scores(checkpoint: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, tile=60)
    assert predictor(bright_bar())["sem_seg"].shape == (2, 32, 120)
    assert predictor(bright_bar()[:, :50])["sem_seg"].shape == (2, 32, 50)
    for width in (50, 120):
        labels = Predictor(checkpoint, task="semantic", tile=60)(bright_bar()[:, :width])["sem_seg"]
        assert (labels.shape, labels.dtype) == ((32, width), torch.int16)


def test_wrong_tiles(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="a stride needs tiles"):
        Predictor(checkpoint, stride=60)
    with pytest.raises(ValueError, match=r"the stride 80 of tiles of 60 must lie in 1\.\.60"):
        Predictor(checkpoint, tile=60, stride=80)
