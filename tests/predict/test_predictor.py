"""The predictor: channel order, size, weights, and limits on instances."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mask2former import get_cfg
from mask2former.checkpoint import CheckpointError
from mask2former.d2.config import CfgNode
from mask2former.d2.data import MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.engine.setup import load_cfg
from mask2former.predict.predictor import Predictor
from tests.helpers.brightness_model import brightness_config
from tests.helpers.models import small_cfg


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    torch.save({"threshold": torch.tensor(100.0)}, tmp_path / "weights.pth")
    cfg = brightness_config()
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.PANOPTIC_ON = test.INSTANCE_ON = True
    cfg.freeze()
    return cfg


def half_bright(height: int = 40, width: int = 60) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, width // 2 :] = 200
    return image


def test_outputs_at_the_size_of_the_image(cfg: CfgNode) -> None:
    predictor = Predictor(cfg)
    output = predictor(half_bright())
    ids, segments = output["panoptic_seg"]
    np.testing.assert_array_equal(ids.numpy(), half_bright()[:, :, 0] > 0)
    assert len(segments) == 1
    assert output["sem_seg"].shape == (2, 40, 60)
    (received,) = predictor.model.received
    assert received["image"].shape == (3, 32, 48)
    assert received["image"].dtype == torch.uint8
    assert not predictor.model.training
    assert not output["sem_seg"].requires_grad


@pytest.mark.parametrize("model_format", ["RGB", "BGR"])
@pytest.mark.parametrize("input_format", ["RGB", "BGR"])
def test_channel_order(cfg: CfgNode, model_format: str, input_format: str) -> None:
    cfg.defrost()
    cfg.INPUT.FORMAT = model_format
    predictor = Predictor(cfg, input_format=input_format)
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, :, input_format.index("R")] = 255
    predictor(image)
    received = predictor.model.received[0]["image"]
    assert received.float().mean(dim=(1, 2)).tolist() == [255.0 * (channel == "R") for channel in model_format]


def test_instances_are_limited_and_sorted(cfg: CfgNode) -> None:
    image = half_bright()
    assert Predictor(cfg)(image)["instances"].scores.tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    over_half = Predictor(cfg, score_threshold=0.5)(image)["instances"]
    assert over_half.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert over_half.pred_masks.shape == (3, 40, 60)
    predictor = Predictor(cfg, max_instances=2)
    assert predictor(image)["instances"].scores.tolist() == pytest.approx([0.9, 0.1])
    assert predictor.cfg.TEST.DETECTIONS_PER_IMAGE == 2
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert len(Predictor(cfg, score_threshold=1.0)(image)["instances"]) == 0


def test_metadata(cfg: CfgNode) -> None:
    assert Predictor(cfg).metadata.get("thing_classes") is None
    cfg.defrost()
    cfg.DATASETS.TEST = ("a_set_to_draw",)
    assert Predictor(cfg).metadata is MetadataCatalog.get("a_set_to_draw")
    MetadataCatalog.remove("a_set_to_draw")


def test_random_weights_are_refused_unless_asked_for(
    cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(cfg)
    Predictor(cfg, allow_missing_weights=True)
    assert "MODEL.WEIGHTS is empty" in caplog.text
    cfg.MODEL.WEIGHTS = "nowhere.pth"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Predictor(cfg)


def test_weights_that_leave_a_gap_are_refused_unless_asked_for(tmp_path: Path) -> None:
    cfg = small_cfg()
    weights = build_model(cfg).state_dict()
    cfg.MODEL.WEIGHTS = str(tmp_path / "gap.pth")
    del weights["sem_seg_head.predictor.class_embed.bias"]
    torch.save({"model": weights}, cfg.MODEL.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"gap\.pth does not complete the model.*random"):
        Predictor(cfg)
    Predictor(cfg, allow_missing_weights=True)
    weights["sem_seg_head.predictor.class_embed.bias"] = torch.zeros(99)  # of other classes
    torch.save({"model": weights}, cfg.MODEL.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"re-initialised \(classes differ\) +1"):
        Predictor(cfg)


CATEGORIES = [{"name": "boat", "isthing": 1, "color": [1, 2, 3]}, {"name": "water", "isthing": 0, "color": [4, 5, 6]}]


@pytest.mark.parametrize("source", ["config", "checkpoint"])
def test_classes_need_no_registration(source: str, tmp_path: Path) -> None:
    cfg = small_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=2, DATASETS__TRAIN=("unknown_train",))
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    content = {"model": build_model(cfg).state_dict()}
    if source == "config":
        cfg.MODEL.CATEGORIES = CATEGORIES
    else:
        content["categories"] = CATEGORIES
    torch.save(content, cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    predictor = Predictor(load_cfg(get_cfg(), str(tmp_path / "config.yaml")))
    assert predictor.metadata.stuff_classes == ["boat", "water"]
    assert predictor.metadata.stuff_colors == [[1, 2, 3], [4, 5, 6]]
    assert predictor.model.thing_ids == {0}
    assert "panoptic_seg" in predictor(np.zeros((40, 60, 3), np.uint8))
    MetadataCatalog.remove("unknown_train")


def test_without_a_gpu_the_cpu_predicts(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    assert Predictor(cfg).cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 50}, "score_threshold must lie in 0..1, not 50"),
        ({"max_instances": 0}, "max_instances must be at least 1"),
        ({"input_format": "L"}, "input_format must be BGR or RGB, not 'L'"),
    ],
)
def test_wrong_options(cfg: CfgNode, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Predictor(cfg, **options)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (3, 8, 8)])
def test_wrong_images(cfg: CfgNode, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected an image uint8"):
        Predictor(cfg)(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="float64"):
        Predictor(cfg)(np.zeros((8, 8, 3)))
