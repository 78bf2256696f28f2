"""`mask2former export`."""

import json
from pathlib import Path

import pytest
import torch

from mask2former.checkpoint.description import describe
from mask2former.cli import export as command
from mask2former.cli.commands import main
from mask2former.export import FORMATS
from tests.helpers.models import small_cfg, small_model


def test_the_choices_of_formats() -> None:
    assert tuple(FORMATS) == command.FORMATS


def test_from_a_checkpoint_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="not installed: pip install 'mask2former[export]'")
    from mask2former.export.onnx import OnnxSession

    cfg = small_cfg(MODEL__COMPILE=True, MODEL__MASK_FORMER__DEC_LAYERS=2)  # compiled is how the model trained
    cfg.MODEL.CATEGORIES = [{"name": f"class {i}", "isthing": 1} for i in range(5)]
    torch.save(
        {"model": small_model(MODEL__MASK_FORMER__DEC_LAYERS=2).state_dict(), **describe(cfg)}, tmp_path / "model.pth"
    )
    words = ["export", "--weights", str(tmp_path / "model.pth"), "--format", "onnx", "--size", "64x96"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--output", str(tmp_path / "model.onnx"), "INPUT.MIN_SIZE_TEST", "72"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert "\n2 x 64 x 96: class_logits " in text
    assert "\n1 x 64 x 96: class_logits " in text
    description = json.loads(OnnxSession(tmp_path / "model.onnx").metadata["mask2former"])
    assert [category["name"] for category in description["categories"]] == [f"class {i}" for i in range(5)]
    assert description["input"]["min_size"] == 72

    with pytest.raises(SystemExit, match="1"):
        main([*words, "--output", str(tmp_path / "other.onnx"), "--tolerance", "1e-12"])
    assert "differs from PyTorch by more than 1e-12" in capsys.readouterr().err
    assert not (tmp_path / "other.onnx").exists()
