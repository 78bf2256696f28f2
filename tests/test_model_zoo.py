from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mask2former import model_zoo
from mask2former.checkpoint import CheckpointError

R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep"


def test_every_published_model_has_a_config_and_a_checkpoint() -> None:
    names = model_zoo.list_models()
    assert len(names) == len(set(names)) == 47
    for name in names:
        assert model_zoo.get_config_file(name).is_file()
        assert model_zoo.get_checkpoint_url(name).endswith(".pkl")


def test_configs_come_by_name_with_and_without_suffix() -> None:
    cfg = model_zoo.get_config(f"{R50}.yaml", trained=True)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    assert model_zoo.get_checkpoint_url(R50) == cfg.MODEL.WEIGHTS
    assert model_zoo.get_config(R50).MODEL.WEIGHTS.startswith("detectron2://")


def test_models_are_built_in_evaluation_mode() -> None:
    model = model_zoo.get_model("quickstart/panoptic", device="cpu")
    assert not model.training
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 32, 48, dtype=torch.uint8)}])
    assert result["sem_seg"].shape == (8, 32, 48)


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(KeyError, match=f"did you mean {R50}"):
        model_zoo.get_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50eps")
    with pytest.raises(KeyError, match="no published model is named 'quickstart/panoptic'"):
        model_zoo.get_model("quickstart/panoptic", trained=True)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the checkpoint of the quickstart's model is taken to be published."""
    path = tmp_path / "model_final.pth"
    monkeypatch.setattr("mask2former.checkpoint.configs.get_checkpoint_url", lambda name: str(path))
    return path


def test_a_published_checkpoint_fills_the_model_and_may_hold_more(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = model_zoo.get_model("quickstart/panoptic").state_dict()
    weights = {name: w + 1 if w.is_floating_point() else w for name, w in weights.items()}
    torch.save({"model": weights | {"sem_seg_head.bookkeeping": torch.zeros(1)}}, published)
    model = model_zoo.get_model("quickstart/panoptic", trained=True, device="cpu")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert "skipped" in caplog.text


def test_a_published_checkpoint_that_leaves_a_gap_is_refused(published: Path) -> None:
    weights = model_zoo.get_model("quickstart/panoptic").state_dict()
    del weights["sem_seg_head.predictor.mask_embed.layers.0.bias"]
    torch.save({"model": weights}, published)
    with pytest.raises(CheckpointError, match="does not complete the model"):
        model_zoo.get_model("quickstart/panoptic", trained=True)
