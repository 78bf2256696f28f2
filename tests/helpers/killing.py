"""A training that is killed again and again, and what it leaves in the end."""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from torch.utils.data import DataLoader

import mask2former
from mask2former.d2.config import CfgNode
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.data.loader import build_train_loader
from mask2former.files import write_bytes
from tests.helpers.processes import run_processes
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg

PACKAGE = os.path.dirname(mask2former.__file__)
CLOCKS = ("time", "data_time", "eta_seconds")
"""Scalars that no two runs have in common."""
STEPS = 90


def _example(record: dict[str, Any]) -> dict[str, Any]:
    """A mapper that draws random numbers."""
    return {**record, "image": torch.rand(4) + record["image_id"] % 3}


class _Weights(DatasetEvaluator):
    """Scores weights, and writes a file as others write their predictions."""

    def __init__(self, model: nn.Module, folder: str) -> None:
        self.model, self.path = model, Path(folder, "predictions.json")

    def process(self, inputs: Any, outputs: Any) -> None:
        write_bytes(self.path, b"[]")

    def evaluate(self) -> dict[str, Any]:
        return {"weights": {"sum": float(sum(value.sum() for value in self.model.parameters()))}}


class KilledTrainer(TinyTrainer):
    """The usual loader, with a worker, and evaluations."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        cls.built = TinyModel()
        return cls.built

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> DataLoader:
        records = [{"file_name": f"{index}.jpg", "image_id": index} for index in range(50)]
        return build_train_loader(cfg, start_iteration=start_iteration, dataset=records, mapper=_example)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[Any]:
        return [[{"image": torch.ones(4)}]]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return _Weights(cls.built, os.path.join(cfg.OUTPUT_DIR, "inference"))


def train(out: Path, kill_at: int | None = None, tear: int | None = None) -> None:
    """Train, or continue.

    Args:
        kill_at: die before the so-manieth line of the library that the main thread would run.
        tear: die in the so-manieth file that PyTorch writes, when half of it is on the disk.
    """
    cfg = tiny_cfg(out, MAX_ITER=STEPS, CHECKPOINT_PERIOD=4)
    cfg.DATASETS.TEST = ("weights",)
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.TEST.EVAL_PERIOD = 6
    if tear is not None:
        torch.save = partial(_torn_save, torch.save, [tear])
    counter = _LineCounter(kill_at)
    sys.settrace(counter.enter)
    trainer = KilledTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    sys.settrace(None)
    (out / "lines").write_text(str(counter.lines))


def _torn_save(save: Any, countdown: list[int], content: Any, path: Path) -> None:
    save(content, path)
    countdown[0] -= 1
    if countdown[0] == 0:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


class _LineCounter:
    def __init__(self, kill_at: int | None) -> None:
        self.lines, self.kill_at = 0, kill_at

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.lines += event == "line"
        if self.lines == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.line


def kill_and_resume(folder: Path, *, kills: int, seed: int) -> tuple[Path, Path]:
    """Train once without an interruption, and once with `kills` of them; returns the two output folders.

    Of four kills two come before some line, one while a file is half written, and one from outside.
    """
    straight, killed = folder / "straight", folder / "killed"
    (ended,) = run_processes(train, straight, folder=straight, processes=1)
    assert ended.code == 0, ended
    lines = int((straight / "lines").read_text())
    draw = random.Random(seed)
    for number in range(kills):
        end: dict[str, Any] = {"kill_at": draw.randint(1, 3 * lines // kills)}
        act = None
        if number % 4 == 1:
            end = {"kill_at": None, "tear": draw.randint(1, 4)}
        elif number % 4 == 3:
            end, delay = {"kill_at": None}, draw.uniform(0, 0.6)
            act = partial(_kill, delay=delay)
        (ended,) = run_processes(train, killed, *end.values(), folder=killed, processes=1, act=act)
        assert ended.code == -signal.SIGKILL, (number, end, ended)
    (ended,) = run_processes(train, killed, folder=killed, processes=1)
    assert ended.code == 0, ended
    return straight, killed


def _kill(pids: list[int], *, delay: float) -> None:
    time.sleep(delay)
    os.kill(pids[0], signal.SIGKILL)


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint, without what names the folder."""
    content = torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)
    return {key: value for key, value in content.items() if key not in ("settings", "hooks", "config_yaml")}


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.json, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all TensorBoard events in the order in which TensorBoard reads them, without times."""
    files = sorted(folder.glob("*tfevents*"))
    found = [event for file in files for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
    values = [(event.step, value) for event in found for value in event.summary.value]
    return [(step, value.tag, value.tensor.float_val[0]) for step, value in values if value.tag not in CLOCKS]
