"""Communication alone and between two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mask2former
from mask2former.d2 import SOURCE, comm

TWO_PROCESSES = """
import os, sys, torch
import torch.distributed as dist
from mask2former.d2 import SOURCE, comm
from mask2former.d2.layers import get_norm

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
if SOURCE == "bundled":
    try:
        comm.get_local_rank()
    except AssertionError as error:
        assert "create_local_process_group" in str(error)
    os.environ |= {"LOCAL_RANK": "7", "LOCAL_WORLD_SIZE": "9"}
    assert (comm.get_local_rank(), comm.get_local_size()) == (7, 9)
comm.create_local_process_group(2)
assert (comm.get_rank(), comm.get_world_size()) == (rank, 2)
assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
assert comm.is_main_process() == (rank == 0)
assert comm.all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
assert comm.gather("x" * (rank + 1)) == (["x", "xx"] if rank == 0 else [])
seeds = comm.all_gather(comm.shared_random_seed())
assert seeds[0] == seeds[1]
if SOURCE == "bundled":
    torch.manual_seed(rank)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(get_norm("SyncBN", 4)(x), get_norm("BN", 4)(x))
comm.synchronize()
print("fine")
"""


def test_one_process_answers_for_itself() -> None:
    assert (comm.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.get_local_size()) == (
        0,
        0,
        1,
        1,
    )
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == ["x"]
    assert comm.gather("x") == ["x"]
    assert 0 <= comm.shared_random_seed() < 2**31


def test_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(TWO_PROCESSES)
    unset = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"PYTHONPATH": str(Path(mask2former.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "rendezvous")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=600)
        assert worker.returncode == 0, err
        assert out.strip().endswith("fine")


def test_uneven_machines_are_refused() -> None:
    if SOURCE != "bundled":
        pytest.skip("tests the bundled message")
    with pytest.raises(AssertionError, match="cannot be split into 2"):
        comm.create_local_process_group(2)
