"""`mask2former convert`; what it writes is tested with the tools of the same functions."""

from pathlib import Path

import pytest
import torch

from mask2former.checkpoint import checkpoint_config
from mask2former.checkpoint.backbones import RENAMES
from mask2former.checkpoint.description import describe
from mask2former.cli.commands import main
from mask2former.cli.convert import KINDS
from mask2former.d2.modeling import build_model
from tests.helpers.transformers_models import our_cfg


def test_the_choices_of_kinds() -> None:
    assert set(KINDS) == set(RENAMES)


def test_a_checkpoint_needs_no_config_file(tmp_path: Path) -> None:
    cfg = our_cfg("resnet", num_classes=2)
    cfg.MODEL.CATEGORIES = [{"name": "boat", "isthing": 1}, {"name": "water", "isthing": 0}]
    torch.save({"model": build_model(cfg).state_dict(), **describe(cfg)}, tmp_path / "model.pth")
    with pytest.raises(SystemExit) as end:
        main(["convert", "transformers", str(tmp_path / "model.pth"), str(tmp_path / "new")])
    assert not end.value.code
    assert checkpoint_config(tmp_path / "new").MODEL.CATEGORIES == cfg.MODEL.CATEGORIES


def test_errors_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"odd": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(SystemExit, match="1"):
        main(["convert", "backbone", str(tmp_path / "odd.pth"), str(tmp_path / "new.pkl")])
    assert "odd.pth: these are no weights of" in capsys.readouterr().err
    assert not (tmp_path / "new.pkl").exists()
