"""Where training code writes scalars and images, to be read by whoever logs them."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fvcore.common.history_buffer import HistoryBuffer

_CURRENT: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The storage of the innermost `with EventStorage(...)`; AssertionError outside of any."""
    if not _CURRENT:
        raise AssertionError("get_event_storage() needs an enclosing `with EventStorage(...)`.")
    return _CURRENT[-1]


class EventStorage:
    """Scalars with their latest values, and images, each with the iteration at which it was put."""

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []  # Detectron2's writers look for this name

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The current iteration."""
        return self._iter

    def step(self) -> None:
        """Go to the next iteration."""
        self._iter += 1

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Record a number; `smoothing_hint` says whether it is noisy and better shown as a median.

        Raises:
            AssertionError: when the same name comes with another hint.
        """
        name = self._prefix + name
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise AssertionError(f"Scalar {name} was put with another smoothing_hint before.")
        iteration = self._iter if cur_iter is None else cur_iter
        self._history[name].update(float(value), iteration)
        self._latest[name] = (float(value), iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Record several numbers."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Record an RGB image (3, H, W), uint8 or floating point in [0, 1]."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def clear_images(self) -> None:
        """Forget all images."""
        self._vis_data.clear()

    def history(self, name: str) -> HistoryBuffer:
        """The last values of a scalar; KeyError for an unknown name."""
        if name not in self._history:
            raise KeyError(f"No scalar named {name} was put.")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """The last values of all scalars."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of each scalar, with its iteration."""
        return self._latest

    def smoothing_hints(self) -> dict[str, bool]:
        """Which scalars are noisy."""
        return self._smoothing_hints

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As `latest`, but the median over the last `window_size` iterations for noisy scalars."""
        return {
            name: (self._smoothed(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self._latest.items()
        }

    def _smoothed(self, name: str, window_size: int) -> float:
        return self._history[name].median(self.count_samples(name, window_size))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a scalar were put in the last `window_size` iterations."""
        values = self._history[name].values()
        first = values[-1][1] - window_size
        count = 0
        for _, iteration in reversed(values):
            if iteration <= first:
                break
            count += 1
        return count

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of scalars put inside by `name/`."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def __enter__(self) -> "EventStorage":
        _CURRENT.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if _CURRENT.pop() is not self:
            raise AssertionError("EventStorage contexts must be left in reverse order.")
