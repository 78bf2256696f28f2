"""Metrics files: one line per write, continued after a resume without repeated iterations."""

import json
import logging

import pytest

from mask2former.d2.events import EventStorage
from mask2former.engine.writers import JSONWriter, LogWriter, TensorBoardWriter, duration, peak_memory_mib


def run(writers, start, end, period=2):
    with EventStorage(start) as storage:
        for iteration in range(start, end):
            storage.put_scalars(total_loss=float(iteration), loss_ce_0=1.0, time=0.5)
            storage.put_scalar("lr", 1e-4, smoothing_hint=False)
            if (iteration + 1) % period == 0:
                for writer in writers:
                    writer.write(storage)
            storage.step()
    for writer in writers:
        writer.close()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path):
    path = tmp_path / "metrics.json"
    run([JSONWriter(path)], 0, 4)
    assert [line["iteration"] for line in read(path)] == [1, 3]
    assert read(path)[0] == {"iteration": 1, "total_loss": 0.5, "loss_ce_0": 1.0, "lr": 1e-4, "time": 0.5}


def test_json_lines_continue_after_resume(tmp_path):
    path = tmp_path / "metrics.json"
    run([JSONWriter(path)], 0, 6)
    with path.open("a") as file:
        file.write('{"iteration": 7, "total')  # the interrupted run died while writing
    run([JSONWriter(path, start_iter=4)], 4, 8)
    assert [line["iteration"] for line in read(path)] == [1, 3, 5, 7]
    assert list(tmp_path.iterdir()) == [path]


def test_new_run_keeps_the_file_of_an_earlier_one(tmp_path):
    path = tmp_path / "metrics.json"
    run([JSONWriter(path)], 0, 6)
    run([JSONWriter(path)], 0, 2)
    assert [line["iteration"] for line in read(path)] == [1]
    assert [line["iteration"] for line in read(tmp_path / "metrics.json.old")] == [1, 3, 5]
    for end in (4, 8):
        run([JSONWriter(path)], 0, end)
    kept = {file.name: read(file)[-1]["iteration"] for file in tmp_path.iterdir()}
    assert kept == {"metrics.json": 7, "metrics.json.old": 5, "metrics.json.old2": 1, "metrics.json.old3": 3}


def test_json_has_null_for_what_is_not_finite(tmp_path):
    writer = JSONWriter(tmp_path / "metrics.json")
    with EventStorage(0) as storage:
        storage.put_scalar("segm/AP", float("nan"), smoothing_hint=False)
        writer.write(storage)
    writer.close()
    assert read(tmp_path / "metrics.json") == [{"iteration": 0, "segm/AP": None}]


def test_scalars_of_another_iteration_get_their_own_line(tmp_path):
    writer = JSONWriter(tmp_path / "metrics.json")
    with EventStorage(3) as storage:
        storage.put_scalar("panoptic_seg/PQ", 50.0, smoothing_hint=False)
        storage.step()
        storage.put_scalar("total_loss", 1.0)
        writer.write(storage)
        writer.write(storage)  # nothing new: no line
    writer.close()
    assert read(tmp_path / "metrics.json") == [
        {"iteration": 3, "panoptic_seg/PQ": 50.0},
        {"iteration": 4, "total_loss": 1.0},
    ]


def test_results_of_an_evaluation_join_the_line_of_their_iteration(tmp_path):
    writer = JSONWriter(tmp_path / "metrics.json")
    with EventStorage(0) as storage:
        for iteration in range(2):
            storage.put_scalar("total_loss", 1.0)
            writer.write(storage)
            storage.put_scalar("panoptic_seg/PQ", 50.0 + iteration, smoothing_hint=False)
            writer.write(storage)
            storage.step()
    writer.close()
    assert read(tmp_path / "metrics.json") == [
        {"iteration": 0, "total_loss": 1.0, "panoptic_seg/PQ": 50.0},
        {"iteration": 1, "total_loss": 1.0, "panoptic_seg/PQ": 51.0},
    ]


def test_a_last_line_that_a_kill_broke_is_mended(tmp_path):
    """The line is taken from the checkpoint; results that are made up for join it."""
    path = tmp_path / "metrics.json"
    first = JSONWriter(path)
    run([first], 0, 4)
    state = first.state_dict()
    for broken in (read(path)[:1], [*read(path), {"iteration": 3, "rest": 1}, {"iteration": 9}]):
        path.write_text("".join(json.dumps(line) + "\n" for line in broken) + '{"iterat')
        writer = JSONWriter(path, start_iter=4)
        writer.load_state_dict(state)
        with EventStorage(4) as storage:
            storage.put_scalar("panoptic_seg/PQ", 50.0, smoothing_hint=False, cur_iter=3)
            writer.write(storage)
        writer.close()
        assert [line["iteration"] for line in read(path)] == [1, 3]
        assert read(path)[-1] == {**state["last"], "panoptic_seg/PQ": 50.0}


