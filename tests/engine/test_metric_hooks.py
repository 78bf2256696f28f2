"""Best checkpoint and early end, by values of a metric that tests make up; also across interruptions."""

import os

import pytest
import torch

from mask2former.engine.metric_hooks import BestCheckpoint, EarlyStop, build_metric_hooks, check_metrics
from tests.engine.test_trainer import Recorder, assert_identical, state_of, train
from tests.helpers.training import TinyTrainer, tiny_cfg


class Scripted(TinyTrainer):
    """Evaluations after steps 1, 3, 5, ... give these values."""

    values: dict[int, float]
    fails_at: int | None = None

    def evaluate(self):
        iteration = self._last_update
        if iteration == Scripted.fails_at:
            Scripted.fails_at = None
            raise RuntimeError("machine lost")
        self.results = {"segm": {"AP": self.values[iteration], "AP50": 0.0}}
        return self.results


def metric_cfg(folder, values, *, best="segm/AP", stop="", mode="max", patience=2, **solver):
    Scripted.values = dict(zip(range(1, 100, 2), values, strict=False))
    Scripted.fails_at = None
    cfg = tiny_cfg(folder, **{"MAX_ITER": 2 * len(values), "CHECKPOINT_PERIOD": 2, **solver})
    cfg.TEST.EVAL_PERIOD = 2
    cfg.SOLVER.BEST_CHECKPOINT.METRIC, cfg.SOLVER.BEST_CHECKPOINT.MODE = best, mode
    cfg.SOLVER.EARLY_STOP.METRIC, cfg.SOLVER.EARLY_STOP.MODE, cfg.SOLVER.EARLY_STOP.PATIENCE = stop, mode, patience
    return cfg


def best_iteration(folder):
    return torch.load(folder / "model_best.pth", weights_only=True)["iteration"]


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([1.0, 3.0, 2.0, 3.0], "max", 3),  # an equal value is not better
        ([1.0, 3.0, 2.0, 0.5], "min", 7),
        ([float("nan"), 1.0, float("nan")], "max", 3),
        ([5.0, float("nan")], "min", 1),
        ([-2.0, -1.0], "max", 3),
    ],
)
def test_best_checkpoint(tmp_path, values, mode, expected):
    train(metric_cfg(tmp_path, values, mode=mode), trainer_class=Scripted)
    assert best_iteration(tmp_path) == expected


def test_nothing_is_kept_unless_asked(tmp_path):
    trainer, steps = train(metric_cfg(tmp_path, [3.0, 2.0, 1.0, 0.0], best=""), trainer_class=Scripted)
    assert len(steps) == 8
    assert not (tmp_path / "model_best.pth").exists()
    assert build_metric_hooks(trainer.cfg) == []


def test_limit_spares_the_best_and_the_last(tmp_path):
    cfg = metric_cfg(tmp_path, [5.0, 1.0, 1.0, 1.0], CHECKPOINTS_TO_KEEP=1)
    train(cfg, trainer_class=Scripted)
    assert {path.name for path in tmp_path.glob("*.pth")} == {"model_best.pth", "model_0000005.pth", "model_final.pth"}
    assert best_iteration(tmp_path) == 1


