"""What follows from the results of evaluations: the best checkpoint, and an early end."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.engine.agreement import failing_together
from mask2former.engine.hooks import Hook
from mask2former.similar import did_you_mean

logger = logging.getLogger(__name__)

MODES = ("max", "min")


def check_metrics(cfg: CfgNode) -> None:
    """Check that there will be the evaluations that SOLVER.BEST_CHECKPOINT and SOLVER.EARLY_STOP wait for.

    Raises:
        ValueError: there will be none.
    """
    for name in ("BEST_CHECKPOINT", "EARLY_STOP"):
        if cfg.SOLVER[name].METRIC and not cfg.DATASETS.TEST:
            raise ValueError(
                f"SOLVER.{name}.METRIC is {cfg.SOLVER[name].METRIC!r}, but DATASETS.TEST is empty: name a data set to "
                "evaluate on"
            )
    if cfg.SOLVER.EARLY_STOP.METRIC and cfg.TEST.EVAL_PERIOD <= 0:
        raise ValueError("SOLVER.EARLY_STOP.METRIC is set, but TEST.EVAL_PERIOD is 0: evaluate during training, too")


def build_metric_hooks(cfg: CfgNode) -> list[Hook]:
    """The hooks that SOLVER.BEST_CHECKPOINT and SOLVER.EARLY_STOP ask for; a METRIC of "" asks for none."""
    best, stop = cfg.SOLVER.BEST_CHECKPOINT, cfg.SOLVER.EARLY_STOP
    hooks: list[Hook] = []
    if best.METRIC:
        hooks.append(BestCheckpoint(best.METRIC, mode=best.MODE))
    if stop.METRIC:
        hooks.append(EarlyStop(stop.METRIC, mode=stop.MODE, patience=stop.PATIENCE))
    return hooks


class MetricHook(Hook):
    """Base of hooks that compare a metric with its best value so far, in every process alike.

    Args:
        metric: such as `panoptic_seg/PQ`, a name of the scalars that evaluations store.
        mode: "max" if more is better, "min" if less is.

    Raises:
        ValueError: `mode` is neither.
    """

    key: str
    """Of the config, for messages."""

    def __init__(self, metric: str, *, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"{self.key}.MODE is {mode!r}, expected max or min")
        self.metric = metric
        self.mode = mode
        self.best: float | None = None
        self._seen = -1  # iteration of the last evaluation that counts

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the evaluation that was the last to count."""
        return {"metric": self.metric, "best": self.best, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a state, unless it is of another metric."""
        if state_dict["metric"] == self.metric:
            self.best, self._seen = state_dict["best"], state_dict["seen"]

    def after_evaluation(self, iteration: int, results: Mapping[str, float]) -> None:
        """Let `found` act on a new value; one evaluation counts once.

        Raises:
            ValueError: there is no such metric.
        """
        if iteration <= self._seen:
            return
        value = self._value(results)
        self._seen = iteration
        is_better = self._is_better(value)
        if is_better:
            self.best = value
        self.found(value, is_better=is_better)

    def found(self, value: float, *, is_better: bool) -> None:
        """Act on a new value of the metric; called in every process."""
        raise NotImplementedError

    def _value(self, results: Mapping[str, float]) -> float:
        """The value that the main process has, in all of them."""
        with failing_together():
            if comm.is_main_process() and self.metric not in results:
                raise ValueError(
                    f"{self.key}.METRIC is {self.metric!r}{did_you_mean(self.metric, results)}; evaluation gives "
                    f"{', '.join(results) or 'nothing'}"
                )
        return comm.all_gather(float(results[self.metric]) if comm.is_main_process() else None)[0]

    def _is_better(self, value: float) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        return value > self.best if self.mode == "max" else value < self.best


class BestCheckpoint(MetricHook):
    """Saves `model_best` whenever a metric is better than before."""

    key = "SOLVER.BEST_CHECKPOINT"

    def found(self, value: float, *, is_better: bool) -> None:
        """Save; without room on the disk training goes on, as with other checkpoints."""
        if not is_better:
            best = math.nan if self.best is None else self.best
            logger.info("%s is %.4g, its best value remains %.4g", self.metric, value, best)
            return
        logger.info("%s is %.4g, better than ever", self.metric, value)
        try:
            self.trainer.save("model_best")
        except OSError as error:
            logger.error("Training goes on without the best checkpoint: %s", error)


class EarlyStop(MetricHook):
    """Ends training when a metric has not become better in the last `patience` evaluations.

    Raises:
        ValueError: `patience` is less than 1.
    """

    key = "SOLVER.EARLY_STOP"

    def __init__(self, metric: str, *, mode: str, patience: int) -> None:
        super().__init__(metric, mode=mode)
        if patience < 1:
            raise ValueError(f"{self.key}.PATIENCE is {patience}; it must be at least 1")
        self.patience = patience
        self._in_vain = 0  # evaluations since the best one

    def state_dict(self) -> dict[str, Any]:
        """Also the number of evaluations in vain."""
        return {**super().state_dict(), "in_vain": self._in_vain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Likewise."""
        super().load_state_dict(state_dict)
        if state_dict["metric"] == self.metric:
            self._in_vain = state_dict["in_vain"]

    def before_train(self) -> None:
        """End a run that was resumed after its early end."""
        self._end_if_patience_is_lost()

    def found(self, value: float, *, is_better: bool) -> None:
        """Count, and end training when it is time."""
        self._in_vain = 0 if is_better else self._in_vain + 1
        self._end_if_patience_is_lost()

    def _end_if_patience_is_lost(self) -> None:
        if self._in_vain >= self.patience:
            logger.info("%s was not better in the last %d evaluations: training ends early", self.metric, self._in_vain)
            self.trainer.ends_early = True
