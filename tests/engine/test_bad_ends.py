"""What a run leaves when disk, statistics or settings fail it, and how the next one goes on."""

import errno
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mask2former.checkpoint import CheckpointError
from mask2former.d2.events import get_event_storage
from mask2former.engine.checks import SetupError
from mask2former.engine.finite import NonFiniteError
from mask2former.engine.hooks import Hook
from tests.helpers import distributed_cases
from tests.helpers.processes import run_processes
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class Normalised(TinyModel):
    """With running statistics."""

    def __init__(self) -> None:
        super().__init__(random=False)
        self.norm = nn.BatchNorm1d(4)
        self.fail_at = None

    def forward(self, batch):
        images = self.norm(torch.stack([item["image"] for item in batch]))
        if self.fail_at is not None and get_event_storage().iter == self.fail_at:
            images = self.norm(images * float("nan"))
        return super().forward([{"image": image} for image in images])


class NormalisedTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg):
        return Normalised()


class At(Hook):
    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def after_step(self):
        if self.trainer.iter == self.iteration:
            self.action()


def train(cfg, *hooks, resume=False, trainer_class=TinyTrainer):
    trainer = trainer_class(cfg)
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def test_statistics_of_a_failed_step_are_not_saved(tmp_path):
    cfg = tiny_cfg(tmp_path / "good", MAX_ITER=3)
    good = train(cfg, trainer_class=NormalisedTrainer).raw_model.state_dict()
    trainer = NormalisedTrainer(tiny_cfg(tmp_path / "bad", MAX_ITER=9, CHECKPOINT_PERIOD=0))
    trainer.raw_model.fail_at = 3
    with pytest.raises(NonFiniteError, match="iteration 3"):
        trainer.train()
    saved = torch.load(tmp_path / "bad" / "model_interrupted.pth", weights_only=True)
    assert saved["iteration"] == 2
    assert saved["model"]["norm.num_batches_tracked"] == 3
    assert torch.equal(saved["model"]["norm.running_mean"], good["norm.running_mean"])


