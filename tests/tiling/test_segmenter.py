"""Images that a model sees in tiles because its config says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mask2former import Predictor
from mask2former.d2.config import CfgNode
from mask2former.engine import builders
from mask2former.engine.checks import SetupError, check_tiles
from mask2former.tiling import TiledSegmenter, Tiles, in_tiles, predict_in_tiles
from tests.helpers.brightness_model import BrightnessModel, brightness_config
from tests.tiling.test_tiles import scene, segment


def segment_batch(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `segment` finds in images that are enlarged to the size of the output first."""
    found = []
    for inputs in batch:
        image = inputs["image"].numpy().transpose(1, 2, 0)
        rows, columns = (
            np.arange(inputs[key]) * source // inputs[key]
            for key, source in zip(("height", "width"), image.shape, strict=False)
        )
        found.append(segment(np.ascontiguousarray(image[rows][:, columns])))
    return found


def inputs_of(image: np.ndarray, times: int = 1) -> dict[str, Any]:
    height, width = image.shape[:2]
    return {"image": torch.from_numpy(image.transpose(2, 0, 1)), "height": times * height, "width": times * width}


def test_tiles_of_prepared_images() -> None:
    """As of images that nothing resizes."""
    image = scene()
    (found,) = TiledSegmenter(segment_batch, Tiles(64))([inputs_of(image)])
    expected = predict_in_tiles(image, Tiles(64), lambda parts: map(segment, parts))
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert np.array_equal(np.asarray(found["instances"].pred_masks), np.asarray(expected["instances"].pred_masks))


def test_outputs_have_the_size_that_is_asked_for() -> None:
    image = scene()
    whole = segment(image)["panoptic_seg"][0]
    (found,) = TiledSegmenter(segment_batch, Tiles(64))([inputs_of(image, times=3)])
    ids, segments = found["panoptic_seg"]
    assert ids.shape == (360, 510)
    assert len(segments) == int(whole.max())
    for number in whole.unique():  # each object is one, where it was
        (match,) = ids[1::3, 1::3][whole == number].unique()
        assert ((ids[1::3, 1::3] == match) == (whole == number)).all()
    assert found["instances"].image_size == (360, 510)


def test_a_single_tile_is_left_alone() -> None:
    image = scene()
    (found,) = TiledSegmenter(segment_batch, Tiles(200))([inputs_of(image)])
    assert isinstance(found["instances"].pred_masks, torch.Tensor)
    assert torch.equal(found["instances"].pred_masks, segment(image)["instances"].pred_masks)


def tiled_config(size: int, stride: int = 0) -> CfgNode:
    cfg = brightness_config()
    cfg.TEST.TILE_SIZE, cfg.TEST.TILE_STRIDE = size, stride
    return cfg


@pytest.mark.parametrize("compact", [False, True])
def test_predictor(compact: bool) -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    image[4:20, 10:50] = 200
    cfg = tiled_config(24, 12)
    cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS = compact
    predictor = Predictor(cfg, allow_missing_weights=True)
    predictor.model.threshold.data.fill_(100)
    found = predictor(image)["sem_seg"]
    labels = found if compact else found.argmax(dim=0)
    assert torch.equal(labels == 0, torch.from_numpy(image[:, :, 0] > 100))
    assert {tuple(part["image"].shape[1:]) for part in predictor.model.received} == {(24, 24)}
    assert len(predictor.model.received) == 2 * 5


def test_what_is_exported_is_the_model_and_not_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Any] = []
    monkeypatch.setattr("mask2former.export.export_model", lambda model, *_, **__: exported.append(model))
    Predictor(tiled_config(24), allow_missing_weights=True).export("model.onnx")
    assert type(exported[0]) is BrightnessModel


def test_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    monkeypatch.setattr(builders, "inference_on_dataset", lambda model, *_: models.append(model) or {})
    monkeypatch.setattr(builders.Builders, "build_test_loader", lambda *_: [])
    model = nn.Identity()
    for cfg in (tiled_config(0), tiled_config(32, 16)):
        cfg.DATASETS.TEST = ("a",)
        builders.Builders.test(cfg, model, [None])
    assert models[0] is model
    assert models[1].segmenter is model
    assert (models[1].tiles.sides, models[1].tiles.steps) == ((32, 32), (16, 16))


def test_whole_images_by_default() -> None:
    model = nn.Identity()
    assert in_tiles(tiled_config(0), model) is model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TEST.TILE_SIZE": -1}, "TILE_SIZE.*at least 1 pixel"),
        ({"TEST.TILE_SIZE": 32, "TEST.TILE_STRIDE": 40}, "TILE_STRIDE.*must lie in 1..32"),
        ({"TEST.TILE_SIZE": 32, "TEST.AUG.ENABLED": True}, "whole images"),
        ({"TEST.TILE_SIZE": 32, "MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS": True}, "COMPACT_OUTPUTS"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    cfg = brightness_config()
    cfg.merge_from_list([part for change in changes.items() for part in change])
    with pytest.raises(SetupError, match=message):
        check_tiles(cfg)
