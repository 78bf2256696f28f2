"""Running a model over a data set and reporting what its evaluators say."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from mask2former.d2 import comm
from mask2former.d2.evaluation import DatasetEvaluator, DatasetEvaluators

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]

BatchListener = Callable[[Any, str | None], None]
"""Called with the loader of an evaluation and the part of it that begins, such as "batch 3 of 10"; None at its end."""
batch_listener: ContextVar[BatchListener] = ContextVar("batch_listener", default=lambda loader, part: None)
"""Who is told how far evaluations in this thread are."""

_WARMUP = 5  # batches left out of the speed: allocator and kernels settle in them
_SECONDS_BETWEEN_LINES = 5.0


def inference_on_dataset(
    model: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    loader: Any,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
) -> Results:
    """Run the model on every batch of a loader and evaluate. Every rank must call this.

    The model runs in eval mode without gradients and gets its mode back, also after an error. The log says
    how far it is and how long loading, the model and the evaluators take.

    Args:
        model: takes a batch of inputs and returns one output per input.
        loader: has a length and yields batches, a list of dicts each.
        evaluator: one, several, or None to measure the speed only.

    Returns:
        The metrics by task on the main process, an empty dict on the others.
    """
    judge = evaluator
    if not isinstance(judge, DatasetEvaluator):
        judge = DatasetEvaluators(list(judge or []))
    judge.reset()
    total = len(loader)
    logger.info("Evaluating %d batches on %d processes", total, comm.get_world_size())
    clock = _Clock(total)
    with _telling(loader) as tell:
        with _eval_mode(model), torch.no_grad():
            batches = iter(loader)
            for done in range(1, total + 1):
                tell(f"batch {done} of {total}")
                with clock.measure("data"):
                    inputs = next(batches)
                with clock.measure("compute"):
                    outputs = model(inputs)
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                with clock.measure("eval"):
                    judge.process(inputs, outputs)
                clock.batch_done(done)
        tell("metrics")
        clock.log_total()
        comm.synchronize()
        return judge.evaluate() or {}


def print_results(results: Mapping[str, Mapping[str, float]]) -> None:
    """Log a line per task, without the per-class values: evaluators log tables of their own."""
    for task, metrics in results.items():
        summary = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("%s: %s", task, ", ".join(f"{name} {value:.3f}" for name, value in summary.items()))


def flatten_results(results: Mapping[str, Any]) -> dict[str, float]:
    """Nested metrics as `{"task/metric": value}`, e.g. `panoptic_seg/PQ`, for metric writers.

    Raises:
        TypeError: a value is neither a number nor a mapping.
    """
    flat: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": number for name, number in flatten_results(value).items()})
        elif isinstance(value, int | float):
            flat[str(key)] = float(value)
        else:
            raise TypeError(f"result {key!r} is {type(value).__name__}, expected a number or a mapping")
    return flat


class _Clock:
    """Seconds per batch spent on each part, and log lines about them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._last_line = time.perf_counter()
        self._parts = {"data": 0.0, "compute": 0.0, "eval": 0.0}
        self._counted = 0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._parts[part] += time.perf_counter() - start

    def batch_done(self, done: int) -> None:
        self._counted += 1
        now = time.perf_counter()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES and done < self._total:
            seconds = sum(self._parts.values()) / self._counted
            eta = timedelta(seconds=math.ceil(seconds * (self._total - done)))
            logger.info("Evaluated %d/%d batches  %s  ETA %s", done, self._total, self._speed(), eta)
            self._last_line = now
        if done == _WARMUP and done < self._total:
            self._parts = dict.fromkeys(self._parts, 0.0)
            self._counted = 0

    def log_total(self) -> None:
        seconds = time.perf_counter() - self._start
        logger.info("Evaluated %d batches in %.1f s  %s", self._total, seconds, self._speed())

    def _speed(self) -> str:
        """Mean seconds per batch of this process."""
        counted = max(self._counted, 1)
        parts = "  ".join(f"{name} {seconds / counted:.4f}" for name, seconds in self._parts.items())
        return f"[s/batch: {parts}]"


@contextmanager
def _telling(loader: Any) -> Iterator[Callable[[str], None]]:
    listener = batch_listener.get()
    try:
        yield lambda part: listener(loader, part)
    finally:
        listener(loader, None)


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