def test_statistics_that_are_not_finite_do_not_replace_a_good_checkpoint(tmp_path, caplog):
    def break_statistics():
        trainer.raw_model.norm.running_var.fill_(float("nan"))

    trainer = NormalisedTrainer(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=2))
    trainer._hooks.insert(0, At(3, break_statistics))
    trainer._hooks[0].trainer = trainer
    with pytest.raises(NonFiniteError, match=r"norm\.running_var: not finite"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert "The last steps are lost, the checkpoint before them stays: norm.running_var" in caplog.text


def test_full_disk(tmp_path, monkeypatch, caplog):
    """Checkpoints that find no room do not end the run; the last one does, and older ones stay."""
    save, saved = torch.save, []

    def save_once(content, path):
        saved.append(path)
        if len(saved) > 1:
            path.write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path)

    monkeypatch.setattr(torch, "save", save_once)
    with pytest.raises(OSError, match=r"model_final\.pth cannot be written: .*No space left on device"):
        train(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=2))
    assert "Training goes on without a checkpoint of iteration 3" in caplog.text
    assert "The last steps are lost" in caplog.text
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000001.pth"]
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_what_pytorch_says_of_a_full_disk(tmp_path):
    code = """
import resource, sys, torch
from torch import nn
from mask2former.checkpoint import Checkpointer
model = nn.Linear(1000, 1000)
Checkpointer(model, sys.argv[1]).save("a")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Checkpointer(model, sys.argv[1]).save("b")
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "b.pth cannot be written" in run.stdout, run
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "last_checkpoint"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_run_whose_disk_was_full_goes_on_once_there_is_room(tmp_path):
    """As if nothing had happened; what was saved before is whole."""
    (ended,) = run_processes(distributed_cases.full_disk, tmp_path, folder=tmp_path, processes=1)
    assert ended.code == 1
    assert "Training goes on without a checkpoint of iteration 5" in ended.output
    assert "model_final.pth cannot be written" in ended.output
    assert "The last steps are lost, the checkpoint before them stays" in ended.output
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not list(tmp_path.glob(".*.tmp"))
    trainers = []
    for folder in (tmp_path, tmp_path / "straight"):
        cfg = tiny_cfg(folder, MAX_ITER=8, CHECKPOINT_PERIOD=2)
        trainers.append(train(cfg, resume=True, trainer_class=distributed_cases.LargeTrainer))
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        assert [line["iteration"] for line in lines] == [0, 1, 3, 5, 7]
    assert trainers[0].start_iter == 4
    for first, second in zip(*(trainer.raw_model.parameters() for trainer in trainers), strict=True):
        assert torch.equal(first, second)


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    cfg = tiny_cfg(tmp_path)
    for place in ("file", "file/below"):
        cfg.OUTPUT_DIR = str(tmp_path / place)
        with pytest.raises(SetupError, match=f"OUTPUT_DIR .*{place}' cannot be written: .*Choose another"):
            TinyTrainer(cfg)


def test_checkpoints_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path, caplog):
    def lose_power():
        raise SystemError

    train(tiny_cfg(tmp_path))
    second = tiny_cfg(tmp_path, BASE_LR=0.5, CHECKPOINT_PERIOD=0)
    trainer = TinyTrainer(second)
    trainer.save = lambda name: None  # as if killed before the first checkpoint
    trainer.register_hooks([At(2, lose_power)])
    with pytest.raises(SystemError):
        trainer.train()
    assert "write 'model_final.pth' into" in caplog.text
    third = TinyTrainer(second)
    third.resume_or_load(True)
    assert third.start_iter == 0
    (tmp_path / "last_checkpoint.old").rename(tmp_path / "last_checkpoint")
    third.resume_or_load(True)
    assert third.start_iter == 6


def test_changed_settings_are_named_and_take_effect(tmp_path, caplog):
    train(tiny_cfg(tmp_path, BASE_LR=0.05, CHECKPOINT_PERIOD=0))
    cfg = tiny_cfg(tmp_path, BASE_LR=0.001, WEIGHT_DECAY=0.5, MAX_ITER=12, CHECKPOINT_PERIOD=0)
    trainer = train(cfg, resume=True)
    for change in ("BASE_LR: 0.05 -> 0.001", "WEIGHT_DECAY: 0.0001 -> 0.5", "MAX_ITER: 6 -> 12"):
        assert f"Changed since the checkpoint: SOLVER.{change}" in caplog.text
    assert caplog.text.count("Changed since") == 3
    assert trainer.scheduler.base_lrs == pytest.approx([0.0001, 0.001])
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.5
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert rates[-1] == pytest.approx(0.001 * (1 - 11 / 12) ** 0.9)


def test_another_optimiser_does_not_resume(tmp_path):
    train(tiny_cfg(tmp_path))
    trainer = TinyTrainer(tiny_cfg(tmp_path, OPTIMIZER="SGD"))
    with pytest.raises(CheckpointError, match=r"SOLVER\.OPTIMIZER was ADAMW and is SGD.*MODEL\.WEIGHTS"):
        trainer.resume_or_load(True)


def test_other_classes_do_not_resume(tmp_path):
    class Wider(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = TinyModel()
            model.head = nn.Linear(8, 2)
            return model

    train(tiny_cfg(tmp_path))
    with pytest.raises(CheckpointError, match=r"(?s)size mismatch.*also with other classes: set MODEL\.WEIGHTS"):
        Wider(tiny_cfg(tmp_path)).resume_or_load(True)


def test_metrics_are_written_before_the_checkpoint(tmp_path):
    def lose_power():
        os._exit(9)

    cfg = tiny_cfg(tmp_path, MAX_ITER=20, CHECKPOINT_PERIOD=5)
    child = os.fork()
    if child == 0:
        train(cfg, At(5, lose_power))
    os.waitpid(child, 0)
    train(cfg, resume=True)
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines == [0, 4, 9, 14, 19]


def test_a_notebook_gets_log_and_config(tmp_path):
    """Without anybody having set up logging, and where there is neither a home nor a name of the user."""
    code = """
import pwd, sys
def unknown(*args): raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = unknown
from pathlib import Path
from tests.helpers import distributed_cases
from tests.helpers.processes import run_processes
from tests.helpers.training import TinyTrainer, tiny_cfg
TinyTrainer(tiny_cfg(Path(sys.argv[1]))).train()
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert "iter 1/6" in run.stdout
    assert "Training from iteration 0 to 6, 4 images a step" in run.stdout
    assert "million parameters" in (tmp_path / "log.txt").read_text()
    assert "BASE_LR: 0.05" in (tmp_path / "config.yaml").read_text()


def test_weights_are_loaded_without_being_asked(tmp_path):
    train(tiny_cfg(tmp_path / "first"))
    cfg = tiny_cfg(tmp_path / "second", BASE_LR=0.0, WEIGHT_DECAY=0.0, MAX_ITER=1)
    cfg.MODEL.WEIGHTS = str(tmp_path / "first" / "model_final.pth")
    trainer = TinyTrainer(cfg)
    trainer.train()
    expected = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    assert torch.equal(trainer.raw_model.head.weight, expected["head.weight"])


def test_ctrl_c_says_how_to_go_on(tmp_path, caplog):
    def interrupt():
        raise KeyboardInterrupt

    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        train(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=0), At(2, interrupt))
    assert "the run continues at iteration 3 with --resume" in caplog.text
    assert "Training failed" not in caplog.text
