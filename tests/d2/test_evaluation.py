"""Several evaluators in one."""

import pytest

from mask2former.d2.evaluation import DatasetEvaluator, DatasetEvaluators


class Counter(DatasetEvaluator):
    def __init__(self, task: str | None) -> None:
        self.task = task
        self.seen = -1

    def reset(self) -> None:
        self.seen = 0

    def process(self, inputs: list, outputs: list) -> None:
        self.seen += sum(1 for _ in zip(inputs, outputs, strict=True))

    def evaluate(self) -> dict | None:
        return {self.task: {"seen": self.seen}} if self.task else None


def test_all_are_fed_and_their_results_joined() -> None:
    both = DatasetEvaluators([Counter("a"), Counter(None), Counter("b")])
    both.reset()
    both.process([{}, {}], [1, 2])
    both.process([{}], [3])
    assert both.evaluate() == {"a": {"seen": 3}, "b": {"seen": 3}}
    both.reset()
    assert both.evaluate() == {"a": {"seen": 0}, "b": {"seen": 0}}
    assert DatasetEvaluators([]).evaluate() == {}


def test_two_results_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="twice"):
        DatasetEvaluators([Counter("twice"), Counter("twice")]).evaluate()


def test_an_evaluator_need_not_do_anything() -> None:
    evaluator = DatasetEvaluator()
    evaluator.reset()
    evaluator.process([], [])
    assert evaluator.evaluate() is None
