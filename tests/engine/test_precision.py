"""SOLVER.AMP → autocast and loss scaling."""

import logging

import pytest
import torch
from torch.amp import GradScaler

from mask2former import get_cfg
from mask2former.engine.precision import Precision
from tests.helpers.training import TinyTrainer, tiny_cfg


def make(enabled, dtype, device):
    cfg = get_cfg()
    cfg.SOLVER.AMP.ENABLED = enabled
    cfg.SOLVER.AMP.DTYPE = dtype
    return Precision.from_config(cfg, torch.device(device))


@pytest.mark.parametrize(
    ("enabled", "dtype", "device", "expected"),
    [
        (False, "float16", "cuda", None),
        (True, "float16", "cuda", torch.float16),
        (True, "bfloat16", "cuda", torch.bfloat16),
        (True, "float16", "cpu", None),
        (True, "bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_dtype(enabled, dtype, device, expected):
    assert make(enabled, dtype, device) == Precision(device, expected)


def test_float16_on_a_cpu_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        make(True, "float16", "cpu")
    assert "float16 autocast is off" in caplog.text


def test_unknown_dtype_is_named():
    with pytest.raises(ValueError, match=r"AMP\.DTYPE is 'fp8'"):
        make(True, "fp8", "cpu")


def test_autocast_applies_to_the_forward_pass():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with make(True, "bfloat16", "cpu").autocast():
        assert layer(x).dtype == torch.bfloat16
    with make(False, "bfloat16", "cpu").autocast():
        assert layer(x).dtype == torch.float32


def test_scaler_is_idle_unless_float16():
    assert not make(True, "bfloat16", "cpu").build_scaler().is_enabled()
    assert Precision("cpu", torch.float16).build_scaler().is_enabled()


def test_a_step_of_training_runs_under_autocast(tmp_path):
    cfg = tiny_cfg(tmp_path, MAX_ITER=1)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "bfloat16"
    trainer = TinyTrainer(cfg)
    dtypes = []
    trainer.raw_model.head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    trainer.train()
    assert dtypes == [torch.bfloat16]


def test_gradients_are_unscaled_before_they_are_clipped(tmp_path, monkeypatch):
    """A loss scale, a power of two, changes no bit of an update that is clipped."""

    def trained(name, scaler):
        monkeypatch.setattr(Precision, "build_scaler", lambda self: scaler)
        cfg = tiny_cfg(tmp_path / name, MAX_ITER=2, OPTIMIZER="SGD")
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
        trainer = TinyTrainer(cfg)
        trainer.train()
        return trainer.raw_model.state_dict()

    plain = trained("plain", GradScaler("cpu", enabled=False))
    scaled = trained("scaled", GradScaler("cpu", init_scale=2.0**12))
    assert all(torch.equal(value, scaled[name]) for name, value in plain.items())
