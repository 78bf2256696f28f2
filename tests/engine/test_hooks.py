"""When hooks act, with a trainer that only counts."""

import logging
from types import SimpleNamespace

import pytest

from mask2former.d2.events import EventStorage
from mask2former.engine.hooks import (
    Hook,
    IterationTimer,
    PeriodicCheckpoint,
    PeriodicEvaluation,
    PeriodicWriter,
)


def run(hook, steps, start=0, max_iter=None):
    """Call a hook as the trainer does; returns what it asked the trainer to do, and the storage."""
    log = []
    trainer = SimpleNamespace(max_iter=max_iter or steps, start_iter=start, iter=start)
    trainer.save = log.append

    def evaluate():
        log.append(f"evaluate {trainer.iter}")
        return {"segm": {"AP": float(trainer.iter)}}

    trainer.evaluate = evaluate
    hook.trainer = trainer
    with EventStorage(start) as trainer.storage:
        hook.before_train()
        for trainer.iter in range(start, steps):
            hook.before_step()
            hook.after_backward()
            hook.after_step()
            trainer.storage.step()
        hook.after_train()
    return log, trainer.storage


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        (2, ["model_0000001", "model_0000003", "model_final"]),
        (5, ["model_final"]),
        (0, ["model_final"]),
    ],
)
def test_checkpoints(period, expected):
    assert run(PeriodicCheckpoint(period), 5)[0] == expected


def test_interrupted_run_writes_no_final_checkpoint():
    assert run(PeriodicCheckpoint(2), 3, max_iter=5)[0] == ["model_0000001"]


@pytest.mark.parametrize(("period", "expected"), [(2, [1, 3, 4]), (0, [4]), (5, [4])])
def test_evaluations(period, expected):
    log, storage = run(PeriodicEvaluation(period), 5)
    assert log == [f"evaluate {iteration}" for iteration in expected]
    assert storage.latest()["segm/AP"] == (4.0, 4)


def test_writers_are_opened_used_and_closed():
    calls = []
    writer = SimpleNamespace(write=lambda storage: calls.append(storage.iter), close=lambda: calls.append("closed"))
    hook = PeriodicWriter(lambda: calls.append("opened") or [writer], period=2)
    assert calls == []
    run(hook, 5)
    assert calls == ["opened", 1, 3, 4, "closed"]


def test_timer(caplog):
    with caplog.at_level(logging.INFO):
        _, storage = run(IterationTimer(), 5)
    assert len(storage.history("time").values()) == 5
    assert "5 steps in 0:00:00" in caplog.text


def test_timer_of_a_run_without_steps(caplog):
    with caplog.at_level(logging.INFO):
        run(IterationTimer(), 0)
    assert caplog.text == ""


def test_hooks_of_a_plug_in_may_leave_methods_out():
    assert run(Hook(), 2)[0] == []
