"""When hooks act, with a trainer that only counts."""

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
)
from mask2former.engine.resume import hook_states, load_hook_states
from mask2former.engine.writers import JSONWriter, LogWriter
from tests.helpers.training import TinyTrainer, tiny_cfg


def run(hook, steps, start=0, max_iter=None, last=lambda: None):
    """Call a hook as the trainer does; returns what it asked the trainer to do, and the storage."""
    log = []
    trainer = SimpleNamespace(max_iter=max_iter or steps, start_iter=start, iter=start)
    trainer.save = log.append

    def evaluate():
        log.append(f"evaluate {trainer.iter}")
        return {"segm": {"AP": float(trainer.iter)}}

    trainer.evaluate = evaluate

    def tell_results(iteration, results):
        log.append(f"after {iteration}: {results['segm/AP']}")
        hook.after_evaluation(iteration, results)

    trainer.tell_results = tell_results
    hook.trainer = trainer
    with EventStorage(start) as trainer.storage:
        hook.before_train()
        for trainer.iter in range(start, steps):
            hook.before_step()
            hook.after_backward()
            hook.after_step()
            trainer.storage.step()
        last()
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
def test_evaluations(period, expected):
    hook = PeriodicEvaluation(period)
    log, storage = run(hook, 5)
    assert log == [
        entry for iteration in expected for entry in (f"evaluate {iteration}", f"after {iteration}: {iteration}.0")
    ]
    assert storage.latest()["segm/AP"] == (4.0, 4)
    assert hook.state_dict() == {"evaluated": 4}


@pytest.mark.parametrize(
    ("evaluated", "start", "made_up"),
    [(1, 4, True), (None, 4, True), (3, 4, False), (None, 3, False)],
)
def test_a_lost_evaluation_is_made_up(evaluated, start, made_up):
    """Every second step: a run that goes on at iteration 4 must have results of iteration 3."""
    hook = PeriodicEvaluation(2)
    if evaluated is not None:
        hook.load_state_dict({"evaluated": evaluated})
    log, storage = run(hook, start, start=start, max_iter=9)
    assert log == (["evaluate 3", "after 3: 3.0"] if made_up else [])
    if made_up:
        assert storage.latest()["segm/AP"] == (3.0, 3)
    assert storage.iter == hook.trainer.iter == start


def test_a_finished_run_is_evaluated_again_without_new_metrics():
    hook = PeriodicEvaluation(0)
    hook.load_state_dict({"evaluated": 3})
    log, storage = run(hook, 4, start=4)
    assert log == ["evaluate 4"]
    assert not storage.latest()


def test_writers_are_opened_used_and_closed():
    calls = []
    writer = SimpleNamespace(write=lambda storage: calls.append(storage.iter), close=lambda: calls.append("closed"))
    hook = PeriodicWriter(lambda: calls.append("opened") or [writer], period=2)
    assert calls == []
    run(hook, 8, max_iter=9)
    assert calls == ["opened", 0, 1, 3, 5, 7, 8, "closed"]
    calls.clear()
    again = PeriodicWriter(lambda: calls.append("opened") or [writer], period=2)
    run(again, 8, start=2, max_iter=9)
    assert calls == ["opened", 3, 5, 7, 8, "closed"]


def test_the_log_has_a_line_after_the_first_step_of_a_resumed_run(caplog):
    written = []
    file = SimpleNamespace(write=lambda storage: written.append(storage.iter), close=lambda: None)
    with caplog.at_level(logging.INFO):
        run(Timed(lambda: [LogWriter(max_iter=9), file], period=20), 5, start=4, max_iter=9)
    assert "iter 5/9" in caplog.text
    assert written == [5]  # once the run has ended


def test_writers_go_on_with_what_scalars_were(tmp_path):
    """Medians after a resume are those of the whole run, and nothing is written twice."""

    def build():
        return [JSONWriter(tmp_path / "metrics.json", start_iter=start)]

    start, states = 0, []
    whole = Counting(build, period=3)
    run(whole, 12)
    expected = (tmp_path / "metrics.json").read_text()
    first = Counting(build, period=3)
    run(first, 7, max_iter=12, last=lambda: states.append(first.state_dict()))
    start = 7
    second = Counting(build, period=3)
    second.pending = states[0]
    run(second, 12, start=7)
    assert (tmp_path / "metrics.json").read_text() == expected


class Timed(PeriodicWriter):
    def after_step(self):
        self.trainer.storage.put_scalars(time=0.5)
        super().after_step()


class Counting(PeriodicWriter):
    """Puts a scalar of each step, and another one of some."""

    pending = None

    def before_train(self):
        if self.pending:
            self.load_state_dict(self.pending)
        super().before_train()

    def after_step(self):
        self.trainer.storage.put_scalar("loss", self.trainer.iter**2)
        if self.trainer.iter == 6:
            self.trainer.storage.put_scalar("rare", 1.0)
        super().after_step()


def test_writers_that_fail_do_not_end_the_run(caplog):
    def fail(*args):
        raise OSError("No space left on device")

    written = []
    good = SimpleNamespace(write=lambda storage: written.append(storage.iter), close=lambda: written.append("closed"))
    run(PeriodicWriter(lambda: [SimpleNamespace(write=fail, close=fail), good], period=2), 2)
    assert written == [0, 1, 2, "closed"]
    assert caplog.text.count("SimpleNamespace cannot write: No space left on device") == 4


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

    states = hook_states([Counting(3), Hook(), SimpleNamespace(), Counting(4)])
    assert states == {f"{Counting.__qualname__}": {"count": 3}, f"{Counting.__qualname__} 2": {"count": 4}}
    hooks = [Hook(), Counting(0)]
    load_hook_states(hooks, states)
    assert hooks[1].count == 3
    load_hook_states(hooks, {})
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
    trainer.train()
    assert hooks[0].steps == 6  # the step was counted before it was saved
