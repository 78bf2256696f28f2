"""Weights divided among two processes train as whole ones do, and leave the same checkpoints."""

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mask2former import get_cfg
from mask2former.engine import sharding
from tests.helpers import distributed_run
from tests.helpers import sharding_cases as cases
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)
divides_on_cpus = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this PyTorch needs a GPU"
)


def train(folder, *, divided, stop=99, clip="full_model", code=0):
    ended = run_processes(cases.divided, folder, divided, stop, clip, folder=folder)
    assert [process.code for process in ended] == [code, code], ended
    return torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)


def assert_same(first, second):
    """Same names, types, shapes and, but for rounding, values."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for left, right in zip(first, second, strict=True):
            assert_same(left, right)
    else:
        assert first == second


@divides_on_cpus
@pytest.mark.parametrize("clip", ["full_model", "norm", "value"])
def test_divided_weights_train_as_whole_ones(tmp_path, clip):
    whole, divided = (train(tmp_path / str(flag), divided=flag, clip=clip) for flag in (False, True))
    for name in ("model", "ema_state", "optimizer", "scheduler", "iteration"):
        assert_same(whole[name], divided[name])
    lines = [json.loads((tmp_path / str(flag) / "metrics.json").read_text().splitlines()[-1]) for flag in (False, True)]
    for name in ("total_loss", "grad_norm", "all/images", "all/loss", "all_EMA/loss"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=1e-5)
    assert lines[1]["all/images"] == 5
    assert lines[1]["all_EMA/loss"] != pytest.approx(lines[1]["all/loss"], rel=1e-3)


@divides_on_cpus
@pytest.mark.parametrize("first", [True, False])
def test_either_continues_what_the_other_began(tmp_path, first):
    straight = train(tmp_path / "straight", divided=False)
    begun = train(tmp_path / "halves", divided=first, stop=1, code=143)
    assert begun["iteration"] == 2
    ended = train(tmp_path / "halves", divided=not first)
    assert ended["iteration"] == 5
    assert_same(straight["model"], ended["model"])
    assert_same(straight["optimizer"], ended["optimizer"])
    assert_same(straight["ema_state"], ended["ema_state"])


@divides_on_cpus
def test_a_step_that_is_not_finite_leaves_checkpoint_and_file(tmp_path):
    ended = run_processes(cases.divided_diverging, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [1, 1], ended
    saved = torch.load(tmp_path / "model_interrupted.pth", weights_only=True)
    assert saved["iteration"] == 1
    step = torch.load(tmp_path / "failed_step_0000002.pth", weights_only=True)
    assert_same(saved["model"], step["model"])


@divides_on_cpus
def test_mask2former(tmp_path):
    found = []
    for divided in (False, True):
        out = tmp_path / str(divided)
        ended = run_processes(distributed_run.main, str(out), 1, divided, folder=out)
        assert [process.code for process in ended] == [0, 0], ended
        found.append(torch.load(out / "model_final.pth", weights_only=True)["model"])
    assert_same(*found)


def test_blocks_are_neither_stages_nor_layers():
    block = nn.Sequential(nn.Linear(2, 2))
    stage = nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 4) for _ in range(2)])
    backbone = nn.ModuleDict({"stages": nn.ModuleList([nn.ModuleDict({"blocks": stage})]), "stem": block})
    assert list(sharding._blocks(backbone)) == list(stage)


def test_what_does_not_go_together_is_named(monkeypatch):
    monkeypatch.setattr("mask2former.d2.comm.get_world_size", lambda: 2)
    cfg = get_cfg()
    assert not sharding.is_asked_for(cfg)
    cfg.MODEL.FSDP, cfg.MODEL.DEVICE = True, "cuda"
    assert sharding.is_asked_for(cfg)
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(ValueError, match=r"MODEL\.FSDP does not go with float16.*SOLVER\.AMP\.DTYPE bfloat16"):
        sharding.is_asked_for(cfg)
    monkeypatch.delattr("torch.cpu.Stream.record_event", raising=False)
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(ValueError, match=r"MODEL\.FSDP needs a newer PyTorch"):
        sharding.is_asked_for(cfg)
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"weight, bias belongs to none"):
        sharding.shard(model)
