"""A step that does not end says what it waits for: worker and file, or the process that is late."""

import argparse
import logging
import re
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from mask2former.d2.evaluation import DatasetEvaluators
from mask2former.data.loader import TestDataset, build_train_loader
from mask2former.engine.main import main
from tests.helpers import distributed_cases as cases
from tests.helpers.distributed_cases import Touching
from tests.helpers.processes import run_processes
from tests.helpers.training import TinyTrainer, tiny_cfg


def read(record, *, until):
    """A mapper that cannot get over image 5."""
    while record["image_id"] == 5 and not until.exists():
        time.sleep(0.02)
    return {**record, "image": torch.rand(4)}


@contextmanager
def touching(path, text):
    handler = Touching(path, text)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


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
    with touching(tmp_path / "said", "images/5.jpg"):
        Hanging(cfg).train()
    text = next(message for message in caplog.messages if "images/5.jpg" in message)
    assert text.startswith("Process 0: iteration ")
    assert "waits for data, at " in text
    assert re.search(rf"{who} has been at image 5 of the data set for \d+ s: images/5\.jpg", text)
    assert not list(tmp_path.glob("waiting*"))


class Evaluating(TinyTrainer):
    """Its evaluation cannot get over image 5."""

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        records = [{"file_name": f"images/{index}.jpg", "image_id": index} for index in range(8)]
        mapper = partial(read, until=Path(cfg.OUTPUT_DIR, "said"))
        workers = cfg.DATALOADER.NUM_WORKERS
        samples = TestDataset(records, mapper, workers=workers)
        return DataLoader(samples, batch_size=1, collate_fn=list, num_workers=workers)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return DatasetEvaluators([])


def evaluating_cfg(folder, workers=0):
    cfg = tiny_cfg(folder, WATCHDOG_SECONDS=0.2)
    cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = ("eight",), workers
    return cfg


@pytest.mark.parametrize(("workers", "who"), [(0, "the process"), (1, "worker 0")])
def test_the_image_that_an_evaluation_hangs_at_is_named(tmp_path, caplog, workers, who):
    with touching(tmp_path / "said", "images/5.jpg"):
        Evaluating(evaluating_cfg(tmp_path, workers)).train()
    text = next(message for message in caplog.messages if "images/5.jpg" in message)
    assert re.match(r"Process 0: the evaluation after iteration 5, batch [3-6] of 8, has taken \d", text)
    assert re.search(rf"{who} has been at image 5 of the data set for \d+ s: images/5\.jpg", text)


def test_an_evaluation_without_training_is_watched(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("mask2former.engine.main.setup", lambda args, _: evaluating_cfg(tmp_path))
    monkeypatch.setattr("mask2former.engine.main.check_setup", lambda cfg, eval_only: None)
    args = argparse.Namespace(config_file="x", eval_only=True, resume=False, allow_missing_weights=True, strict=False)
    with touching(tmp_path / "said", "images/5.jpg"):
        main(args, Evaluating)
    assert "Process 0: the evaluation, batch 6 of 8, has taken" in caplog.text


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


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_the_process_that_others_wait_for_in_an_evaluation_is_named(tmp_path):
    text = "Process 1: the evaluation after iteration 0, batch 2 of 3, has taken"
    ended = run_processes(cases.waiting_in_evaluation, tmp_path, text, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert text in ended[0].output
    assert "Process 0: the evaluation after iteration 0, metrics, has taken" in ended[0].output
