"""Bad ends of a training with two processes: all end, nobody waits, the last step is saved, one of them says so."""

import json
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from mask2former.data.datasets.shapes import write_split
from tests.helpers import distributed_cases as cases
from tests.helpers.processes import run_processes, wait_for

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)


def saved_iteration(folder):
    return torch.load(folder / "model_interrupted.pth", weights_only=True)["iteration"]


def assert_only_main_process_says_it_saved(ended):
    assert "Interrupted: the run continues at iteration" in ended[0].output
    assert "Interrupted: the run continues" not in ended[1].output


@pytest.mark.parametrize(("rank", "number", "code"), [(0, signal.SIGTERM, 143), (1, signal.SIGINT, 130)])
def test_processes_agree_on_a_stop(tmp_path, rank, number, code):
    ended = run_processes(cases.signal_to_one, tmp_path, rank, number, folder=tmp_path)
    assert [process.code for process in ended] == [code, code], ended
    assert saved_iteration(tmp_path) == 5  # the step in which all heard of it
    assert_only_main_process_says_it_saved(ended)
    assert "Traceback" not in ended[0].output + ended[1].output


def test_signals_to_process_groups_with_workers(tmp_path):
    def act(pids):
        for rank in range(2):
            wait_for(tmp_path / f"ready{rank}")
        for _ in range(3):
            for pid in pids:
                os.killpg(pid, signal.SIGTERM)
            time.sleep(0.05)

    ended = run_processes(cases.signals_to_all, tmp_path, folder=tmp_path, act=act)
    assert [process.code for process in ended] == [143, 143], ended
    assert saved_iteration(tmp_path) >= 2
    assert_only_main_process_says_it_saved(ended)
    assert "killed by signal" not in ended[0].output + ended[1].output


def test_lost_data_of_one_process(tmp_path):
    ended = run_processes(cases.broken_data, tmp_path, folder=tmp_path)
    assert all(process.code for process in ended), ended
    assert "OSError: disk gone" in ended[1].output
    assert "another process has ended" in ended[0].output
    assert "Traceback" not in ended[0].output.split("another process has ended")[0]
    assert saved_iteration(tmp_path) == 2
    assert_only_main_process_says_it_saved(ended)


def test_a_process_that_is_killed(tmp_path):
    ended = run_processes(cases.killed, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [1, -signal.SIGKILL], ended
    assert "another process has ended" in ended[0].output
    assert saved_iteration(tmp_path) == 3


def test_scalars_are_means_over_processes(tmp_path):
    ended = run_processes(cases.keeping, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    first, second = (json.loads((tmp_path / f"losses{rank}").read_text()) for rank in range(2))
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert first["loss_ce"] != second["loss_ce"]
    for name in first:
        assert line[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-6)


def test_loss_of_one_process_is_not_finite(tmp_path):
    """Under loss scaling, where the other process sees nothing but a gradient that overflows."""
    ended = run_processes(cases.diverging, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [1, 1], ended
    for process in ended:
        assert "loss_ce = nan at iteration 2, rank 1, batch: images/9.jpg" in process.output
        assert "rank 0" not in process.output
    assert saved_iteration(tmp_path) == 1


def test_processes_leave_out_the_same_steps(tmp_path):
    ended = run_processes(cases.skipping, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    first, second = (torch.load(tmp_path / f"weights{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines[-1]["skipped_steps"] == 1
    assert "Step left out" in ended[0].output
    assert "Step left out" in ended[1].output


def test_the_failed_step_of_one_process_is_in_the_file(tmp_path):
    run_processes(cases.diverging, tmp_path, folder=tmp_path)
    content = torch.load(tmp_path / "failed_step_0000002.pth", weights_only=True)
    assert [[item["image_id"] for item in batch] for batch in content["batches"].values()] == [[9, 11]]
    assert list(content["batches"]) == [1]


def test_setup_that_fails_in_one_process(tmp_path):
    ended = run_processes(cases.broken_setup, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [1, 1], ended
    assert "process 1 failed: FileNotFoundError: no weights here" in ended[0].output
    assert "FileNotFoundError: no weights here" in ended[1].output


def test_process_that_waits_for_one_that_hangs_saves(tmp_path):
    def act(pids):
        wait_for(tmp_path / "hangs")
        time.sleep(0.5)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)

    ended = run_processes(cases.hanging, tmp_path, folder=tmp_path, act=act)
    assert [process.code for process in ended] == [143, 143], ended
    assert saved_iteration(tmp_path) == 2
    assert_only_main_process_says_it_saved(ended)


def test_random_numbers_buffers_and_scalars(tmp_path):
    ended = run_processes(cases.random_numbers, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    drawn = {torch.load(path).sum().item() for path in tmp_path.glob("?-?.pt")}
    assert len(drawn) == 4  # two steps on two processes, each with numbers of its own
    assert [torch.load(tmp_path / f"buffer{rank}.pt").item() for rank in range(2)] == [0.0, 1.0]  # not broadcast
    scalars = [set((tmp_path / f"scalars{rank}").read_text().split()) for rank in range(2)]
    assert scalars[0] >= {"total_loss", "loss_ce", "lr", "grad_norm"}
    assert scalars[1] <= {"time"}


def test_processes_end_early_together(tmp_path):
    ended = run_processes(cases.early_end, tmp_path, "segm/AP", folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert [(tmp_path / f"ended{rank}").read_text() for rank in range(2)] == ["5", "5"]
    iterations = [
        torch.load(tmp_path / f"model_{name}.pth", weights_only=True)["iteration"] for name in ("best", "final")
    ]
    assert iterations == [1, 5]


def test_metric_that_does_not_exist_ends_all(tmp_path):
    ended = run_processes(cases.early_end, tmp_path, "segm/PQ", folder=tmp_path)
    assert [process.code for process in ended] == [1, 1], ended
    assert "SOLVER.BEST_CHECKPOINT.METRIC is 'segm/PQ'" in ended[0].output
    assert "process 0 failed: ValueError: SOLVER.BEST_CHECKPOINT.METRIC" in ended[1].output


def test_evaluation_by_two_processes_is_that_of_one(tmp_path):
    """Of five images, each once, whoever had it."""
    list(write_split(tmp_path / "shapes", "val", 5, size=(48, 64), workers=1))
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        ended = run_processes(cases.evaluation, out, tmp_path, folder=out, processes=processes)
        assert [process.code for process in ended] == [0] * processes, ended
        results.append(json.loads((out / "results.json").read_text()))
        assert len(list(out.rglob("panoptic_predictions/*.png"))) == 5
    assert results[0].keys() >= {"panoptic_seg", "segm", "sem_seg"}
    for task, metric in (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU")):
        assert 0 < results[0][task][metric] < 100
    assert json.dumps(results[0]) == json.dumps(results[1])
