"""`mask2former train --data` from a folder to a model, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mask2former.cli.commands import main
from tests.helpers.blobs import make_instances, make_label_maps
from tests.helpers.training import restored_logging

ROOT = Path(__file__).parents[2]
TINY = (
    *(
        "SOLVER.IMS_PER_BATCH",
        "2",
        "SOLVER.MAX_ITER",
        "2",
        "INPUT.IMAGE_SIZE",
        "64",
        "MODEL.MASK_FORMER.DEC_LAYERS",
        "2",
    ),
    *("DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0"),
)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "FVCORE_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(*words: str) -> int:
    """The exit status of the command in this process."""
    with restored_logging(), pytest.raises(SystemExit) as end:
        main(["train", *words])
    status: int = end.value.code or 0  # type: ignore[assignment]
    return status


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_from_a_folder_to_a_model(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_instances(folder / "blobs")
    words = ("--data", "blobs", "--from-scratch", "--output", "run", *TINY)
    done = run(folder, "-m", "mask2former", "train", *words)
    assert done.returncode == 0, done.stderr
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES 2 classes of the data" in rows
    assert "SOLVER.MAX_ITER 2 given" in rows
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"data.yaml", "config.yaml", "config_full.yaml", "model_final.pth", "log.txt", "metrics.json"} <= names
    short = yaml.safe_load((folder / "run/config.yaml").read_text(encoding="utf-8"))
    assert short["_BASE_"].endswith("small.yaml")
    assert short["SOLVER"]["MAX_ITER"] == 2

    tool = (str(ROOT / "tools/train_net.py"), "--config-file", "run/config.yaml")
    done = run(folder, *tool, "--eval-only", "MODEL.WEIGHTS", "run/model_final.pth")
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout
    assert train("--data", "blobs", "--output", "run", "--resume", "SOLVER.MAX_ITER", "3") == 0
    assert "Resuming at iteration 2" in caplog.text
    assert not (folder / "run/config.yaml.old").exists()


def test_a_dry_run_writes_what_the_same_command_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_label_maps(folder / "maps")
    assert train("--data", "maps", "--dry-run", "--output", "run", "SOLVER.IMS_PER_BATCH", "2") == 0
    assert "nothing is trained" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["config.yaml", "data.yaml"]
    first = (folder / "run/config.yaml").read_text(encoding="utf-8")
    assert "WEIGHTS: zoo://ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k" in first
    assert train("--data", "run/data.yaml", "--dry-run", "--output", "run", "SOLVER.IMS_PER_BATCH", "2") == 0
    assert (folder / "run/config.yaml").read_text(encoding="utf-8") == first
    assert not (folder / "run/data.yaml.old").exists()


def test_several_data_sets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("maps", "more"):
        make_label_maps(folder / name)
    words = ["--data", "maps", "--data", "more:0.3", "--dry-run", "--output", "run", "SOLVER.IMS_PER_BATCH", "2"]
    assert train(*words) == 0
    assert "2 data sets, for semantic segmentation" in capsys.readouterr().out
    short = yaml.safe_load((folder / "run/config.yaml").read_text(encoding="utf-8"))
    assert short["DATASETS"]["TRAIN"] == ["maps_train", "more_train"]
    assert short["DATASETS"]["RATIOS"] == [1.0, 0.3]


def test_weights_that_cannot_be_had_end_with_the_ways_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_instances(folder / "blobs")
    assert train("--data", "blobs", "--weights", "none.pth", "--output", "run", *TINY) == 1
    said = capsys.readouterr().err
    assert "none.pth" in said
    assert "--from-scratch" in said
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--epochs", "3"], "--epochs goes with --data"),
        (["--from-scratch"], "--from-scratch goes with --data"),
        (["--data", "x", "--config-file", "y.yaml"], "--data and --config-file are two ways"),
        (["--data", "x", "--from-scratch", "--weights", "y.pth"], "not allowed with"),
    ],
)
def test_arguments_that_do_not_go_together(
    folder: Path, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*words) == 2
    assert problem in capsys.readouterr().err


def test_one_process_prepares(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--data", "x") == 2
    assert "--dry-run in one process" in capsys.readouterr().err
