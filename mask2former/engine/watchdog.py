"""A thread that says what a step that does not end is waiting for."""

import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from mask2former.d2 import comm
from mask2former.engine.hooks import Hook
from mask2former.files import write_text

logger = logging.getLogger(__name__)

_WAITS = {
    os.path.join("torch", "utils", "data"): "waits for data",
    os.path.join("torch", "distributed"): "waits for other processes",
    os.path.join("torch", "autograd"): "computes gradients, or waits for those of other processes",
}
"""What the main thread does, by the folder of a file that it is in."""


class Watchdog(Hook):
    """Logs, when a step has taken `seconds` and again each time that doubles, where this process is in its code, and
    at which file each worker is that loads data.

    With several processes each leaves what it sees in `folder`, and the main one tells what others left, and which of
    them left nothing. Nothing is done about it: that is for who reads it.

    Args:
        seconds: 0 for never.
        folder: one that all processes share.
    """

    def __init__(self, seconds: float, folder: str | os.PathLike[str]) -> None:
        self.seconds = seconds
        self._folder = Path(folder)
        self._step: tuple[int, float] | None = None  # the running iteration, and when it began
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def before_train(self) -> None:
        """Start watching."""
        self._forget()
        if self.seconds > 0:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def before_step(self) -> None:
        """The step begins."""
        self._step = self.trainer.iter, time.monotonic()

    def after_step(self) -> None:
        """The step has ended."""
        self._step = None

    def after_train(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._forget()

    def _watch(self) -> None:
        step, due, told = None, self.seconds, set[int]()
        while not self._ended.wait(min(self.seconds / 4, 5.0)):
            if self._step != step:
                step, due, told = self._step, self.seconds, {comm.get_rank()}
                self._forget()
            age = time.monotonic() - step[1] if step else 0.0
            if step and age >= due:
                due *= 2
                self._tell(step[0], age)
            if step and told and comm.is_main_process() and age >= self.seconds:
                self._tell_others(step[0], told, is_late=age >= 2 * self.seconds)

    def _tell(self, iteration: int, age: float) -> None:
        text = f"iteration {iteration} has taken {age:.0f} s: {place()}{self._workers()}"
        logger.warning("Process %d: %s", comm.get_rank(), text)
        if not comm.is_main_process():
            with suppress(OSError):
                write_text(self._file(comm.get_rank()), text)

    def _tell_others(self, iteration: int, told: set[int], *, is_late: bool) -> None:
        for rank in set(range(comm.get_world_size())) - told:
            text = self._file(rank).read_text(encoding="utf-8") if self._file(rank).is_file() else ""
            if text.startswith(f"iteration {iteration} "):
                logger.warning("Process %d: %s", rank, text)
                told.add(rank)
            elif is_late:
                logger.warning("Process %d has not come to iteration %d, or hangs outside Python", rank, iteration)
                told.add(rank)

    def _workers(self) -> str:
        dataset: Any = getattr(self.trainer.loader, "dataset", None)
        if not hasattr(dataset, "progress"):
            return ""
        lines = []
        for worker, index, seconds in dataset.progress.busy():
            who = "the process" if worker is None else f"worker {worker}"
            file = dataset.dicts[index].get("file_name", "?")
            lines.append(f"\n  {who} has been at image {index} of the data set for {seconds:.0f} s: {file}")
        return "".join(lines)

    def _file(self, rank: int) -> Path:
        return self._folder / f"waiting.rank{rank}"

    def _forget(self) -> None:
        with suppress(OSError):  # there may be no disk any more
            self._file(comm.get_rank()).unlink()


def place() -> str:
    """Where the main thread is, in words."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)
    waits = [text for folder, text in _WAITS.items() if any(folder in entry.filename for entry in stack)]
    own = [entry for entry in stack if f"{os.sep}torch{os.sep}" not in entry.filename] or stack
    return f"{', '.join([*waits[:1], 'at'])} {own[-1].filename}:{own[-1].lineno} ({own[-1].line})"
