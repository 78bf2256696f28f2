"""The training tool on the synthetic set with a small Mask2Former: train, resume, evaluate, several processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mask2former import get_cfg
from mask2former.checkpoint import CheckpointError
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import register_images
from mask2former.data.datasets.shapes import CATEGORIES
from mask2former.engine.main import run_command_line
from mask2former.engine.setup import default_argument_parser, load_cfg
from mask2former.engine.trainer import Trainer
from tests.helpers.shapes import registered_shapes, shapes_cfg
from tests.helpers.training import restored_logging
from tools.train_net import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A synthetic set of 6 + 2 images, and a config file of a small model for it."""
    root = tmp_path_factory.mktemp("train_net")
    cfg = shapes_cfg(
        "tool_train",
        "tool_val",
        SOLVER__MAX_ITER=4,
        SOLVER__STEPS=(3,),
        SOLVER__CHECKPOINT_PERIOD=2,
        SEED=5,
    )
    (root / "config.yaml").write_text(cfg.dump())
    with registered_shapes(root / "shapes", "tool", train=6, val=2):
        yield root


def run(folder, output, *arguments, flags=()):
    parser = default_argument_parser()
    options = ["--config-file", str(folder / "config.yaml"), *flags, "OUTPUT_DIR", str(output), *arguments]
    with restored_logging():
        main(parser.parse_args(options))


def last_metrics(output):
    return json.loads((output / "metrics.json").read_text().splitlines()[-1])


def weights(output, name="model_final"):
    return torch.load(output / f"{name}.pth", weights_only=True)


@pytest.fixture(scope="module")
def trained(folder):
    output = folder / "trained"
    run(folder, output)
    return output


def test_trains_and_evaluates(trained):
    metrics = last_metrics(trained)
    assert metrics["iteration"] == 3
    assert math.isfinite(metrics["total_loss"])
    assert {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"} <= metrics.keys()
    assert {"config.yaml", "log.txt", "model_0000001.pth", "model_final.pth"} <= {p.name for p in trained.iterdir()}
    assert "PQ" in (trained / "log.txt").read_text()


def test_checkpoint_and_config_name_the_classes(trained):
    expected = [
        {key: category[key] for key in ("name", "isthing", "id")} | {"color": list(category["color"])}
        for category in CATEGORIES
    ]
    assert weights(trained)["categories"] == expected
    assert expected == load_cfg(get_cfg(), str(trained / "config.yaml")).MODEL.CATEGORIES


def test_resumed_run_with_other_workers_is_the_same_to_the_last_bit(folder, trained):
    output = folder / "resumed"
    output.mkdir()
    (output / "model_0000001.pth").write_bytes((trained / "model_0000001.pth").read_bytes())
    (output / "last_checkpoint").write_text("model_0000001.pth")
    run(folder, output, "DATALOADER.NUM_WORKERS", "2", flags=["--resume"])
    straight, resumed = weights(trained), weights(output)
    assert straight["iteration"] == resumed["iteration"] == 3
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    states = [state["optimizer"]["state"] for state in (straight, resumed)]
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][key][name])
    assert straight["scheduler"] == resumed["scheduler"]


def test_eval_only_scores_the_saved_weights(folder, trained):
    output = folder / "evaluated"
    run(folder, output, "MODEL.WEIGHTS", str(trained / "model_final.pth"), flags=["--eval-only"])
    assert not list(output.glob("*.pth"))
    saved = json.loads((output / "inference" / "tool_val" / "panoptic_predictions.json").read_text())
    during = json.loads((trained / "inference" / "tool_val" / "panoptic_predictions.json").read_text())
    assert saved == during


