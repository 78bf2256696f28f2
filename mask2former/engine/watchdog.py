"""A thread that says what a step, or an evaluation, that does not end is waiting for."""

import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from contextvars import Token
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.d2 import comm
from mask2former.engine.hooks import Hook
from mask2former.evaluation.engine import BatchListener, batch_listener
from mask2former.files import write_text

logger = logging.getLogger(__name__)

_WAITS = {
    os.path.join("torch", "utils", "data"): "waits for data",
    os.path.join("torch", "distributed"): "waits for other processes",
    os.path.join("torch", "autograd"): "computes gradients, or waits for those of other processes",
}
"""What the main thread does, by the folder of a file that it is in."""


class _Task(NamedTuple):
    """What is being done, alike in all processes; which part of it; since when; and the loader that feeds it."""

    name: str
    part: str
    since: float
    loader: Any


class Watch:
    """Logs, when a step or a batch of an evaluation has taken `seconds` and again each time that doubles, where this
    process is in its code, and at which file each worker is that loads data.

    With several processes each leaves what it sees in `folder`, and the main one tells what others left, and which of
    them left nothing. Nothing is done about it: that is for who reads it.

    Args:
        seconds: 0 for never.
        folder: one that all processes share.
    """

    def __init__(self, seconds: float, folder: str | os.PathLike[str]) -> None:
        self.seconds = seconds
        self.evaluation = "the evaluation"
        """What evaluations are called that begin from now on."""
        self._folder = Path(folder)
        self._task: _Task | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._token: Token[BatchListener] | None = None

    def __enter__(self) -> None:
        """Start watching, evaluations in this thread too."""
        self._forget()
        if self.seconds > 0:
            self._token = batch_listener.set(self._evaluating)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()
        if self._thread is not None and self._token is not None:
            batch_listener.reset(self._token)
            self._thread.join()
            self._forget()

    def begin(self, name: str, loader: Any, *, part: str = "") -> None:
        """Something begins; it takes the place of what was done before."""
        self._task = _Task(name, part, time.monotonic(), loader)

    def end(self) -> None:
        """It has ended."""
        self._task = None

    def _evaluating(self, loader: Any, part: str | None) -> None:
        if part is None:
            self.end()
        else:
            self.begin(self.evaluation, loader, part=f", {part},")

    def _watch(self) -> None:
        task, due, told = None, self.seconds, set[int]()
        while not self._ended.wait(min(self.seconds / 4, 5.0)):
            if self._task is not task:
                task, due, told = self._task, self.seconds, {comm.get_rank()}
                self._forget()
            age = time.monotonic() - task.since if task else 0.0
            if task and age >= due:
                due *= 2
                self._tell(task, age)
            if task and told and comm.is_main_process() and age >= self.seconds:
                self._tell_others(task.name, told, is_late=age >= 2 * self.seconds)

    def _tell(self, task: _Task, age: float) -> None:
        text = f"{task.name}{task.part} has taken {age:.0f} s: {place()}{_workers(task.loader)}"
        logger.warning("Process %d: %s", comm.get_rank(), text)
        if not comm.is_main_process():
            with suppress(OSError):
                write_text(self._file(comm.get_rank()), text)

    def _tell_others(self, name: str, told: set[int], *, is_late: bool) -> None:
        for rank in set(range(comm.get_world_size())) - told:
            text = self._file(rank).read_text(encoding="utf-8") if self._file(rank).is_file() else ""
            if text.startswith((f"{name} ", f"{name},")):
                logger.warning("Process %d: %s", rank, text)
                told.add(rank)
            elif is_late:
                logger.warning("Process %d has not come to %s, or hangs outside Python", rank, name)
                told.add(rank)

    def _file(self, rank: int) -> Path:
        return self._folder / f"waiting.rank{rank}"

    def _forget(self) -> None:
        with suppress(OSError):  # there may be no disk any more
            self._file(comm.get_rank()).unlink()


class Watchdog(Hook):
    """Watches the steps and the evaluations of a training, see `Watch`."""

    def __init__(self, seconds: float, folder: str | os.PathLike[str]) -> None:
        self._watch = Watch(seconds, folder)

    def before_train(self) -> None:
        """Start watching."""
        self._watch.__enter__()
        self._watch.evaluation = f"the evaluation before iteration {self.trainer.start_iter}"

    def before_step(self) -> None:
        """The step begins."""
        self._watch.begin(f"iteration {self.trainer.iter}", self.trainer.loader)

    def after_step(self) -> None:
        """The step has ended; an evaluation may follow."""
        self._watch.end()
        self._watch.evaluation = f"the evaluation after iteration {self.trainer.iter}"

    def after_train(self) -> None:
        """Stop watching."""
        self._watch.__exit__()


def _workers(loader: Any) -> str:
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "progress"):
        return ""
    lines = []
    for worker, index, seconds in dataset.progress.busy():
        who = "the process" if worker is None else f"worker {worker}"
        file = dataset.dicts[index].get("file_name", "?")
        lines.append(f"\n  {who} has been at image {index} of the data set for {seconds:.0f} s: {file}")
    return "".join(lines)


def place() -> str:
    """Where the main thread is, in words."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)
    waits = [text for folder, text in _WAITS.items() if any(folder in entry.filename for entry in stack)]
    own = [entry for entry in stack if f"{os.sep}torch{os.sep}" not in entry.filename] or stack
    return f"{', '.join([*waits[:1], 'at'])} {own[-1].filename}:{own[-1].lineno} ({own[-1].line})"
