"""A step that does not end says what it waits for: worker and file, or the process that is late."""

import logging
import re
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist

from mask2former.data.loader import build_train_loader
from tests.helpers import distributed_cases as cases
from tests.helpers.distributed_cases import Touching
from tests.helpers.processes import run_processes
from tests.helpers.training import TinyTrainer, tiny_cfg


def read(record, *, until):
    """A mapper that cannot get over image 5."""
    while record["image_id"] == 5 and not until.exists():
        time.sleep(0.02)
    return {**record, "image": torch.rand(4)}


@pytest.mark.parametrize(("workers", "who"), [(0, "the process"), (1, "worker 0")])
def test_the_file_that_a_worker_hangs_at_is_named(tmp_path, caplog, workers, who):
    class Hanging(TinyTrainer):
        @classmethod
        def build_train_loader(cls, cfg, *, start_iteration=0):
            records = [{"file_name": f"images/{index}.jpg", "image_id": index} for index in range(8)]
            mapper = partial(read, until=tmp_path / "said")
            return build_train_loader(cfg, start_iteration=start_iteration, dataset=records, mapper=mapper)

    cfg = tiny_cfg(tmp_path, WATCHDOG_SECONDS=0.2)
    cfg.DATALOADER.NUM_WORKERS = workers
    handler = Touching(tmp_path / "said", "images/5.jpg")
    logging.getLogger().addHandler(handler)
    try:
        Hanging(cfg).train()
    finally:
        logging.getLogger().removeHandler(handler)
    text = next(message for message in caplog.messages if "images/5.jpg" in message)
    assert text.startswith("Process 0: iteration ")
    assert "waits for data, at " in text
    assert re.search(rf"{who} has been at image 5 of the data set for \d+ s: images/5\.jpg", text)
    assert not list(tmp_path.glob("waiting*"))


def test_steps_that_end_in_time_say_nothing(tmp_path, caplog):
    TinyTrainer(tiny_cfg(tmp_path)).train()
    TinyTrainer(tiny_cfg(tmp_path, WATCHDOG_SECONDS=0.0)).train()
    assert "has taken" not in caplog.text


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "Process 1: iteration 3 has taken"), (0.0, "Process 1 has not come to iteration 3, or hangs")],
)
def test_the_process_that_others_wait_for_is_named(tmp_path, seconds, text):
    ended = run_processes(cases.waiting, tmp_path, text, seconds, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert text in ended[0].output
    assert "Process 0: iteration 3 has taken" in ended[0].output
    assert "waits for" in ended[0].output
    if seconds:
        assert "distributed_cases.py" in ended[0].output.split(text)[1].splitlines()[0]