def test_random_weights_are_not_evaluated_unless_asked_for(folder, trained):
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS is empty"):
        run(folder, folder / "empty", "MODEL.WEIGHTS", "", flags=["--eval-only"])
    options = ("MODEL.WEIGHTS", str(trained / "model_final.pth"), "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "9")
    with pytest.raises(CheckpointError, match=r"model_final\.pth does not complete the model"):
        run(folder, folder / "partial", *options, flags=["--eval-only"])
    run(folder, folder / "partial", *options, flags=["--eval-only", "--allow-missing-weights"])
    assert (folder / "partial" / "inference" / "tool_val" / "panoptic_predictions.json").is_file()


def test_eval_only_with_test_time_augmentation(folder, trained):
    output = folder / "augmented"
    augmentation = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 48)", "TEST.AUG.FLIP", "True")
    run(folder, output, "MODEL.WEIGHTS", str(trained / "model_final.pth"), *augmentation, flags=["--eval-only"])
    assert (output / "inference" / "tool_val" / "panoptic_predictions.json").is_file()
    plain, augmented = (output / "log.txt").read_text().split("Evaluating with test-time augmentation")
    assert "panoptic_seg: PQ" in plain
    assert "sem_seg: mIoU" in augmented
    assert "panoptic_seg: PQ" not in augmented


def test_eval_only_writes_predictions_on_images_without_labels(folder, trained):
    register_images("tool_photos", image_root=folder / "shapes" / "val2017", like="tool_val")
    output = folder / "photos"
    options = ("MODEL.WEIGHTS", str(trained / "model_final.pth"), "DATASETS.TEST", "('tool_photos',)")
    try:
        run(folder, output, *options, flags=["--eval-only"])
    finally:
        DatasetCatalog.remove("tool_photos")
        MetadataCatalog.remove("tool_photos")
    predictions, scored = output / "inference" / "tool_photos", trained / "inference" / "tool_val"
    names = sorted(path.name for path in (scored / "panoptic_predictions").iterdir())
    assert len(names) == 2
    for kind in ("panoptic_predictions", "semantic_predictions"):
        assert sorted(path.name for path in (predictions / kind).iterdir()) == names
        for name in names:
            assert (predictions / kind / name).read_bytes() == (scored / kind / name).read_bytes()
    files = (root / "panoptic_predictions.json" for root in (predictions, scored))
    ours, theirs = (json.loads(file.read_text())["annotations"] for file in files)
    assert [a["segments_info"] for a in ours] == [a["segments_info"] for a in theirs]


def test_checkpoint_of_another_architecture_is_refused(folder, trained):
    with pytest.raises(CheckpointError, match=r"model_final\.pth"):
        run(folder, folder / "other", "MODEL.WEIGHTS", str(trained / "model_final.pth"), *SWIN)
    other = folder / "other_resumed"
    other.mkdir()
    (other / "model_final.pth").write_bytes((trained / "model_final.pth").read_bytes())
    (other / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(CheckpointError, match=r"model_final\.pth was made with another configuration"):
        run(folder, other, *SWIN, flags=["--resume"])


SWIN = (
    *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "12"),
    *("MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 1, 1, 1]"),
)


def test_strict_allows_no_difference(folder, trained):
    options = ("MODEL.WEIGHTS", str(trained / "model_final.pth"), "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "9")
    for flags in (("--strict",), ("--strict", "--eval-only")):
        with pytest.raises(CheckpointError, match=r"model_final\.pth does not fit the model exactly"):
            run(folder, folder / "strict", *options, flags=flags)


def test_misspelt_key_is_named(folder):
    with pytest.raises(KeyError, match=r"SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR"):
        run(folder, folder / "misspelt", "SOLVER.BASE_LRR", "0.1")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_two_processes_under_torchrun(folder):
    output = folder / "two"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("tools/train_net.py", "--config-file", str(folder / "config.yaml"), "OUTPUT_DIR", str(output)),
        *("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)", "SOLVER.MAX_ITER", "2"),
    ]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    metrics = last_metrics(output)
    assert metrics["iteration"] == 1
    assert "panoptic_seg/PQ" in metrics
    assert (output / "log.txt.rank1").is_file()
    assert (output / "model_final.pth").is_file()


def test_a_trainer_of_ones_own_evaluates_when_told_so(folder, trained, monkeypatch):
    class MyTrainer(Trainer):
        def train(self):
            raise AssertionError("trained, though told to evaluate")

    output = folder / "own"
    flags = ["--eval-only", "--config-file", str(folder / "config.yaml"), "OUTPUT_DIR", str(output)]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "MODEL.WEIGHTS", str(trained / "model_final.pth")])
    with restored_logging(), pytest.raises(SystemExit) as end:
        run_command_line(MyTrainer)
    assert not end.value.code
    assert (output / "inference" / "tool_val" / "panoptic_predictions.json").is_file()
