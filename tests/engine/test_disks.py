"""Runs on a real disk that is full or read-only: one in memory, mounted for a child process alone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch

from mask2former.engine.checks import SetupError
from tests.engine.test_bad_ends import At, train
from tests.helpers.training import TinyTrainer, tiny_cfg

MOUNT = 'mkdir -p "$0" && mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'


def on_a_disk(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where `folder` is a disk of 1 MiB."""
    whole = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, str(folder), *command]
    return subprocess.run(whole, capture_output=True, text=True, timeout=100)


@cache
def can_mount(folder: Path) -> bool:
    try:
        return on_a_disk(folder, "true").returncode == 0
    except OSError:  # no such command
        return False


@pytest.fixture
def run_on_a_disk(tmp_path: Path) -> Callable[[Callable[[Path], None]], str]:
    """Runs a function of this module with the path of a disk, in a process of its own; returns what it wrote."""
    if not can_mount(tmp_path.parent / "probe"):
        pytest.skip("this user may not mount a disk in memory (unshare --map-root-user --mount)")

    def run(function: Callable[[Path], None]) -> str:
        code = f"import sys, pathlib; from {__name__} import {function.__name__} as f; f(pathlib.Path(sys.argv[1]))"
        done = on_a_disk(tmp_path / "disk", sys.executable, "-c", code, str(tmp_path / "disk"))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def make_read_only(disk: Path) -> None:
    """For what is opened from now on: files that are open, such as the log, cannot be taken away."""
    for options in (["--bind", str(disk)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(disk)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def resumes_at(disk: Path, iteration: int) -> None:
    trainer = TinyTrainer(tiny_cfg(disk))
    trainer.resume_or_load(True)
    assert trainer.start_iter == iteration


def start_on_a_read_only_disk(disk: Path) -> None:
    cfg = tiny_cfg(disk)
    make_read_only(disk)
    for folder in (disk, disk / "below"):
        cfg.OUTPUT_DIR = str(folder)
        with pytest.raises(SetupError, match=r"OUTPUT_DIR '.*' cannot be written: .*Read-only file system"):
            train(cfg)


def lose_the_disk(disk: Path) -> None:
    logging.basicConfig(level=logging.INFO)
    with pytest.raises(OSError, match=r"model_final\.pth cannot be written: .*Read-only file system"):
        train(tiny_cfg(disk, CHECKPOINT_PERIOD=2), At(2, lambda: make_read_only(disk)))
    assert [path.name for path in disk.glob("*.pth")] == ["model_0000001.pth"]
    assert torch.load(disk / "model_0000001.pth", weights_only=True)["iteration"] == 1


def make_room_again(disk: Path) -> None:
    logging.basicConfig(level=logging.INFO)
    cfg = tiny_cfg(disk, CHECKPOINT_PERIOD=2)
    train(cfg, At(2, lambda: fill(disk)), At(4, lambda: (disk / "ballast").unlink()))
    assert sorted(path.name for path in disk.glob("*.pth")) == ["model_0000001.pth", "model_final.pth"]
    lines = [json.loads(line)["iteration"] for line in (disk / "metrics.json").read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == 5
    assert not [name for name in os.listdir(disk) if name.endswith(".tmp")]
    resumes_at(disk, 6)


def test_a_read_only_disk_is_named_before_training(run_on_a_disk) -> None:
    run_on_a_disk(start_on_a_read_only_disk)


def test_a_disk_that_becomes_read_only_keeps_its_checkpoints(run_on_a_disk) -> None:
    assert "Training goes on without a checkpoint of iteration 3" in run_on_a_disk(lose_the_disk)


def test_a_full_disk_does_not_end_a_run_that_gets_room_again(run_on_a_disk) -> None:
    assert "Training goes on without a checkpoint of iteration 3" in run_on_a_disk(make_room_again)
