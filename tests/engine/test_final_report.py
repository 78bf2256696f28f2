"""The report at the end of a training, and the thresholds that checkpoints keep for predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.checkpoint import Checkpointer, read_checkpoint
from mask2former.d2.structures import Instances
from mask2former.engine.hooks import FinalReport
from mask2former.evaluation.curves import OperatingPoint
from mask2former.evaluation.details import Details
from mask2former.predict.predictor import Predictor, select_instances
from tests.helpers.brightness_model import SCORES, brightness_config
from tests.helpers.training import TinyTrainer, tiny_cfg


def details(dataset: str, thresholds: dict[str, float | None]) -> Details:
    points = [t and OperatingPoint(threshold=t, precision=1.0, recall=0.5) for t in thresholds.values()]
    number = len(thresholds)
    return Details(
        task="segm", dataset=dataset, unit="objects", score_name="F1", classes=list(thresholds), columns={},
        confusion=np.zeros((number + 2, number + 1), dtype=int).tolist(), images=[], precision=[[]] * number,
        points=points,
    )  # fmt: skip


class Scored(TinyTrainer):
    """Its evaluations find thresholds that say of which iteration they are."""

    def evaluate(self) -> dict[str, Any]:
        found = details("shapes_val", {"circle": 0.001 * (self.iter + 1), "star": None})
        found.write(Path(self.cfg.OUTPUT_DIR, "inference", "shapes_val"))
        details("shapes_val", {"circle": 0.5}).write(Path(self.cfg.OUTPUT_DIR, "inference_EMA", "shapes_val"))
        return {"segm": {"AP": float(self.evaluated.pop(0))}}


def train(folder: Path, *, aps: list[int], resume: bool = False, **changed: Any) -> Scored:
    cfg = tiny_cfg(folder, CHECKPOINT_PERIOD=2)
    cfg.TEST.EVAL_PERIOD = 2
    cfg.DATASETS.TEST = ("shapes_val",)
    cfg.merge_from_list([item for pair in changed.items() for item in (pair[0].replace("__", "."), pair[1])])
    trainer = Scored(cfg)
    trainer.evaluated = aps
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def thresholds(folder: Path, name: str) -> Any:
    return read_checkpoint(folder / f"{name}.pth").get("score_thresholds")


def test_checkpoints_hold_the_thresholds_of_their_own_evaluation(tmp_path: Path) -> None:
    train(tmp_path, aps=[1, 3, 2], SOLVER__BEST_CHECKPOINT__METRIC="segm/AP")
    assert thresholds(tmp_path, "model_final") == {"shapes_val": {"circle": 0.006}}
    assert thresholds(tmp_path, "model_best") == {"shapes_val": {"circle": 0.004}}
    assert thresholds(tmp_path, "model_0000003") is None  # saved before it was evaluated
    page = (tmp_path / "report.html").read_text()
    assert "6 iterations" in page
    assert "shapes_val" in page


def test_weights_and_their_average_have_thresholds_of_their_own(tmp_path: Path) -> None:
    train(tmp_path, aps=[1, 2, 3], MODEL_EMA__ENABLED=True)
    content = read_checkpoint(tmp_path / "model_final.pth")
    assert content["score_thresholds"] == {"shapes_val": {"circle": 0.006}}
    assert content["ema_score_thresholds"] == {"shapes_val": {"circle": 0.5}}
    train(tmp_path, aps=[1, 2, 3])  # what an earlier run has left does not count
    assert "ema_score_thresholds" not in read_checkpoint(tmp_path / "model_final.pth")


def test_after_an_early_end(tmp_path: Path) -> None:
    train(tmp_path, aps=[3, 2], SOLVER__EARLY_STOP__METRIC="segm/AP", SOLVER__EARLY_STOP__PATIENCE=1)
    assert thresholds(tmp_path, "model_final") == {"shapes_val": {"circle": 0.004}}
    assert "4 iterations" in (tmp_path / "report.html").read_text()


def test_a_finished_run_that_resumes_keeps_them(tmp_path: Path) -> None:
    train(tmp_path, aps=[1, 2, 3])
    (tmp_path / "report.html").unlink()
    train(tmp_path, aps=[4], resume=True)
    assert thresholds(tmp_path, "model_final") == {"shapes_val": {"circle": 0.006}}
    assert (tmp_path / "report.html").exists()


def test_off(tmp_path: Path) -> None:
    trainer = train(tmp_path, aps=[1, 2, 3], TEST__REPORT=False)
    assert not any(isinstance(hook, FinalReport) for hook in trainer._hooks)
    assert not (tmp_path / "report.html").exists()
    assert thresholds(tmp_path, "model_final") is None


def test_a_report_that_fails_is_no_end_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mask2former.report.write_report", fail)
    train(tmp_path, aps=[1, 2, 3])
    assert "its report is not" in caplog.text


def test_notes_change_nothing_else(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    checkpointer = Checkpointer(model, tmp_path, optimizer=torch.optim.AdamW(model.parameters()))
    checkpointer.save("a", iteration=4)
    before = read_checkpoint(tmp_path / "a.pth")
    checkpointer.add_notes("a")
    checkpointer.notes = (4, {"score_thresholds": {"d": {"cat": 0.1 + 0.2}}})
    checkpointer.add_notes("a")
    after = read_checkpoint(tmp_path / "a.pth")
    assert after.pop("score_thresholds") == {"d": {"cat": 0.1 + 0.2}}
    assert {name: value.tolist() for name, value in after.pop("model").items()} == {
        name: value.tolist() for name, value in before.pop("model").items()
    }
    assert after == before


def predictor(folder: Path, known: Any, *, averaged: bool = False, **options: Any) -> Predictor:
    cfg = brightness_config()
    cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY = averaged
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    content: dict[str, Any] = {"model": {"threshold": torch.tensor(100.0)}}
    content["categories"] = [{"name": "bright", "isthing": 1}, {"name": "dark", "isthing": 1}]
    if known is not None:
        content |= {"ema_state": content["model"], "score_thresholds": {"a": {"bright": 0.8}}}
        content["ema_score_thresholds" if averaged else "score_thresholds"] = known
    torch.save(content, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    return Predictor(cfg, **options)


IMAGE = np.full((32, 32, 3), 200, dtype=np.uint8)


@pytest.mark.parametrize(
    ("known", "options", "least"),
    [
        (None, {}, 0.1),
        ({"a": {"bright": 0.4}, "b": {"bright": 0.8}}, {}, 0.5),
        ({"a": {}, "b": {"bright": 0.8}}, {}, 0.9),
        ({"a": {"dark": 0.8}}, {}, 0.5),
        ({"a": {"bright": 0.4}}, {"score_threshold": 0.8}, 0.9),
        ({"a": {"bright": 0.4}}, {"score_threshold": 0.0}, 0.1),
        ({"a": {"bright": float(torch.tensor(0.7))}}, {}, 0.7),
        ({"a": {"bright": 0.4}}, {"averaged": True}, 0.5),
        ({}, {"averaged": True}, 0.1),
    ],
)
def test_predictions_reach_the_threshold_of_the_checkpoint(
    tmp_path: Path, known: Any, options: dict[str, Any], least: float
) -> None:
    """Those of the first data set that has some; a class without one needs 0.5; what the caller says goes first.

    Those of the weights say nothing of what their average predicts.
    """
    found = predictor(tmp_path, known, **options)(IMAGE)["instances"]
    expected = sorted((score for score in SCORES if score >= least), reverse=True)
    assert found.scores.tolist() == pytest.approx(expected)


def test_each_class_has_its_threshold() -> None:
    instances = Instances((1, 1), scores=torch.tensor([0.3, 0.6, 0.6]), pred_classes=torch.tensor([0, 1, 0]))
    chosen = select_instances(instances, score_threshold=[0.2, 0.7])
    assert chosen.pred_classes.tolist() == [0, 0]
    assert chosen.scores.tolist() == pytest.approx([0.6, 0.3])
