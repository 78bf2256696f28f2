"""When hooks act, with a trainer that only counts."""

import json
import logging
from types import SimpleNamespace

import pytest

from mask2former.d2 import SOURCE
from mask2former.d2.events import EventStorage
from mask2former.engine.hooks import (
    Hook,
    IterationTimer,
    PeriodicCheckpoint,
    PeriodicEvaluation,
    PeriodicWriter,
    load_states,
    states_of,
)
from tests.helpers.training import TinyTrainer, tiny_cfg


def run(hook, steps, start=0, max_iter=None):
    """Call a hook as the trainer does; returns what it asked the trainer to do, and the storage."""
    log = []
    trainer = SimpleNamespace(max_iter=max_iter or steps, start_iter=start, iter=start)
    trainer.save = log.append
    trainer.flush = lambda: log.append("flush")

    def evaluate():
        log.append(f"evaluate {trainer.iter}")
        return {"segm": {"AP": float(trainer.iter)}}

    trainer.evaluate = evaluate
    trainer.tell_results = lambda iteration, results: log.append((iteration, results))
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


def test_a_full_disk_ends_the_run_only_at_its_last_step(caplog):
    class Full(PeriodicCheckpoint):
        def after_step(self):
            self.trainer.save = self.refuse
            super().after_step()

        def refuse(self, name):
            tried.append(name)
            raise OSError("No space left on device")

    tried = []
    with pytest.raises(OSError, match="No space"):
        run(Full(2), 5)
    assert tried == ["model_0000001", "model_0000003", "model_final"]
    assert "Training goes on without a checkpoint of iteration 3: No space left on device" in caplog.text


@pytest.mark.parametrize(("period", "expected"), [(2, [1, 3, 4]), (0, [4]), (5, [4])])
def test_evaluations(tmp_path, period, expected):
    log, storage = run(PeriodicEvaluation(period, tmp_path), 5)
    told = {iteration: (iteration, {"segm/AP": float(iteration)}) for iteration in expected}
    assert log == [entry for i in expected for entry in (f"evaluate {i}", told[i], "flush")]
    assert storage.latest()["segm/AP"] == (4.0, 4)
    assert json.loads((tmp_path / "last_evaluation").read_text()) == {"iteration": 4, "results": {"segm/AP": 4.0}}


@pytest.mark.parametrize(
    ("written", "start", "made_up"),
    [(1, 4, True), (None, 4, True), (3, 4, False), (None, 3, False), (3, 0, False)],
)
def test_a_lost_evaluation_is_made_up(tmp_path, written, start, made_up):
    """Every second step: a run that goes on at iteration 4 must have results of iteration 3."""
    results = {"segm/AP": 7.0}
    if written is not None:
        (tmp_path / "last_evaluation").write_text(json.dumps({"iteration": written, "results": results}))
    log, storage = run(PeriodicEvaluation(2, tmp_path), start, start=start, max_iter=9)
    assert ("evaluate 4" in log) == made_up
    assert ((3, results) in log) == (written == 3 and start == 4)  # other hooks hear of it again
    if made_up:
        assert storage.latest()["segm/AP"] == (4.0, 3)
    assert (tmp_path / "last_evaluation").exists() == (start != 0 and (made_up or written is not None))


def test_a_finished_run_is_evaluated_again_without_new_metrics(tmp_path):
    (tmp_path / "last_evaluation").write_text('{"iteration": 3, "results": {"segm/AP": NaN}}')
    log, storage = run(PeriodicEvaluation(0, tmp_path), 4, start=4)
    assert [entry for entry in log if isinstance(entry, str)] == ["evaluate 4"]
    assert not storage.latest()


def test_writers_are_opened_used_and_closed():
    calls = []
    writer = SimpleNamespace(write=lambda storage: calls.append(storage.iter), close=lambda: calls.append("closed"))
    hook = PeriodicWriter(lambda: calls.append("opened") or [writer], period=2)
    assert calls == []
    run(hook, 8, start=2, max_iter=9)
    assert calls == ["opened", 2, 3, 5, 7, "closed"]


def test_writers_that_fail_do_not_end_the_run(caplog):
    def fail(*args):
        raise OSError("No space left on device")

    written = []
    good = SimpleNamespace(write=lambda storage: written.append(storage.iter), close=lambda: written.append("closed"))
    run(PeriodicWriter(lambda: [SimpleNamespace(write=fail, close=fail), good], period=2), 2)
    assert written == [0, 1, "closed"]
    assert caplog.text.count("SimpleNamespace cannot write: No space left on device") == 3


def test_timer(caplog):
    with caplog.at_level(logging.INFO):
        _, storage = run(IterationTimer(), 5)
    assert len(storage.history("time").values()) == 5
    assert "5 steps in 0:00:00" in caplog.text


def test_timer_of_a_run_without_steps(caplog):
    with caplog.at_level(logging.INFO):
        run(IterationTimer(), 0)
    assert caplog.text == ""


def test_states_by_class_of_those_that_have_one():
    class Counting(Hook):
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

    states = states_of([Counting(3), Hook(), SimpleNamespace(), Counting(4)])
    assert states == {f"{Counting.__qualname__}": {"count": 3}}
    hooks = [Hook(), Counting(0)]
    load_states(hooks, states)
    assert hooks[1].count == 3
    load_states(hooks, {})
    assert hooks[1].count == 3


def test_hooks_of_a_plug_in_may_leave_methods_out():
    assert run(Hook(), 2)[0] == []


class LikeDetectron2:
    """The methods of Detectron2's `HookBase`."""

    def before_train(self):
        pass

    after_train = before_step = after_backward = after_step = before_train

    def state_dict(self):
        return {}


def test_hooks_of_detectron2_serve_as_they_are(tmp_path):
    """Its base class where Detectron2 is in use, else one with the same methods."""
    base = LikeDetectron2
    if SOURCE == "official":
        from detectron2.engine import HookBase

        base = HookBase

    class Counting(base):
        steps = 0

        def after_step(self):
            self.steps += 1
            assert self.trainer.iter < self.trainer.max_iter
            assert "total_loss" in self.trainer.storage.latest()

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state_dict):
            self.steps = state_dict["steps"]

    class Bare(base):
        pass

    trainer = TinyTrainer(tiny_cfg(tmp_path))
    hooks = [Counting(), Bare()]
    trainer.register_hooks(hooks)
    trainer.train()
    assert hooks[0].steps == 6
    trainer = TinyTrainer(tiny_cfg(tmp_path))
    hooks = [Counting(), Bare()]
    trainer.register_hooks(hooks)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    trainer.resume_or_load(resume=True)
    assert hooks[0].steps == 3  # the step was counted before it was saved
