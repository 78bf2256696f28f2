"""One process here, several by torchrun, which train as one does with the same global batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mask2former.engine.launch import LAUNCHERS, launch
from tests.helpers import distributed_run
from tests.helpers.processes import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", *(name for names in LAUNCHERS.values() for name in names)):
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


SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "gpus", "arguments", "expected"),
    [
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 0, {}, (5, 8, 1, 4, "env://")),
        ({"RANK": "5", "WORLD_SIZE": "8"}, 4, {}, (5, 8, 1, 4, "env://")),  # of Kubernetes, say
        ({"RANK": "5", "WORLD_SIZE": "8"}, 1, {}, (5, 8, 0, 1, "env://")),
        ({"RANK": "5", "WORLD_SIZE": "8"}, 0, {}, (5, 8, 5, 8, "env://")),
        (SRUN | MEETING, 4, {}, (5, 8, 1, 4, "env://")),
        (SRUN, 4, {"dist_url": "tcp://node1:1"}, (5, 8, 1, 4, "tcp://node1:1")),
        (MPIRUN | MEETING, 4, {}, (5, 8, 1, 4, "env://")),
    ],
)
def test_place_that_a_launcher_gives(monkeypatch, environment, gpus, arguments, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    found = []
    monkeypatch.setattr("mask2former.engine.launch._run", lambda place, *rest: found.append(place))
    launch(print, 8, **arguments)
    (place,) = found
    assert (place.rank, place.world_size, place.local_rank, place.processes, place.init_method) == expected


@pytest.mark.parametrize(("program", "environment"), [("srun", SRUN), ("mpirun", MPIRUN)])
def test_processes_that_would_not_meet(monkeypatch, program, environment):
    """Each would train by itself, into the same folder."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{program} started 8 processes.*MASTER_ADDR"):
        launch(print, 1)


def test_srun_with_one_task_a_machine_and_arguments(monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"--machine-rank 2 must lie"):
        launch(print, 1, 2, 2, "tcp://node1:1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    calls = []
    launch(calls.append, 1, args=(5,))
    assert calls == [5]


def test_ctrl_c_is_one_line(caplog):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        launch(interrupted, 1)
    assert raised.value.code == 130
    assert raised.value.__suppress_context__
    assert caplog.messages == ["Interrupted"]


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


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_the_first_traceback_is_that_of_the_process_that_failed(tmp_path):
    run = started("broken_data", tmp_path)
    _, output = run.communicate(timeout=200)
    assert run.returncode == 1, output
    assert "-- Process 1 terminated with the following error:" in output
    first, *_ = output.split("another process has ended")
    assert "OSError: disk gone" in first
    assert torch.load(tmp_path / "model_interrupted.pth", weights_only=True)["iteration"] == 2


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_signal_to_the_process_that_started_others(tmp_path):
    """They save, it waits for them and ends as they do."""
    run = started("slow", tmp_path)
    try:
        for rank in range(2):
            wait_for(tmp_path / f"ready{rank}", timeout=200)
        run.send_signal(signal.SIGTERM)
        _, output = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 143, output
    assert output.count("Interrupted: the run continues at iteration") == 1
    assert "Traceback" not in output
    assert torch.load(tmp_path / "model_interrupted.pth", weights_only=True)["iteration"] >= 2


def started(case, folder):
    """A process that starts two, as `--num-gpus 2` does, for a function of `distributed_cases`."""
    code = f"""
import sys, torch
from pathlib import Path
from mask2former.engine.launch import launch
from tests.helpers import distributed_cases
if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    launch(distributed_cases.{case}, 2, args=(Path(sys.argv[1]),))
"""
    script = folder / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


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
    assert one["model"].keys() == two["model"].keys()
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-6, atol=1e-9)
    files = [tmp_path / name / "metrics.json" for name in ("one", "two")]
    lines = [json.loads(file.read_text().splitlines()[-1]) for file in files]
    for key in ("total_loss", "loss_ce", "loss_mask", "loss_dice_0", "grad_norm"):
        assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-4)
