"""What happens around training steps: timing, checkpoints, evaluation, writing metrics."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    def flush(self) -> None:
        """Called when what was stored has to reach the disk: before a checkpoint and after an evaluation."""

    def after_evaluation(self, iteration: int, results: Mapping[str, float]) -> None:
        """Called after each evaluation during training, with the step that it follows.

        A resumed run calls it once more for the evaluation that followed its checkpoint.

        Args:
            results: scalars by name, such as `panoptic_seg/PQ`; in the main process alone.
        """

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of the hook: plain data and tensors; {} for nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what `state_dict` gave; called when a run resumes."""


def states_of(hooks: Iterable[Hook]) -> dict[str, dict[str, Any]]:
    """The states of hooks by the names of their classes, as Detectron2's trainers keep them; one for each class."""
    states: dict[str, dict[str, Any]] = {}
    for hook in reversed(list(hooks)):
        states[type(hook).__qualname__] = getattr(hook, "state_dict", dict)()
    return {name: state for name, state in states.items() if state}


def load_states(hooks: Iterable[Hook], states: Mapping[str, dict[str, Any]]) -> None:
    """Give hooks the states that `states_of` found."""
    for hook in hooks:
        if (name := type(hook).__qualname__) in states:
            hook.load_state_dict(states[name])


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

    The file `last_evaluation` in `folder` holds the results that were written last, and their iteration: a resumed run
    makes up for an evaluation that should have followed its checkpoint, and tells other hooks of one that did follow.
    """

    acts_last = True

    def __init__(self, period: int, folder: str | os.PathLike[str]) -> None:
        self.period = period
        self._file = Path(folder, "last_evaluation")

    def before_train(self) -> None:
        """Make up for a lost evaluation; evaluate a run that has no steps left in any case."""
        start = self.trainer.start_iter
        if start == 0 and comm.is_main_process():
            self._file.unlink(missing_ok=True)  # of an earlier run
        results = self._written(start - 1) if start > 0 and self._is_due(start) else None
        if results is not None:
            self.trainer.tell_results(start - 1, results)
        elif start > 0 and self._is_due(start):
            logger.info("The evaluation after iteration %d is missing and made now", start - 1)
            self._evaluate(start - 1)
            return
        if start >= self.trainer.max_iter:
            self.trainer.evaluate()

    def after_step(self) -> None:
        """Evaluate when it is time; results become scalars such as `panoptic_seg/PQ`."""
        if self._is_due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter)

    def _is_due(self, done: int) -> bool:
        return done >= self.trainer.max_iter or (self.period > 0 and done % self.period == 0)

    def _written(self, iteration: int) -> dict[str, float] | None:
        """The results of that iteration if the main process finds them; the others may not see its folder."""
        found = None
        if self._file.is_file():
            content = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content["iteration"] == iteration:
                found = content["results"]
        return comm.all_gather(found)[0]

    def _evaluate(self, iteration: int) -> None:
        results = flatten_results(self.trainer.evaluate())
        for name, value in results.items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False, cur_iter=iteration)
        self.trainer.tell_results(iteration, results)
        self.trainer.flush()
        if comm.is_main_process():
            write_text(self._file, json.dumps({"iteration": iteration, "results": results}))


class PeriodicWriter(Hook):
    """Lets writers write after the first step, every `period` steps, after the last one, and before checkpoints.

    A full disk does not end the run: the writers try again with the next values.
    """

    acts_last = True

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
