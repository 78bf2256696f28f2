"""Running a model over a data set."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.evaluation.engine import flatten_results, inference_on_dataset, print_results


class Doubler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not self.training
        return [{"value": self.weight * inp["value"]} for inp in batch]


class Total(DatasetEvaluator):
    def __init__(self, task: str = "sum") -> None:
        self.task = task
        self.values = [999.0]

    def reset(self) -> None:
        self.values = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        assert all(not output["value"].requires_grad for output in outputs)
        self.values += [output["value"].item() for output in outputs]

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {self.task: {"total": sum(self.values), "count": len(self.values)}}


LOADER = [[{"value": 1.0}, {"value": 2.0}], [{"value": 3.0}]]


@pytest.mark.parametrize("training", [True, False])
def test_feeds_every_batch_in_eval_mode(training: bool) -> None:
    model = Doubler().train(training)
    assert inference_on_dataset(model, LOADER, Total()) == {"sum": {"total": 12.0, "count": 3}}
    assert model.training is training


def test_restores_the_mode_after_an_error() -> None:
    model = Doubler().train()
    with pytest.raises(KeyError):
        inference_on_dataset(model, [[{"nothing": 0}]], Total())
    assert model.training
    assert torch.is_grad_enabled()


def test_several_evaluators_none_and_an_empty_loader() -> None:
    both = inference_on_dataset(Doubler(), LOADER, [Total("a"), Total("b")])
    assert set(both) == {"a", "b"}
    assert inference_on_dataset(Doubler(), LOADER, None) == {}
    assert inference_on_dataset(Doubler(), [], Total())["sum"]["count"] == 0


def test_other_ranks_return_an_empty_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Total, "evaluate", lambda self: None)
    assert inference_on_dataset(Doubler(), LOADER, Total()) == {}


def test_log_tells_progress_and_speed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("mask2former.evaluation.engine._SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        inference_on_dataset(Doubler(), LOADER * 6, Total())
    progress = [message for message in caplog.messages if "ETA" in message]
    assert len(progress) == 11
    assert progress[0].startswith("Evaluated 1/12 batches  [s/batch: data 0.")
    assert caplog.messages[-1].startswith("Evaluated 12 batches in")


def test_print_results_leaves_out_classes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        print_results({"segm": {"AP": 12.3456, "AP50": 50.0, "AP-cat": 99.0}})
    assert "12.346" in caplog.text
    assert "segm: AP 12.346, AP50 50.000" in caplog.text
    assert "99" not in caplog.text


def test_flatten_results() -> None:
    assert flatten_results({"panoptic_seg": {"PQ": 50, "PQ_th": 40.0}}) == {
        "panoptic_seg/PQ": 50.0,
        "panoptic_seg/PQ_th": 40.0,
    }
    with pytest.raises(TypeError, match="'PQ' is str"):
        flatten_results({"panoptic_seg": {"PQ": "high"}})
