"""`mask2former train` and `mask2former eval`, on the synthetic set with a small model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask2former import get_cfg
from mask2former.cli.commands import main
from mask2former.data.datasets.shapes import CATEGORIES, register_shapes, write_split
from mask2former.engine.setup import load_cfg
from tests.helpers.catalog import registered_below
from tests.helpers.models import small_cfg
from tests.helpers.training import restored_logging


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A config file for images that a module registers."""
    root = tmp_path_factory.mktemp("cli")
    for split, count in (("train", 4), ("val", 2)):
        list(write_split(root / "shapes", split, count, size=(64, 64)))
    cfg = small_cfg(
        DATASETS__TRAIN=("shapes_train",),
        DATASETS__TEST=("shapes_val",),
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=len(CATEGORIES),
        INPUT__DATASET_MAPPER_NAME="coco_panoptic_lsj",
        INPUT__IMAGE_SIZE=64,
        INPUT__MIN_SIZE_TEST=64,
        DATALOADER__NUM_WORKERS=0,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=(1,),
        SEED=5,
    )
    (root / "config.yaml").write_text(cfg.dump())
    with registered_below(root, register_shapes):
        yield root


def run(*words: str | Path) -> None:
    with restored_logging(), pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code


def test_train_writes_to_output_and_eval_scores_the_weights(folder: Path) -> None:
    output, again = folder / "trained", folder / "evaluated"
    run("train", "--config-file", folder / "config.yaml", "--output", output, "SOLVER.BASE_LR", "0.0002")
    assert load_cfg(get_cfg(), str(output / "config.yaml")).SOLVER.BASE_LR == 0.0002
    run("eval", "--config-file", output / "config.yaml", "--weights", output / "model_final.pth", "--output", again)
    assert not list(again.glob("*.pth"))
    during, after = (
        json.loads((path / "inference" / "shapes_val" / "panoptic_predictions.json").read_text())
        for path in (output, again)
    )
    assert during == after


def test_eval_scores_the_average_of_the_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output = folder / "config.yaml", folder / "averaged"
    run("train", "--config-file", config, "--output", output, "MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.5")
    run("eval", "--config-file", config, "--weights", output / "model_final.pth", "--output", folder / "ema", "--ema")
    during, after = (
        json.loads((path / "shapes_val" / "panoptic_predictions.json").read_text())
        for path in (output / "inference_EMA", folder / "ema" / "inference")
    )
    assert during == after
    raw = folder / "trained" / "model_final.pth"
    with restored_logging(), pytest.raises(SystemExit) as end:
        main(["eval", "--config-file", str(config), "--weights", str(raw), "--output", str(folder / "no"), "--ema"])
    assert end.value.code
    assert "holds no average of weights" in capsys.readouterr().err
