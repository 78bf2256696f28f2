"""Scalars of a step are read in one go, and what is not finite is refused."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from mask2former import get_cfg
from mask2former.engine.finite import (
    MAX_SKIPPED_STEPS,
    FiniteGuard,
    NonFiniteError,
    RunningStatistics,
    check_state,
    describe_batch,
    skip_limit,
)

BATCH = [{"file_name": "a.jpg", "image_id": 3}, {"image": None}]
GOOD = {
    "loss_ce": torch.tensor(1.5, requires_grad=True),
    "loss_mask": torch.tensor(2.0, dtype=torch.bfloat16),
}
INF = torch.tensor(float("inf"))


def guard(*, scaler=False, skip=0):
    return FiniteGuard(nn.Linear(1, 1), GradScaler("cpu", enabled=scaler), skip_limit=skip)


def test_values():
    values = {"loss_ce": 1.5, "loss_mask": 2.0, "grad_norm": 0.25}
    assert guard().read(0, GOOD, torch.tensor(0.25), BATCH) == (values, [])
    assert guard().read(0, GOOD, torch.tensor(0.25), BATCH, flags=[False, True]) == (values, [False, True])


def test_loss_is_refused_also_under_loss_scaling():
    with pytest.raises(NonFiniteError, match=r"loss_dice = inf at iteration 4, rank 0, batch: a\.jpg"):
        guard(scaler=True).read(4, {**GOOD, "loss_dice": INF}, torch.tensor(1.0), BATCH)


def test_gradient_is_refused_without_loss_scaling():
    with pytest.raises(NonFiniteError, match="Gradient is not finite"):
        guard().read(0, GOOD, INF, BATCH)


def test_overflows_pass_under_loss_scaling_until_they_are_too_many():
    subject = guard(scaler=True)
    for _ in range(MAX_SKIPPED_STEPS):
        subject.read(0, GOOD, INF, BATCH)
    subject.read(0, GOOD, torch.tensor(1.0), BATCH)  # a good step starts the count anew
    for _ in range(MAX_SKIPPED_STEPS):
        subject.read(0, GOOD, INF, BATCH)
    with pytest.raises(NonFiniteError, match="Gradient is not finite"):
        subject.read(0, GOOD, INF, BATCH)


@pytest.mark.parametrize(("loss", "norm"), [(INF, torch.tensor(1.0)), (torch.tensor(1.0), INF)])
def test_steps_are_left_out_until_too_many_are_in_a_row(loss, norm, caplog):
    subject = guard(skip=2)
    for _ in range(2):
        assert subject.read(0, GOOD, torch.tensor(1.0), BATCH)[0]
        for number in (1, 2):
            assert subject.read(7, {"loss_dice": loss}, norm, BATCH, flags=[True]) == ({}, [True])
            assert subject.skips
            assert f"Step left out, {number} of at most 2 in a row" in caplog.messages[-1]
            assert "iteration 7, rank 0, batch: a.jpg" in caplog.messages[-1]
    assert subject.counts == {"skipped_steps": 4.0}
    again = guard(skip=2)
    again.load_state_dict(subject.state_dict())
    for full in (subject, again):
        with pytest.raises(NonFiniteError, match="not finite") as raised:
            full.read(8, {"loss_dice": loss}, norm, BATCH)
        assert raised.value.iteration == 8
        assert raised.value.batches == {0: BATCH}


def test_a_good_step_is_not_left_out():
    subject = guard(skip=1)
    subject.read(0, {"loss_dice": INF}, torch.tensor(1.0), BATCH)
    subject.read(1, GOOD, torch.tensor(1.0), BATCH)
    assert not subject.skips
    assert guard().state_dict() == {}
    assert guard().counts == {}


def test_the_policy_of_a_config():
    cfg = get_cfg()
    assert skip_limit(cfg) == 0
    cfg.SOLVER.NONFINITE = "skip"
    assert skip_limit(cfg) == 10
    cfg.SOLVER.NONFINITE_LIMIT = 0
    with pytest.raises(ValueError, match=r"SOLVER\.NONFINITE_LIMIT is 0"):
        skip_limit(cfg)
    cfg.SOLVER.NONFINITE = "ignore"
    with pytest.raises(ValueError, match=r"SOLVER\.NONFINITE is 'ignore', expected stop or skip"):
        skip_limit(cfg)


def test_batch_without_names():
    assert describe_batch(BATCH) == "a.jpg (image_id 3), ? (image_id ?)"
    assert describe_batch([]) == ""


def test_statistics_go_back_to_before_the_forward_pass():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 1))
    statistics = RunningStatistics(model)
    model(torch.randn(4, 2))
    statistics.keep()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    assert expected["0.running_mean"].any()
    model(torch.full((4, 2), float("nan")))
    assert model[0].running_mean.isnan().all()
    statistics.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_model_without_statistics():
    statistics = RunningStatistics(nn.Linear(2, 1))
    statistics.keep()
    statistics.restore()


def test_state_that_is_not_finite_is_named():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Embedding(2, 2))
    check_state(model)
    model[0].running_var[1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"^0\.running_var: not finite$"):
        check_state(model)
