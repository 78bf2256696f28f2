"""A resumed run, and all processes, take the kernels that were measured to be faster at first."""

import json

import pytest
import torch.distributed as dist
import torch.nn.functional as F

from mask2former.engine.hooks import Hook
from mask2former.ops import cpu
from tests.helpers import distributed_cases as cases
from tests.helpers.distributed_cases import KernelTrainer
from tests.helpers.processes import run_processes
from tests.helpers.training import tiny_cfg


@pytest.fixture(autouse=True)
def _measuring(monkeypatch):
    monkeypatch.setattr(cpu, "convolution_is_faster", None)
    monkeypatch.setattr(cpu, "_LARGEST_SLOW_CONVOLUTION", 0)
    monkeypatch.setenv(cpu.LINEAR_VARIABLE, "auto")


class Kill(Hook):
    def after_step(self):
        if self.trainer.iter == 3:
            raise RuntimeError("killed")


def test_a_resumed_run_computes_as_the_first(tmp_path, monkeypatch):
    calls, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: (calls.append(1), conv2d(*args))[1])
    monkeypatch.setattr(cpu, "_measure", lambda: [1.0, 0.5])
    first = KernelTrainer(tiny_cfg(tmp_path))
    first.register_hooks([Kill()])
    with pytest.raises(RuntimeError, match="killed"):
        first.train()
    assert len(calls) == 4
    monkeypatch.setattr(cpu, "convolution_is_faster", None)  # as in a new process, where the other kernel seems faster
    monkeypatch.setattr(cpu, "_measure", lambda: [0.5, 1.0])
    second = KernelTrainer(tiny_cfg(tmp_path))
    second.resume_or_load()
    second.train()
    assert len(calls) == 6
    assert cpu.convolution_is_faster is True


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_processes_compute_alike(tmp_path):
    ended = run_processes(cases.kernels, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert [json.loads((tmp_path / f"kernels{rank}").read_text()) for rank in range(2)] == [True, True]
