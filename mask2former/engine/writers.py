"""Where metrics go: lines of JSON, TensorBoard, and readable lines in the log."""

import json
import logging
import math
import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from mask2former.d2.events import EventStorage
from mask2former.files import write_text

logger = logging.getLogger(__name__)

WINDOW = 20
"""Number of last values over which noisy scalars are smoothed (median)."""


class EventWriter(Protocol):
    """What `PeriodicWriter` calls."""

    def write(self, storage: EventStorage) -> None:
        """Write what is new in `storage`."""

    def close(self) -> None:
        """Flush and release files."""


class NewScalars:
    """Remembers of which iteration each scalar was written."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}

    def take(self, storage: EventStorage) -> dict[int, dict[str, float]]:
        """Scalars put since the last call, smoothed where they ask for it: {iteration: {name: value}}."""
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if self._written.get(name) != iteration:
                new.setdefault(iteration, {})[name] = float(value)
                self._written[name] = iteration
        return dict(sorted(new.items()))


class JSONWriter:
    """One JSON object a line: `{"iteration": 39, "total_loss": 21.3, "lr": 0.0001, ...}`.

    What comes later for the iteration of the last line, such as results of an evaluation, joins it. A resumed run
    (`start_iter` > 0) continues the file: lines from `start_iter` on, which the interrupted run wrote after the
    checkpoint, are dropped, so that nothing appears twice. A new run keeps the file of an earlier one under the added
    ending `.old`. Values that are not finite become null.
    """

    def __init__(self, path: str | Path, *, start_iter: int = 0) -> None:
        self._path = Path(path)
        self._new = NewScalars()
        if self._path.exists():
            if start_iter > 0:
                self._drop_lines_from(start_iter)
            else:
                os.replace(self._path, f"{self._path}.old")
        self._file = self._path.open("a", encoding="utf-8")
        self._last: dict[str, Any] = {}
        self._last_start = 0

    def _drop_lines_from(self, start_iter: int) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _iteration(line) < start_iter]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, storage: EventStorage) -> None:
        """Append one line per iteration that has new scalars, normally one."""
        for iteration, scalars in self._new.take(storage).items():
            finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            line = {"iteration": iteration, **finite}
            if self._last.get("iteration") == iteration:
                line = self._last | line
                self._file.truncate(self._last_start)
            self._file.flush()
            self._last, self._last_start = line, os.fstat(self._file.fileno()).st_size
            self._file.write(json.dumps(line, sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _iteration(line: str) -> float:
    """Iteration of a JSON line; infinity (never kept) for one that was cut off in the middle."""
    try:
        return json.loads(line)["iteration"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class TensorBoardWriter:
    """Scalars as TensorBoard events in `log_dir`."""

    def __init__(self, log_dir: str | Path, *, start_iter: int = 0) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,
        )  # takes seconds to import, and only training needs it

        self._new = NewScalars()
        # on resuming, TensorBoard hides what the interrupted run wrote after the checkpoint
        self._writer = SummaryWriter(str(log_dir), purge_step=start_iter or None)

    def write(self, storage: EventStorage) -> None:
        """Write scalars of all iterations since the last call."""
        for iteration, scalars in self._new.take(storage).items():
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class LogWriter:
    """A line of the log: progress, time left, losses, speed, time spent waiting for data, learning rate, memory.

    Scalars have Detectron2's names; `eta_seconds` is stored here, for the writers that come after this one.
    """

    def __init__(self, max_iter: int, *, images_per_step: int | None = None) -> None:
        """
        Args:
            max_iter: end of the run.
            images_per_step: batch over all processes, to tell images per second.
        """
        self._max_iter = max_iter
        self._images_per_step = images_per_step
        self._logged: int | None = None

    def write(self, storage: EventStorage) -> None:
        """Log one line; the losses of auxiliary predictions are left to the other writers.

        Losses and times are medians over the last steps; images per second and the share of time that went into
        waiting for data are means, for one long wait in many steps counts too.
        """
        histories = storage.histories()
        if "time" not in histories or self._logged == storage.iter:
            return
        self._logged = storage.iter
        median = {name: history.median(WINDOW) for name, history in histories.items()}
        done = storage.iter + 1
        seconds_left = histories["time"].global_avg() * (self._max_iter - done)
        storage.put_scalar("eta_seconds", seconds_left, smoothing_hint=False)
        mean = max(histories["time"].avg(WINDOW), 1e-9)
        losses = [name for name in median if "loss" in name and not re.search(r"_\d+$", name)]
        peak = peak_memory_mib()
        parts = [
            f"iter {done}/{self._max_iter}",
            f"eta {duration(seconds_left)}",
            *(f"{name} {median[name]:.4g}" for name in losses),
            f"time {median['time']:.3f}",
            _waiting(histories["data_time"], mean) if "data_time" in histories else "",
            f"{self._images_per_step / mean:.3g} img/s" if self._images_per_step else "",
            f"lr {histories['lr'].latest():.3g}" if "lr" in histories else "",
            f"max_mem {peak:.0f}M" if peak is not None else "",
        ]
        logger.info("  ".join(part for part in parts if part))

    def close(self) -> None:
        """Nothing to release."""


def _waiting(data_time: Any, mean_step: float) -> str:
    share = data_time.avg(WINDOW) / mean_step
    return f"data_time {data_time.median(WINDOW):.3f} ({share:.0%})"


def duration(seconds: float) -> str:
    """`h:mm:ss`, preceded by days where there are any."""
    return str(timedelta(seconds=round(seconds)))


def peak_memory_mib() -> float | None:
    """Largest memory in use so far (MiB): of tensors on the GPU where there is one, else of this process if known."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
