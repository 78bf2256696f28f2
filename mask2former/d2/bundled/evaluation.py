"""The interface of evaluators, and several in one."""

from collections.abc import Sequence
from typing import Any

from mask2former.d2.bundled.comm import is_main_process


class DatasetEvaluator:
    """Collects a model's outputs batch by batch, then scores them."""

    def reset(self) -> None:
        """Forget everything; called before each evaluation."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[Any]) -> None:
        """Take in one batch: what the model was given and what it returned, image by image."""

    def evaluate(self) -> dict[str, Any] | None:
        """Results as {task: {metric: value}}; None on processes other than the main one."""
        return None


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators fed with the same outputs."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        """Reset all."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[Any]) -> None:
        """Feed all."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """The results of all in one dict, empty on processes other than the main one.

        Raises:
            AssertionError: when two evaluators return the same task.
        """
        results: dict[str, Any] = {}
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if not is_main_process() or result is None:
                continue
            if shared := sorted(results.keys() & result.keys()):
                raise AssertionError(f"Two evaluators return results named {', '.join(shared)}.")
            results.update(result)
        return results