def test_early_end(tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = metric_cfg(tmp_path, [1.0, 2.0, 2.0, 1.5, 9.0], best="", stop="segm/AP")
    trainer, steps = train(cfg, trainer_class=Scripted)
    assert list(steps) == list(range(8))
    assert "segm/AP was not better in the last 2 evaluations: training ends early" in caplog.text
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 7
    assert trainer.results["segm"]["AP"] == 1.5
    resumed, steps = train(cfg, resume=True, trainer_class=Scripted)
    assert steps == {}
    assert resumed.results == trainer.results
    cfg.SOLVER.EARLY_STOP.PATIENCE = 3
    _, steps = train(cfg, resume=True, trainer_class=Scripted)
    assert list(steps) == [8, 9]


def test_patience_begins_anew_with_a_better_value(tmp_path):
    cfg = metric_cfg(tmp_path, [3.0, 4.0, 2.0, 5.0, 6.0, 1.0], best="", stop="segm/AP", mode="min", patience=3)
    _, steps = train(cfg, trainer_class=Scripted)
    assert len(steps) == 12


@pytest.mark.parametrize("moment", [*range(12), "evaluation 3", "evaluation 5", "evaluation 7"])
def test_interruption_changes_nothing(tmp_path, moment):
    """Whatever step fails, and in an evaluation: the same best checkpoint, the same end, the same weights."""
    values, settings = [1.0, 3.0, 2.0, 2.5, 2.0, 4.0], {"stop": "segm/AP", "patience": 3}
    straight, _ = train(metric_cfg(tmp_path / "straight", values, **settings), trainer_class=Scripted)
    cfg = metric_cfg(tmp_path / "parts", values, **settings)

    def stop():
        trainer._last_saved = trainer._last_update  # as SIGKILL: nothing more is saved
        raise RuntimeError("machine lost")

    class Lost(Recorder):
        def before_step(self):
            nonlocal trainer
            trainer = self.trainer

    trainer = None
    if isinstance(moment, str):
        Scripted.fails_at = int(moment.split()[1])
    ended_before = moment in (10, 11)
    if ended_before:
        train(cfg, trainer_class=Scripted)
    else:
        with pytest.raises(RuntimeError, match="machine lost"):
            train(cfg, hook=Lost(at=moment, action=stop), trainer_class=Scripted)
    resumed, _ = train(cfg, resume=True, trainer_class=Scripted)
    assert_identical(state_of(straight), state_of(resumed))
    assert resumed.ends_early
    for name in ("model_best", "model_final"):
        first, second = (
            torch.load(tmp_path / folder / f"{name}.pth", weights_only=True) for folder in ("straight", "parts")
        )
        assert_identical(first["model"], second["model"])
        for content in (first, second):
            del content["hooks"]["PeriodicWriter"]  # times, and sizes of files
        assert_identical(first["hooks"], second["hooks"])


@pytest.mark.parametrize("kind", ["best", "stop"])
def test_unknown_metric_lists_those_seen(tmp_path, kind):
    cfg = metric_cfg(tmp_path, [1.0], **{"best": "", kind: "segm/APs"}, patience=1)
    with pytest.raises(ValueError, match=r"METRIC is 'segm/APs' \(did you mean .*gives segm/AP, segm/AP50"):
        train(cfg, trainer_class=Scripted)


def test_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    save = Scripted.save

    def refuse(self, name):
        if name == "model_best":
            raise OSError("No space left on device")
        save(self, name)

    monkeypatch.setattr(Scripted, "save", refuse)
    train(metric_cfg(tmp_path, [1.0]), trainer_class=Scripted)
    assert "without the best checkpoint: No space left" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_state_of_another_metric_is_not_taken():
    hook = EarlyStop("segm/AP", mode="max", patience=2)
    state = {"metric": "bbox/AP", "best": 70.0, "seen": 5, "in_vain": 2}
    hook.load_state_dict(state)
    assert hook.state_dict() == {"metric": "segm/AP", "best": None, "seen": -1, "in_vain": 0}
    hook.load_state_dict(state | {"metric": "segm/AP"})
    assert hook.state_dict() == state | {"metric": "segm/AP"}


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.BEST_CHECKPOINT\.MODE is 'higher'"):
        BestCheckpoint("segm/AP", mode="higher")
    with pytest.raises(ValueError, match=r"SOLVER\.EARLY_STOP\.PATIENCE is 0"):
        EarlyStop("segm/AP", mode="max", patience=0)
    cfg = metric_cfg(tmp_path, [1.0], stop="segm/AP")
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        check_metrics(cfg)
    cfg.DATASETS.TEST = ("some_val",)
    check_metrics(cfg)
    cfg.TEST.EVAL_PERIOD = 0
    with pytest.raises(ValueError, match=r"TEST\.EVAL_PERIOD is 0"):
        check_metrics(cfg)


def test_files_that_a_run_leaves(tmp_path):
    train(metric_cfg(tmp_path, [1.0, 2.0]), trainer_class=Scripted)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
