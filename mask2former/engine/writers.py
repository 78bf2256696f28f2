"""Where metrics go: lines of JSON, TensorBoard, and readable lines in the log."""

import json
import logging
import math
import os
import re
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from mask2former.d2.events import EventStorage
from mask2former.engine.memory import peak_resident_memory
from mask2former.files import free_old_name, write_text

logger = logging.getLogger(__name__)

WINDOW = 20
"""Number of last values over which noisy scalars are smoothed (median)."""


class EventWriter(Protocol):
    """What `PeriodicWriter` calls. Writers of files also have `state_dict` and `load_state_dict`, as those below."""

    def write(self, storage: EventStorage) -> None:
        """Write what is new in `storage`."""

    def close(self) -> None:
        """Flush and release files."""


class NewScalars:
    """Remembers of which iteration each scalar was written."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}

    def take(self, storage: EventStorage) -> dict[int, dict[str, float]]:
        """Scalars put since the last call, smoothed where they ask for it: {iteration: {name: value}}."""
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if self.written.get(name) != iteration:
                new.setdefault(iteration, {})[name] = float(value)
                self.written[name] = iteration
        return dict(sorted(new.items()))


class ScalarWriter:
    """Base of writers that write what is new, and know in a resumed run what has been written."""

    def __init__(self) -> None:
        self._new = NewScalars()

    def state_dict(self) -> dict[str, Any]:
        """Which scalars are written."""
        return {"written": dict(self._new.written)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up, before the first `write`."""
        self._new.written = dict(state["written"])


def scalars_state(storage: EventStorage) -> dict[str, Any]:
    """The last values of all scalars, as far as later medians need them: `{name: {"smooth", "values"}}`."""
    state: dict[str, Any] = {}
    hints = storage.smoothing_hints()
    for name, history in storage.histories().items():
        values = history.values()
        recent = [(value, at) for value, at in values if at > values[-1][1] - WINDOW]
        state[name] = {"smooth": hints[name], "values": recent}
    return state


def load_scalars(storage: EventStorage, state: dict[str, Any]) -> None:
    """Put what `scalars_state` returned into an empty storage."""
    for name, scalar in state.items():
        for value, iteration in scalar["values"]:
            storage.put_scalar(name, value, smoothing_hint=scalar["smooth"], cur_iter=int(iteration))


class JSONWriter(ScalarWriter):
    """One JSON object a line: `{"iteration": 39, "total_loss": 21.3, "lr": 0.0001, ...}`.

    What comes later for the iteration of the last line, such as results of an evaluation, joins it. A resumed run
    (`start_iter` > 0) continues the file: what the interrupted run wrote after the checkpoint is dropped, so that
    nothing appears twice. A new run keeps the file of an earlier one as `.old`, `.old2` and so on.
    Values that are not finite become null.
    """

    def __init__(self, path: str | Path, *, start_iter: int = 0) -> None:
        self._path = Path(path)
        super().__init__()
        self._last: dict[str, Any] = {}
        self._last_start = 0
        if self._path.exists():
            if start_iter > 0:
                self._keep_lines_before(start_iter)
            else:
                os.replace(self._path, free_old_name(self._path))
        self._file = self._path.open("a", encoding="utf-8")

    def _keep_lines_before(self, iteration: int) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _iteration(line) < iteration]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def state_dict(self) -> dict[str, Any]:
        """Also the last line."""
        return {"last": dict(self._last), **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the file end as it did when the state was taken."""
        super().load_state_dict(state)
        if state["last"]:
            self._file.close()
            self._keep_lines_before(state["last"]["iteration"])
            self._file = self._path.open("a", encoding="utf-8")
            self._append(dict(state["last"]))
            self._file.flush()

    def write(self, storage: EventStorage) -> None:
        """Append one line per iteration that has new scalars, normally one."""
        for iteration, scalars in self._new.take(storage).items():
            finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            line = {"iteration": iteration, **finite}
            if self._last.get("iteration") == iteration:
                line = self._last | line
                self._file.truncate(self._last_start)
            self._append(line)
        self._file.flush()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.flush()
        self._last, self._last_start = line, os.fstat(self._file.fileno()).st_size
        self._file.write(json.dumps(line, sort_keys=True) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _iteration(line: str) -> float:
    """Iteration of a JSON line; infinity (never kept) for one that was cut off in the middle."""
    try:
        return json.loads(line)["iteration"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class TensorBoardWriter(ScalarWriter):
    """Scalars and pictures as TensorBoard events in `log_dir`.

    A resumed run drops what the interrupted one wrote after the checkpoint. A new run renames the files of an earlier
    one (`tfevents` in their names becomes `earlier`), which TensorBoard then leaves alone. After an error of the disk
    the next `write` begins another file.
    """

    def __init__(self, log_dir: str | Path, *, start_iter: int = 0) -> None:
        super().__init__()
        self._dir = Path(log_dir)
        self._earlier = self._files()
        if start_iter == 0:
            for file in self._earlier:
                os.replace(file, file.with_name(file.name.replace("tfevents", "earlier")))
            self._earlier = []
        # a TensorBoard that is running has shown already what the interrupted run wrote after the checkpoint
        self._writer: Any = self._open(purge_step=start_iter or None)

    def _open(self, *, purge_step: int | None = None) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, and only training needs it

        while any(f".{int(time.time()):010d}." in file.name for file in self._files()):
            time.sleep(0.05)  # TensorBoard reads files in the order of their names, which begin with the second
        return SummaryWriter(str(self._dir), purge_step=purge_step)

    def _files(self) -> list[Path]:
        return sorted(self._dir.glob("events.out.tfevents.*"))

    def state_dict(self) -> dict[str, Any]:
        """Also the sizes of all files."""
        return {"sizes": {file.name: file.stat().st_size for file in self._files()}, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the files of earlier runs hold what they did when the state was taken."""
        super().load_state_dict(state)
        for file in self._earlier:
            if file.name not in state["sizes"]:
                file.unlink()
            elif file.stat().st_size > state["sizes"][file.name]:
                os.truncate(file, state["sizes"][file.name])

    def write(self, storage: EventStorage) -> None:
        """Write scalars of all iterations since the last call, and the pictures that are in the storage."""
        try:
            self._writer = self._writer or self._open()
            for iteration, scalars in self._new.take(storage).items():
                for name, value in scalars.items():
                    self._writer.add_scalar(name, value, iteration)
            for name, image, iteration in storage._vis_data:
                self._writer.add_image(name, image, iteration)
            self._writer.flush()
        except OSError:  # its thread is dead, and nothing comes through any more
            with suppress(OSError):
                self.close()
            self._writer = None
            raise

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
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
        if "time" not in histories:
            return
        _, iteration = storage.latest()["time"]  # that of the storage may be the next one already
        if self._logged == iteration:
            return
        self._logged = iteration
        median = {name: history.median(WINDOW) for name, history in histories.items()}
        done = iteration + 1
        seconds_left = histories["time"].global_avg() * (self._max_iter - done)
        storage.put_scalar("eta_seconds", seconds_left, smoothing_hint=False, cur_iter=iteration)
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
    peak = peak_resident_memory()
    return None if peak is None else peak / 2**20
