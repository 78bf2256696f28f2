"""The average of the weights: its values, what is saved, resumed, evaluated and loaded, and nothing where it is off."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mask2former.checkpoint import Checkpointer, CheckpointError, load_weights
from mask2former.engine.ema import ModelEMA
from mask2former.engine.hooks import Hook
from mask2former.engine.main import main
from mask2former.engine.precision import Precision
from tests.engine.test_trainer import Recorder, assert_identical, train
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


def ema_cfg(folder, **solver):
    cfg = tiny_cfg(folder, **solver)
    cfg.MODEL_EMA.ENABLED, cfg.MODEL_EMA.DECAY = True, 0.75
    return cfg


class Statistics(TinyModel):
    """Its statistics change in every step."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch):
        self.norm(torch.stack([item["image"] for item in batch]))
        return super().forward(batch)


class Averaging(TinyTrainer):
    """Its metric is the bias of the head."""

    @classmethod
    def build_model(cls, cfg):
        return Statistics()

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return output_folder

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        folders = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        assert folders in ([], [None]) or folders[0].endswith("inference_EMA")
        return {"task": {"bias": model.head.bias.item()}}


class Weights(Hook):
    """Copies all weights and buffers before the first and after each step."""

    def __init__(self):
        self.states = []

    def keep(self):
        state = self.trainer.raw_model.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})

    before_train = after_step = keep


def test_average_in_closed_form(tmp_path):
    """Of weights and statistics; counts are the last ones."""
    trainer = Averaging(ema_cfg(tmp_path))
    weights = Weights()
    trainer.register_hooks([weights])
    trainer.train()
    expected = weights.states[0]
    for state in weights.states[1:]:
        expected = {
            name: 0.75 * expected[name] + 0.25 * value if value.is_floating_point() else value
            for name, value in state.items()
        }
    average = trainer.ema.state_dict()
    assert average.keys() == expected.keys()
    assert average["norm.num_batches_tracked"] == 6
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, msg=name)
    assert not torch.equal(average["head.weight"], trainer.raw_model.head.weight)
    assert not torch.equal(average["norm.running_mean"], trainer.raw_model.norm.running_mean)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert_identical(saved["ema_state"], average)
    assert_identical(dict(saved["model"]), dict(trainer.raw_model.state_dict()))


def test_training_with_an_average_is_training_without(tmp_path):
    plain, _ = train(tiny_cfg(tmp_path / "plain"), trainer_class=Averaging)
    averaging, _ = train(ema_cfg(tmp_path / "ema"), trainer_class=Averaging)
    assert_identical(plain.raw_model.state_dict(), averaging.raw_model.state_dict())
    assert plain.ema is None
    assert not plain.optimizer._optimizer_step_post_hooks
    assert "ema_state" not in torch.load(tmp_path / "plain" / "model_final.pth", weights_only=True)


def test_average_resumes_bit_for_bit(tmp_path):
    straight, _ = train(ema_cfg(tmp_path / "straight"), trainer_class=Averaging)
    cfg = ema_cfg(tmp_path / "halves", CHECKPOINT_PERIOD=0)
    with pytest.raises(SystemExit):
        train(cfg, hook=Recorder(at=2, action=lambda: signal.raise_signal(signal.SIGTERM)), trainer_class=Averaging)
    resumed, steps = train(cfg, resume=True, trainer_class=Averaging)
    assert list(steps) == [3, 4, 5]
    assert_identical(resumed.ema.state_dict(), straight.ema.state_dict())


def test_average_that_begins_later_begins_with_the_weights(tmp_path, caplog):
    train(tiny_cfg(tmp_path), trainer_class=Averaging)
    cfg = ema_cfg(tmp_path)
    trainer = Averaging(cfg)
    trainer.resume_or_load(resume=True)
    assert "no average of weights" in caplog.text
    assert_identical(trainer.ema.state_dict(), dict(trainer.raw_model.state_dict()))
    cfg = ema_cfg(tmp_path / "new")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    trainer = Averaging(cfg)
    trainer.resume_or_load(resume=False)
    assert_identical(trainer.ema.state_dict(), dict(trainer.raw_model.state_dict()))


