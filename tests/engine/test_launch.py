"""One process here, several by torchrun, which train as one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mask2former.engine.launch import launch
from tests.helpers import distributed_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_single_process_runs_here(num_gpus):
    calls = []
    launch(calls.append, num_gpus, args=(5,))
    assert calls == [5]


def test_torchrun_with_one_process_runs_here(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    calls = []
    launch(calls.append, 8, args=(5,))
    assert calls == [5]
    assert not dist.is_initialized()


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--num-gpus 2.*has 0 usable GPUs.*torchrun --nproc-per-node 2"):
        launch(print, 2)


def test_machine_rank_out_of_range():
    with pytest.raises(ValueError, match=r"--machine-rank 2 must lie in \[0, --num-machines 2\)"):
        launch(print, 1, 2, 2, "tcp://127.0.0.1:1")


def test_several_machines_need_an_address():
    with pytest.raises(ValueError, match=r"--dist-url tcp://HOST:PORT"):
        launch(print, 1, 2, 0)


def torchrun(*arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_two_processes_train_as_one(tmp_path):
    run = torchrun("tests/helpers/distributed_run.py", str(tmp_path / "two"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "two" / "rank0of2").is_file()
    assert (tmp_path / "two" / "rank1of2").is_file()
    distributed_run.main(str(tmp_path / "one"))
    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("one", "two"))
    start = distributed_run.PlainTrainer.build_model(None).state_dict()
    assert set(one["model"]) == set(two["model"]) == set(start)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-5)
    lines = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    for key in ("total_loss", "loss_ce", "grad_norm"):
        assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-4)
