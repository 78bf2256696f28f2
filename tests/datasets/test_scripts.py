"""The commands in `datasets/`, and the guide to them."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.layouts import make_ade20k, make_coco_panoptic

FOLDER = Path(__file__).parents[2] / "datasets"
SCRIPTS = sorted(path.name for path in FOLDER.glob("prepare_*.py"))


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_guide(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, script, "--help")
    output = capsys.readouterr().out
    assert f"python datasets/{script}" in output
    assert "/data/" in "".join(output.split())
    assert f"python datasets/{script}" in (FOLDER / "README.md").read_text()


def test_a_partial_set_is_converted_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make_ade20k(tmp_path)
    run(monkeypatch, "prepare_ade20k_panoptic.py", "--workers", "2")
    assert "2 images, the complete set has 20210" in caplog.text
    assert (tmp_path / "ADEChallengeData2016" / "ade20k_panoptic_train.json").is_file()


def test_root_names_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_coco_panoptic(tmp_path)
    run(monkeypatch, "prepare_coco_sem_seg.py", "--root", str(folder), "--workers", "1")
    assert (folder / "panoptic_semseg_train2017" / "000000000009.png").is_file()


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "prepare_cityscapes.py"])
def test_wrong_folder(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=rf"error: no .*{tmp_path}.*; unpack"):
        run(monkeypatch, script, "--root", str(tmp_path))


def test_workers_must_be_positive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "prepare_ade20k_sem_seg.py", "--workers", "0")
    assert "--workers must be at least 1" in capsys.readouterr().err
