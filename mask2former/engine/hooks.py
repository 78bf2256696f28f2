"""What happens around training steps: timing, checkpoints, evaluation, writing metrics."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mask2former.checkpoint.load import THRESHOLDS, THRESHOLDS_OF_AVERAGE
from mask2former.d2 import comm
from mask2former.engine.resume import hook_states, load_hook_states
from mask2former.engine.writers import EventWriter, LogWriter, duration, load_scalars, scalars_state
from mask2former.evaluation.details import score_thresholds
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

    acts_last = False
    """Whether it comes after the other hooks, as those do that save, evaluate and write what the others have done."""

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

    def after_evaluation(self, iteration: int, results: Mapping[str, float]) -> None:
        """Called after each evaluation during training, with the step that it follows.

        Args:
            results: scalars by name, such as `panoptic_seg/PQ`; in the main process alone.
        """

    def flush(self) -> None:
        """Called when what was stored has to reach the disk: before a checkpoint and after an evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know to go on as if there had been no interruption, as plain data; little.

        It is kept in checkpoints, and after evaluations. Hooks that change with a step come before the one that saves.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state, before `before_train`."""


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

    acts_last = True

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

    What hooks remember is written down with the results: a run that resumes from the checkpoint of that iteration
    goes on behind the evaluation, and otherwise makes up for it.
    """

    acts_last = True

    def __init__(self, period: int) -> None:
        self.period = period
        self._evaluated = -1  # iteration of the last evaluation

    def before_train(self) -> None:
        """Make up for a lost evaluation; evaluate a run that has no steps left in any case."""
        start = self.trainer.start_iter
        if start > 0 and self._is_due(start) and self._evaluated != start - 1:
            logger.info("The evaluation after iteration %d is missing and made now", start - 1)
            self.trainer.iter = self.trainer.storage.iter = start - 1
            self._evaluate(start - 1)
            self.trainer.iter = self.trainer.storage.iter = start
        elif start >= self.trainer.max_iter:
            self.trainer.evaluate()

    def after_step(self) -> None:
        """Evaluate when it is time; results become scalars such as `panoptic_seg/PQ`."""
        if self._is_due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter)

    def _is_due(self, done: int) -> bool:
        return done >= self.trainer.max_iter or (self.period > 0 and done % self.period == 0)

    def _evaluate(self, iteration: int) -> None:
        storage = self.trainer.storage
        now, storage.iter = storage.iter, iteration  # of which pictures are, too
        results = flatten_results(self.trainer.evaluate())
        for name, value in results.items():
            storage.put_scalar(name, value, smoothing_hint=False)
        storage.iter = now
        self.trainer.tell_results(iteration, results)

    def after_evaluation(self, iteration: int, results: Mapping[str, float]) -> None:
        """Count the evaluation as made once the hooks before this one have acted on it."""
        self._evaluated = iteration

    def state_dict(self) -> dict[str, Any]:
        """Iteration of the last evaluation."""
        return {"evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._evaluated = state_dict["evaluated"]


class FinalReport(Hook):
    """Writes `report.html` at the end, and has the scores of highest F1 kept in checkpoints of what was evaluated.

    Comes before hooks that save after an evaluation. Only the main process writes. A training is not lost for want of
    a report: errors are logged.
    """

    def __init__(self) -> None:
        self._evaluated: int | None = None

    def after_evaluation(self, iteration: int, results: Mapping[str, float]) -> None:
        """Tell the checkpointer what belongs to the weights of this iteration."""
        self._evaluated = iteration
        if comm.is_main_process():
            cfg = self.trainer.cfg
            folders = {THRESHOLDS: "inference"}
            if self.trainer.ema is not None:
                folders[THRESHOLDS_OF_AVERAGE] = "inference_EMA"
            scores = {
                key: score_thresholds(Path(cfg.OUTPUT_DIR, folder), cfg.DATASETS.TEST)
                for key, folder in folders.items()
            }
            self.trainer.checkpointer.notes = (iteration, {key: found for key, found in scores.items() if found})

    def after_train(self) -> None:
        """Write, unless training has failed or was stopped."""
        trainer = self.trainer
        if comm.is_main_process() and (trainer.iter + 1 >= trainer.max_iter or trainer.ends_early):
            from mask2former.report import write_report  # only now is it needed

            try:
                if self._evaluated == trainer.iter:
                    trainer.checkpointer.add_notes("model_final")  # it was saved before that evaluation
                logger.info("The report is %s", write_report(trainer.cfg.OUTPUT_DIR))
            except Exception:
                logger.exception("The training is done, its report is not")


class PeriodicWriter(Hook):
    """Lets writers write after the first step, every `period` steps, after the last one, and before checkpoints.

    A resumed run writes at the same steps as one that was not interrupted, but for a line of the log after its first.
    A full disk does not end the run: the writers try again with the next values.
    """

    acts_last = True

    def __init__(self, build_writers: Callable[[], Sequence[EventWriter]], period: int = 20) -> None:
        self.period = period
        self._build_writers = build_writers
        self._writers: Sequence[EventWriter] | None = None
        self._states: dict[str, Any] = {}

    def before_train(self) -> None:
        """Open the writers: only now is it known at which iteration the run starts."""
        self._open()

    def _open(self) -> Sequence[EventWriter]:
        if self._writers is None:
            self._writers = self._build_writers()
            load_hook_states(self._writers, self._states)
        return self._writers

    def after_step(self) -> None:
        """Write when it is time."""
        done = self.trainer.iter + 1
        if done % self.period == 0 or done in (1, self.trainer.max_iter):
            self.flush()
        elif done == self.trainer.start_iter + 1:
            self._write(lambda writer: isinstance(writer, LogWriter))

    def flush(self) -> None:
        """Write what is new; then every writer has seen the pictures."""
        self._write(lambda writer: True)
        self.trainer.storage.clear_images()

    def after_train(self) -> None:
        """Write into files what the last steps of a run that was interrupted left, and close the writers."""
        if self._writers is not None:
            self._write(lambda writer: not isinstance(writer, LogWriter))
            self._for_each(lambda writer: writer.close())

    def state_dict(self) -> dict[str, Any]:
        """The last values of scalars, and what the writers have written."""
        return {"scalars": scalars_state(self.trainer.storage), "writers": hook_states(self._writers or ())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up; the writers do when they are opened."""
        load_scalars(self.trainer.storage, state["scalars"])
        self._states = state["writers"]

    def _write(self, is_meant: Callable[[EventWriter], bool]) -> None:
        self._for_each(lambda writer: writer.write(self.trainer.storage) if is_meant(writer) else None)

    def _for_each(self, act: Callable[[EventWriter], None]) -> None:
        for writer in self._open():
            try:
                act(writer)
            except OSError as error:
                logger.error("%s cannot write: %s", type(writer).__name__, error)
