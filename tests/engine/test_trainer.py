"""The training loop: what it leaves on disk, resuming bit for bit, interruptions, non-finite values."""

import json
import logging
import math
import os
import signal

import pytest
import torch

from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.d2.events import get_event_storage
from mask2former.engine.checks import SetupError
from mask2former.engine.finite import NonFiniteError
from mask2former.engine.hooks import Hook
from mask2former.engine.precision import Precision
from mask2former.engine.trainer import Trainer
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class Recorder(Hook):
    """Keeps batch ids, losses and learning rates of each step; acts at one iteration if told to."""

    def __init__(self, at=None, action=None):
        self.at, self.action = at, action
        self.steps = {}

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.steps[self.trainer.iter] = {name: latest[name][0] for name in ("total_loss", "lr", "grad_norm")}
        if self.trainer.iter == self.at:
            self.action()


def train(cfg, *, resume=False, hook=None, trainer_class=TinyTrainer):
    trainer = trainer_class(cfg)
    recorder = hook or Recorder()
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer, recorder.steps


def state_of(trainer):
    return {
        "model": trainer.raw_model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
    }


def assert_identical(first, second):
    """Equal to the last bit, whatever the nesting."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_identical(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for left, right in zip(first, second, strict=True):
            assert_identical(left, right)
    else:
        assert first == second


def metrics(cfg):
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as file:
        return [json.loads(line) for line in file]


def test_what_a_run_leaves_behind(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        trainer, steps = train(tiny_cfg(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model_0000002.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert list(steps) == list(range(6))
    lines = metrics(trainer.cfg)
    assert [line["iteration"] for line in lines] == [0, 2, 5]  # after the first step, with each checkpoint
    line = lines[-1]
    assert {"total_loss", "loss_ce", "loss_ce_0", "grad_norm", "lr", "time", "data_time"} < set(line)
    assert line["lr"] == pytest.approx(0.05 * (1 - 5 / 6) ** 0.9)
    assert "iter 6/6" in caplog.text
    assert "Learning rates and weight decays:\nlearning rate" in caplog.text
    assert "s a step" in caplog.text


def test_training_lowers_the_loss(tmp_path):
    class Plain(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return TinyModel(random=False)

    _, steps = train(tiny_cfg(tmp_path, MAX_ITER=100), trainer_class=Plain)
    assert steps[99]["total_loss"] < 0.3 * steps[0]["total_loss"]


def test_same_seed_same_run_other_seed_other_run(tmp_path):
    first, _ = train(tiny_cfg(tmp_path / "1"))
    torch.rand(3)  # what happened before in the process has no influence
    second, _ = train(tiny_cfg(tmp_path / "2"))
    assert_identical(state_of(first), state_of(second))
    cfg = tiny_cfg(tmp_path / "3")
    cfg.SEED = 8
    third, _ = train(cfg)
    assert not torch.equal(first.raw_model.head.weight, third.raw_model.head.weight)


@pytest.mark.parametrize("seed", [7, -1])
def test_resumed_run_continues_bit_for_bit(tmp_path, seed):
    straight_cfg = tiny_cfg(tmp_path / "straight")
    straight_cfg.SEED = seed
    straight, steps = train(straight_cfg)
    cfg = tiny_cfg(tmp_path / "halves")
    cfg.SEED = straight.cfg.SEED  # the first half repeats the run, also where its seed was drawn

    def stop():
        raise RuntimeError("machine lost")

    with pytest.raises(RuntimeError, match="machine lost"):
        train(cfg, hook=Recorder(at=1, action=stop))
    cfg.SEED = seed
    resumed, rest = train(cfg, resume=True)
    assert resumed.start_iter == 2
    assert resumed.cfg.SEED == straight.cfg.SEED
    assert rest == {iteration: steps[iteration] for iteration in (2, 3, 4, 5)}
    assert_identical(state_of(straight), state_of(resumed))
    assert [line["iteration"] for line in metrics(cfg)] == [0, 2, 5]


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    cfg = tiny_cfg(tmp_path)
    finished, _ = train(cfg)
    again, steps = train(cfg, resume=True)
    assert steps == {}
    assert_identical(finished.raw_model.state_dict(), again.raw_model.state_dict())


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path):
    trainer, steps = train(tiny_cfg(tmp_path), resume=True)
    assert trainer.start_iter == 0
    assert len(steps) == 6


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signal_saves_the_running_step(tmp_path, number, error):
    straight, _ = train(tiny_cfg(tmp_path / "straight"))
    cfg = tiny_cfg(tmp_path / "stopped", CHECKPOINT_PERIOD=0)
    with pytest.raises(error):
        train(cfg, hook=Recorder(at=1, action=lambda: os.kill(os.getpid(), number)))
    assert (tmp_path / "stopped" / "model_interrupted.pth").is_file()
    resumed, steps = train(cfg, resume=True)
    assert list(steps) == [2, 3, 4, 5]
    assert_identical(state_of(straight), state_of(resumed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_last_step_changes_nothing(tmp_path, number):
    _, steps = train(tiny_cfg(tmp_path), hook=Recorder(at=5, action=lambda: os.kill(os.getpid(), number)))
    assert list(steps) == list(range(6))
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not (tmp_path / "model_interrupted.pth").exists()


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    class Last(Recorder):
        acts_last = True

    def stop():
        raise RuntimeError("machine lost")

    with pytest.raises(RuntimeError, match="machine lost"):
        train(tiny_cfg(tmp_path), hook=Last(at=2, action=stop))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not (tmp_path / "model_interrupted.pth").exists()


def test_a_step_left_out_first_after_a_resume_keeps_the_statistics_of_the_checkpoint(tmp_path):
    class Normed(TinyModel):
        def __init__(self):
            super().__init__(random=False)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, batch):
            factor = math.nan if get_event_storage().iter == 3 else 1.0
            images = self.norm(torch.stack([item["image"] for item in batch]) * factor)
            return super().forward([{"image": image} for image in images])

    class Skipping(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Normed()

    cfg = tiny_cfg(tmp_path, MAX_ITER=3, NONFINITE="skip")
    first, _ = train(cfg, trainer_class=Skipping)
    cfg.SOLVER.MAX_ITER = 4
    second, _ = train(cfg, resume=True, trainer_class=Skipping)
    assert first.raw_model.norm.running_mean.any()
    assert_identical(first.raw_model.state_dict(), second.raw_model.state_dict())


def test_error_in_the_data_saves_the_last_step(tmp_path):
    class Broken(TinyTrainer):
        @classmethod
        def build_train_loader(cls, cfg, *, start_iteration=0):
            batches = super().build_train_loader(cfg, start_iteration=start_iteration)
            yield from (next(batches) for _ in range(4))
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=0), trainer_class=Broken)
    assert torch.load(tmp_path / "model_interrupted.pth", weights_only=True)["iteration"] == 3


def test_error_before_the_first_step_saves_nothing(tmp_path):
    class Broken(TinyTrainer):
        @classmethod
        def build_train_loader(cls, cfg, *, start_iteration=0):
            raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        train(tiny_cfg(tmp_path), trainer_class=Broken)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_names_step_term_and_images(tmp_path, value):
    class Diverging(TinyModel):
        def forward(self, batch):
            losses = super().forward(batch)
            if get_event_storage().iter == 2:
                losses["loss_ce"] = losses["loss_ce"] * value
            return losses

    class Broken(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Diverging()

    with pytest.raises(NonFiniteError) as error:
        train(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=0), trainer_class=Broken)
    text = str(error.value)
    assert f"loss_ce = {value}" in text
    assert "loss_ce_0" not in text
    assert "iteration 2, rank 0" in text
    assert "images/8.jpg (image_id 8), images/9.jpg (image_id 9)" in text
    saved = torch.load(tmp_path / "model_interrupted.pth", weights_only=True)
    assert saved["iteration"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in saved["model"].values())


@pytest.mark.parametrize("half", [False, True])
def test_steps_that_are_not_finite_may_be_left_out(tmp_path, monkeypatch, half):
    """Weights, statistics and optimiser stay as they were; schedule and iterations go on."""
    if half:
        precision = Precision("cpu", torch.float16)
        monkeypatch.setattr(Precision, "from_config", classmethod(lambda cls, cfg, device: precision))

    class Diverging(TinyModel):
        def __init__(self):
            super().__init__(random=False)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, batch):
            iteration = get_event_storage().iter
            before[iteration] = [value.clone() for value in self.state_dict().values()]
            for item in batch:
                item["image"] = self.norm(torch.stack([item["image"] * (math.nan if iteration == 2 else 1)] * 2))[0]
            return super().forward(batch)

    class Skipping(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Diverging()

    before = {}
    cfg = tiny_cfg(tmp_path, NONFINITE="skip", CHECKPOINT_PERIOD=0)
    trainer, steps = train(cfg, trainer_class=Skipping)
    assert_identical(before[2], before[3])
    assert half or not torch.equal(before[3][0], before[4][0])
    assert steps[5]["lr"] == pytest.approx(0.05 * (1 - 5 / 6) ** 0.9)
    left_out = math.log2(2**16 / trainer.scaler.get_scale()) if half else 1  # overflows, to the scaler
    assert trainer.optimizer.state[trainer.raw_model.head.weight]["step"] == 6 - left_out
    assert trainer.scheduler.last_epoch == 6
    assert metrics(cfg)[-1]["skipped_steps"] == 1
    assert half or all(math.isfinite(value) for value in metrics(cfg)[-1].values())
    assert not half or left_out >= 1


def test_steps_left_out_are_counted_on_after_a_resume(tmp_path):
    class Diverging(TinyModel):
        def forward(self, batch):
            factor = math.nan if get_event_storage().iter in (1, 2, 3) else 1.0
            return {name: loss * factor for name, loss in super().forward(batch).items()}

    class Skipping(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Diverging()

    cfg = tiny_cfg(tmp_path, NONFINITE="skip", NONFINITE_LIMIT=2, CHECKPOINT_PERIOD=3)
    with pytest.raises(NonFiniteError, match="iteration 3"):
        train(cfg, trainer_class=Skipping)
    with pytest.raises(NonFiniteError, match="iteration 3"):
        train(cfg, resume=True, trainer_class=Skipping)


def test_gradient_that_is_not_finite_names_the_parameter(tmp_path):
    class Diverging(TinyModel):
        def forward(self, batch):
            self.head.weight.register_hook(lambda gradient: gradient * float("nan"))
            return super().forward(batch)

    class Broken(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Diverging()

    with pytest.raises(NonFiniteError, match=r"Gradient.*head\.weight.*iteration 0.*images/0\.jpg"):
        train(tiny_cfg(tmp_path), trainer_class=Broken)


def test_evaluation_during_and_after_training(tmp_path):
    class Counter(DatasetEvaluator):
        calls = 0

        def reset(self):
            Counter.calls += 1

        def process(self, inputs, outputs):
            assert len(inputs) == 2

        def evaluate(self):
            return {"panoptic_seg": {"PQ": 10.0 * Counter.calls}}

    class Evaluating(TinyTrainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            return [next(super().build_train_loader(cfg))[:2]]

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Counter()

    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST = ("some_val",)
    cfg.TEST.EVAL_PERIOD = 4
    trainer, _ = train(cfg, trainer_class=Evaluating)
    assert trainer.results == {"panoptic_seg": {"PQ": 20.0}}
    results = [(line["iteration"], line["panoptic_seg/PQ"]) for line in metrics(cfg) if "panoptic_seg/PQ" in line]
    assert results == [(3, 10.0), (5, 20.0)]
    assert trainer.raw_model.training
    plain, _ = train(tiny_cfg(tmp_path / "plain"))
    assert_identical(plain.raw_model.state_dict(), trainer.raw_model.state_dict())
    cfg.DATASETS.TEST = ("some_val", "other_val")
    results = Evaluating.test(cfg, trainer.raw_model)
    assert results == {
        "some_val": {"panoptic_seg": {"PQ": 30.0}},
        "other_val": {"panoptic_seg": {"PQ": 40.0}},
    }


def test_bfloat16_trains_on_a_cpu(tmp_path):
    cfg = tiny_cfg(tmp_path)
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    trainer, steps = train(cfg)
    assert len(steps) == 6
    assert all(parameter.dtype == torch.float32 for parameter in trainer.raw_model.parameters())


def test_float16_with_loss_scaling_resumes(tmp_path, monkeypatch):
    """The path that GPUs take, run on the CPU."""
    half = Precision("cpu", torch.float16)
    monkeypatch.setattr(Precision, "from_config", classmethod(lambda cls, cfg, device: half))
    straight, steps = train(tiny_cfg(tmp_path / "straight"))
    assert straight.scaler.is_enabled()
    cfg = tiny_cfg(tmp_path / "halves", CHECKPOINT_PERIOD=0)
    with pytest.raises(SystemExit):
        train(cfg, hook=Recorder(at=2, action=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    resumed, rest = train(cfg, resume=True)
    assert rest == {iteration: steps[iteration] for iteration in (3, 4, 5)}
    assert_identical(state_of(straight), state_of(resumed))
    assert straight.scaler.state_dict() == resumed.scaler.state_dict()


def test_setup_is_checked_first(tmp_path):
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TRAIN = ("no_such_set",)
    with pytest.raises(SetupError, match="no_such_set"):
        Trainer(cfg)


def test_saving_before_any_step_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no step has been completed"):
        TinyTrainer(tiny_cfg(tmp_path)).save("model_final")