def losses(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("total_loss")]


def test_tensorboard_continues_after_resume(tmp_path):
    run([TensorBoardWriter(tmp_path)], 0, 6)
    run([TensorBoardWriter(tmp_path, start_iter=4)], 4, 8)  # of a checkpoint that knows nothing of files
    assert losses(tmp_path) == [1, 3, 5, 7]
    new = TensorBoardWriter(tmp_path, start_iter=8)
    run([new], 8, 12)
    state = {"sizes": new.state_dict()["sizes"], "written": {}}
    run([TensorBoardWriter(tmp_path, start_iter=12)], 12, 20)
    assert losses(tmp_path) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    third = TensorBoardWriter(tmp_path, start_iter=12)
    third.load_state_dict(state)
    run([third], 12, 14)
    assert losses(tmp_path) == [1, 3, 5, 7, 9, 11, 13]
    assert len(list(tmp_path.iterdir())) == 4


def test_tensorboard_events_are_on_the_disk_after_each_write(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 1.0)
        writer.write(storage)
    assert losses(tmp_path) == [0]
    writer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_after_an_error_of_the_disk(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(self, data):
        raise OSError("No space left on device")

    writer = TensorBoardWriter(tmp_path)
    with EventStorage(0) as storage:
        for iteration in range(4):
            storage.put_scalar("total_loss", 1.0)
            with monkeypatch.context() as patch:
                if iteration == 1:
                    patch.setattr(RecordWriter, "write", fail)
                    with pytest.raises(OSError, match="No space left"):
                        writer.write(storage)
                else:
                    writer.write(storage)
            storage.step()
    writer.close()
    assert losses(tmp_path) == [0, 2, 3]


def test_tensorboard_shows_nothing_of_an_earlier_run(tmp_path):
    run([TensorBoardWriter(tmp_path)], 0, 6)
    run([TensorBoardWriter(tmp_path)], 0, 2)
    assert losses(tmp_path) == [1]
    assert len(list(tmp_path.glob("events.out.earlier.*"))) == 1


def test_log_line(caplog):
    with caplog.at_level(logging.INFO):
        run([LogWriter(max_iter=10)], 0, 4, period=4)
    assert "iter 4/10  eta 0:00:03  total_loss 1.5" in caplog.text
    assert "time 0.500" in caplog.text
    assert "lr 0.0001" in caplog.text
    assert "max_mem" in caplog.text
    assert "loss_ce_0" not in caplog.text


def test_log_line_tells_speed_and_the_share_of_time_that_waits_for_data(caplog, tmp_path):
    """One step in four waits for 0.8 s: the median knows nothing of it, the share does."""
    writers = [LogWriter(max_iter=10, images_per_step=8), JSONWriter(tmp_path / "metrics.json")]
    with caplog.at_level(logging.INFO), EventStorage(0) as storage:
        for iteration in range(4):
            waited = 0.8 if iteration == 3 else 0.0
            storage.iter = iteration
            storage.put_scalars(time=0.2 + waited, data_time=waited)
        for writer in writers:
            writer.write(storage)
    writers[1].close()
    assert "eta 0:00:02  time 0.200  data_time 0.000 (50%)  20 img/s" in caplog.text
    assert read(tmp_path / "metrics.json")[-1]["eta_seconds"] == pytest.approx(6 * 0.4)


def test_log_line_comes_once_for_an_iteration(caplog):
    writer = LogWriter(max_iter=10)
    with caplog.at_level(logging.INFO), EventStorage(0) as storage:
        storage.put_scalars(time=0.5)
        writer.write(storage)
        writer.write(storage)
        storage.step()  # an early end saves once more, before there is another step
        writer.write(storage)
    assert "iter 2/10" not in caplog.text
    assert storage.latest()["eta_seconds"][1] == 0
    assert caplog.text.count("iter 1/10") == 1


def test_log_line_without_steps_is_silent(caplog):
    with caplog.at_level(logging.INFO):
        LogWriter(max_iter=10).write(EventStorage(0))
    assert caplog.text == ""


def test_duration_and_memory():
    assert duration(3661.4) == "1:01:01"
    assert duration(90000) == "1 day, 1:00:00"
    block = b"x" * 2**26
    peak = peak_memory_mib()
    assert peak is not None
    assert len(block) / 2**20 < peak < 2**15
