"""What happens around training steps: timing, checkpoints, evaluation, writing metrics."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mask2former.engine.writers import EventWriter, duration
from mask2former.evaluation.engine import flatten_results

if TYPE_CHECKING:
    from mask2former.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class Hook:
    """Base of hooks. The trainer sets `trainer` and calls the methods below, hook by hook, in every process.

    The methods and the attributes a hook may use (`trainer.iter`, `start_iter`, `max_iter`, `storage`,
    `model`, `optimizer`) are Detectron2's, so its hooks work here too.
    """

    trainer: "Trainer"

    def before_train(self) -> None:
        """Called once before the first step."""

    def after_train(self) -> None:
        """Called once at the end, also when training failed."""

    def before_step(self) -> None:
        """Called before every step."""

    def after_backward(self) -> None:
        """Called between the backward pass and the update."""

    def after_step(self) -> None:
        """Called after every step; `trainer.iter` is the iteration that has just been completed."""


class IterationTimer(Hook):
    """Stores the wall time of each step in seconds, as `time`, and logs the average at the end."""

    WARMUP_STEPS = 3
    """The first steps pay for allocation and caches and do not count towards the average."""

    def before_train(self) -> None:
        """Start the clock of the whole run."""
        self._run_start = time.perf_counter()
        self._steps = 0
        self._seconds = 0.0

    def before_step(self) -> None:
        """Start the clock of the step."""
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        """Store the time of the step."""
        seconds = time.perf_counter() - self._step_start
        self.trainer.storage.put_scalars(time=seconds)
        self._steps += 1
        if self._steps > self.WARMUP_STEPS:
            self._seconds += seconds

    def after_train(self) -> None:
        """Log the average speed."""
        counted = self._steps - self.WARMUP_STEPS
        if counted > 0 and self._seconds > 0:
            total = time.perf_counter() - self._run_start
            logger.info("%d steps in %s, %.4f s a step", self._steps, duration(total), self._seconds / counted)


class PeriodicCheckpoint(Hook):
    """Saves `model_<iteration>` every `period` steps (0: never) and `model_final` after the last one."""

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        """Save when it is time."""
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self.trainer.save("model_final")
        elif self.period > 0 and done % self.period == 0:
            self.trainer.save(f"model_{self.trainer.iter:07d}")


class PeriodicEvaluation(Hook):
    """Evaluates every `period` steps (0: never) and after the last one; stores the results as scalars."""

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        """Evaluate when it is time; results become scalars such as `panoptic_seg/PQ`."""
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            for name, value in flatten_results(self.trainer.evaluate()).items():
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)


class PeriodicWriter(Hook):
    """Lets writers write every `period` steps and after the last one."""

    def __init__(self, build_writers: Callable[[], Sequence[EventWriter]], period: int = 20) -> None:
        self.period = period
        self._build_writers = build_writers
        self._writers: Sequence[EventWriter] = ()

    def before_train(self) -> None:
        """Open the writers: only now is it known at which iteration the run starts."""
        self._writers = self._build_writers()

    def after_step(self) -> None:
        """Write when it is time."""
        done = self.trainer.iter + 1
        if done % self.period == 0 or done >= self.trainer.max_iter:
            for writer in self._writers:
                writer.write(self.trainer.storage)

    def after_train(self) -> None:
        """Close the writers."""
        for writer in self._writers:
            writer.close()
