"""What happens around training steps: timing, checkpoints, evaluation, writing metrics."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mask2former.d2 import comm
from mask2former.engine.writers import EventWriter, duration
from mask2former.evaluation.engine import flatten_results
from mask2former.files import write_text

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

    def flush(self) -> None:
        """Called when what was stored has to reach the disk: before a checkpoint and after an evaluation."""


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
    """Saves `model_<iteration>` every `period` steps (0: never) and `model_final` after the last one.

    A full disk ends the run only at the last step: until then somebody may make room.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        """Save when it is time."""
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self.trainer.save("model_final")
        elif self.period > 0 and done % self.period == 0:
            try:
                self.trainer.save(f"model_{self.trainer.iter:07d}")
            except OSError as error:
                logger.error("Training goes on without a checkpoint of iteration %d: %s", self.trainer.iter, error)


class PeriodicEvaluation(Hook):
    """Evaluates every `period` steps (0: never) and after the last one; stores the results as scalars.

    The file `last_evaluation` in `folder` says of which iteration results were written last: a resumed run makes up
    for an evaluation that should have followed its checkpoint.
    """

    def __init__(self, period: int, folder: str | os.PathLike[str]) -> None:
        self.period = period
        self._file = Path(folder, "last_evaluation")

    def before_train(self) -> None:
        """Make up for a lost evaluation; evaluate a run that has no steps left in any case."""
        start = self.trainer.start_iter
        if start == 0 and comm.is_main_process():
            self._file.unlink(missing_ok=True)  # of an earlier run
        if start > 0 and self._is_due(start) and not self._is_written(start - 1):
            logger.info("The evaluation after iteration %d is missing and made now", start - 1)
            self._evaluate(start - 1)
        elif start >= self.trainer.max_iter:
            self.trainer.evaluate()

    def after_step(self) -> None:
        """Evaluate when it is time; results become scalars such as `panoptic_seg/PQ`."""
        if self._is_due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter)

    def _is_due(self, done: int) -> bool:
        return done >= self.trainer.max_iter or (self.period > 0 and done % self.period == 0)

    def _is_written(self, iteration: int) -> bool:
        """What the main process finds; the others may not see its folder."""
        found = self._file.is_file() and self._file.read_text(encoding="utf-8").strip() == str(iteration)
        return comm.all_gather(found)[0]

    def _evaluate(self, iteration: int) -> None:
        for name, value in flatten_results(self.trainer.evaluate()).items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False, cur_iter=iteration)
        self.trainer.flush()
        if comm.is_main_process():
            write_text(self._file, str(iteration))


class PeriodicWriter(Hook):
    """Lets writers write after the first step, every `period` steps, after the last one, and before checkpoints.

    A full disk does not end the run: the writers try again with the next values.
    """

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
        if done % self.period == 0 or done in (self.trainer.start_iter + 1, self.trainer.max_iter):
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        self._for_each(lambda writer: writer.write(self.trainer.storage))

    def after_train(self) -> None:
        """Close the writers."""
        self._for_each(lambda writer: writer.close())

    def _for_each(self, act: Callable[[EventWriter], None]) -> None:
        for writer in self._writers:
            try:
                act(writer)
            except OSError as error:
                logger.error("%s cannot write: %s", type(writer).__name__, error)