def test_both_are_evaluated(tmp_path):
    cfg = ema_cfg(tmp_path)
    cfg.DATASETS.TEST = ("some_val",)
    trainer, _ = train(cfg, trainer_class=Averaging)
    raw, average = trainer.raw_model.head.bias.item(), trainer.ema.state_dict()["head.bias"].item()
    assert raw != average
    assert trainer.results == {"task": {"bias": raw}, "task_EMA": {"bias": average}}
    line = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert (line["task/bias"], line["task_EMA/bias"]) == (raw, average)


def test_steps_that_are_left_out_leave_the_average(tmp_path, monkeypatch):
    """Under loss scaling, after an overflow."""
    half = Precision("cpu", torch.float16)
    monkeypatch.setattr(Precision, "from_config", classmethod(lambda cls, cfg, device: half))

    trainer = Averaging(ema_cfg(tmp_path, MAX_ITER=2))
    trainer.raw_model.head.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in trainer.ema.state_dict().items()}
    trainer.train()
    assert trainer.storage.history("total_loss").values()[-1][1] == 1  # both steps were made
    assert_identical(trainer.ema.state_dict(), before)


def test_a_step_counts_once():
    """PyTorch hooks the base class of an optimiser too, once an instance of it was made."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])

    class Derived(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 4.0)
    optimizer = Derived(model.parameters(), lr=1.0)
    ema = ModelEMA(model, decay=0.5)
    ema.follow(optimizer)
    model.weight.grad = torch.full((1, 1), 4.0)
    optimizer.step()
    assert ema.state_dict()["weight"].item() == 2.0
    optimizer.step()
    assert ema.state_dict()["weight"].item() == -1.0  # of 2 and -4


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_impossible_decay_is_refused(decay):
    with pytest.raises(ValueError, match=rf"MODEL_EMA\.DECAY is {decay}"):
        ModelEMA(nn.Linear(1, 1), decay=decay)


def test_file_gives_weights_or_average(tmp_path):
    trainer, _ = train(ema_cfg(tmp_path), trainer_class=Averaging)
    model = Statistics()
    load_weights(model, tmp_path / "model_final.pth", complete=True)
    assert torch.equal(model.head.weight, trainer.raw_model.head.weight)
    load_weights(model, tmp_path / "model_final.pth", complete=True, averaged=True)
    assert torch.equal(model.head.weight, trainer.ema.state_dict()["head.weight"])
    Checkpointer(model, tmp_path).resume_or_load("", resume=True)
    assert torch.equal(model.head.weight, trainer.raw_model.head.weight)
    Checkpointer(model, tmp_path).resume_or_load("", resume=True, averaged=True)
    assert torch.equal(model.head.weight, trainer.ema.state_dict()["head.weight"])


def test_file_without_an_average_is_refused(tmp_path):
    train(tiny_cfg(tmp_path))
    with pytest.raises(CheckpointError, match="no average of weights: MODEL_EMA"):
        load_weights(TinyModel(), tmp_path / "model_final.pth", averaged=True)


@pytest.mark.parametrize("averaged", [False, True])
def test_key_of_evaluation(tmp_path, monkeypatch, averaged):
    """The command evaluates the weights that the key asks for."""
    trainer, _ = train(ema_cfg(tmp_path), trainer_class=Averaging)
    found = []
    cfg = ema_cfg(tmp_path / "evaluation")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    cfg.DATASETS.TEST = ("some_val",)
    cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY = averaged
    monkeypatch.setattr("mask2former.engine.main.setup", lambda args, _: cfg)
    monkeypatch.setattr("mask2former.engine.main.check_setup", lambda cfg, eval_only: None)
    monkeypatch.setattr(Averaging, "test", classmethod(lambda cls, cfg, model: found.append(model.head.bias)))
    flags = {"eval_only": True, "resume": False, "allow_missing_weights": False, "strict": False}
    main(SimpleNamespace(config_file="some.yaml", **flags), Averaging)
    expected = trainer.ema.state_dict()["head.bias"] if averaged else trainer.raw_model.head.bias
    assert torch.equal(found[0], expected)
