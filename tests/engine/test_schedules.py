"""Learning-rate factors against closed forms and against the schedulers that Detectron2 is built on."""

import math

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn

from mask2former import get_cfg
from mask2former.engine.schedules import (
    SCHEDULES,
    build_lr_scheduler,
    cosine_factor,
    lr_factor,
    multi_step_factor,
    one_cycle_factor,
    poly_factor,
    warmup_factor_at,
    warmup_into,
    warmup_poly_factor,
)

WARMUP = {"method": "linear", "factor": 0.1, "iters": 10}


def make_cfg(name, **solver):
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.STEPS = (50, 80)
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


@pytest.mark.parametrize(
    ("iteration", "method", "expected"),
    [
        (0, "linear", 0.1),
        (5, "linear", 0.55),
        (9, "linear", 0.91),
        (10, "linear", 1.0),
        (0, "constant", 0.1),
        (9, "constant", 0.1),
        (10, "constant", 1.0),
    ],
)
def test_warmup_factor(iteration, method, expected):
    assert warmup_factor_at(iteration, method=method, factor=0.1, iters=10) == pytest.approx(expected, abs=1e-12)


def test_unknown_warmup_method_is_named():
    with pytest.raises(ValueError, match=r"WARMUP_METHOD.*'cubic'"):
        warmup_factor_at(0, method="cubic", factor=0.1, iters=10)
    with pytest.raises(ValueError, match=r"WARMUP_METHOD.*'cubic'"):
        lr_factor(make_cfg("WarmupMultiStepLR", WARMUP_METHOD="cubic"))


def test_multi_step_decays_at_the_step_itself():
    factors = [multi_step_factor(i, steps=(3, 5), gamma=0.1) for i in (0, 2, 3, 4, 5, 9)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_multi_step_equals_fvcore():
    reference = MultiStepParamScheduler([1, 0.1, 0.01], milestones=[50, 80], num_updates=100)
    factor = lr_factor(make_cfg("WarmupMultiStepLR"))
    assert [factor(i) for i in range(100)] == pytest.approx([reference(i / 100) for i in range(100)])


def test_cosine_equals_fvcore_and_closed_form():
    reference = CosineParamScheduler(1, 0.25)
    factors = [cosine_factor(i, max_iter=100, end_factor=0.25) for i in range(100)]
    assert factors == pytest.approx([reference(i / 100) for i in range(100)])
    assert cosine_factor(50, max_iter=100) == pytest.approx(0.5)
    assert cosine_factor(25, max_iter=100) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))


def test_cosine_ends_at_base_lr_end():
    factor = lr_factor(make_cfg("WarmupCosineLR", BASE_LR=0.01, BASE_LR_END=0.002))
    assert factor(100) == pytest.approx(0.2)


def test_poly():
    assert poly_factor(0, max_iter=100, power=0.9) == 1
    assert poly_factor(75, max_iter=100, power=0.9) == pytest.approx(0.25**0.9)
    assert poly_factor(100, max_iter=100, power=0.9) == 0
    assert poly_factor(101, max_iter=100, power=0.9) == 0


def test_constant_stays_after_the_warmup():
    factor = lr_factor(make_cfg("WarmupConstantLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.1))
    assert [factor(i) for i in (0, 5, 10, 99, 100)] == pytest.approx([0.1, 0.55, 1, 1, 1])


def test_one_cycle_in_closed_form():
    """Ten iterations: the top is at 4 - 1 = 3, and halfway down, at 6, the mean of 1 and the end."""
    factors = [
        one_cycle_factor(i, max_iter=10, rise=0.4, start_factor=0.2, end_factor=0.1) for i in (0, 1, 3, 6, 9, 10, 11)
    ]
    assert factors == pytest.approx([0.2, 0.4, 1, 0.55, 0.1, 0.1, 0.1])
    assert one_cycle_factor(0, max_iter=1, rise=0.4, start_factor=0.2, end_factor=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.05])
def test_one_cycle_equals_pytorch(share):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=100, pct_start=share, div_factor=25, final_div_factor=8
    )
    cfg = make_cfg("WarmupOneCycleLR", BASE_LR=0.1, BASE_LR_END=0.1 / 25 / 8)
    cfg.SOLVER.ONE_CYCLE.PCT_START = share
    factor = lr_factor(cfg)
    for iteration in range(100):
        assert 0.1 * factor(iteration) == pytest.approx(optimizer.param_groups[0]["lr"]), iteration
        optimizer.step()
        if iteration < 99:
            reference.step()


def test_warmup_leads_into_one_cycle():
    cfg = make_cfg("WarmupOneCycleLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.5)
    factor, bare = lr_factor(cfg), lr_factor(make_cfg("WarmupOneCycleLR"))
    assert factor(0) == pytest.approx(0.5 / 25)
    assert factor(5) == pytest.approx((0.5 / 25 + bare(10)) / 2)
    assert [factor(i) for i in (10, 29, 70)] == [bare(i) for i in (10, 29, 70)]


@pytest.mark.parametrize(("key", "value"), [("PCT_START", 0.0), ("PCT_START", 1.0), ("DIV_FACTOR", 0.5)])
def test_impossible_cycles_are_refused(key, value):
    cfg = make_cfg("WarmupOneCycleLR")
    cfg.SOLVER.ONE_CYCLE[key] = value
    with pytest.raises(ValueError, match=rf"SOLVER\.ONE_CYCLE.*{value}"):
        lr_factor(cfg)


def test_warmup_leads_into_the_the_schedule():
    values = [warmup_into(lambda i: 2.0 + i, i, **WARMUP) for i in (0, 5, 10, 11)]
    assert values == pytest.approx([0.2, (0.2 + 12) / 2, 12, 13])


def test_constant_warmup_keeps_the_first_value():
    values = [warmup_into(lambda i: 2.0 + i, i, method="constant", factor=0.1, iters=3) for i in (0, 2, 3)]
    assert values == pytest.approx([0.2, 0.2, 5])


def test_poly_is_multiplied_by_the_warmup():
    arguments = {"max_iter": 100, "power": 0.9, "constant_ending": 0.0, **WARMUP}
    assert warmup_poly_factor(5, **arguments) == pytest.approx(0.55 * 0.95**0.9)
    assert warmup_poly_factor(60, **arguments) == pytest.approx(0.4**0.9)


def test_poly_constant_ending_holds_after_the_warmup_only():
    arguments = {"max_iter": 100, "power": 1.0, "constant_ending": 0.3, **WARMUP}
    assert warmup_poly_factor(0, **arguments) == pytest.approx(0.1)
    assert warmup_poly_factor(69, **arguments) == pytest.approx(0.31)
    assert warmup_poly_factor(95, **arguments) == pytest.approx(0.3)


def test_warmup_longer_than_the_run_lasts_as_long_as_the_run():
    factor = lr_factor(make_cfg("WarmupMultiStepLR", MAX_ITER=10, WARMUP_ITERS=1000, STEPS=()))
    assert factor(5) == pytest.approx(0.5005)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"LR_SCHEDULER_NAME.*'Linear'.*WarmupPolyLR"):
        lr_factor(make_cfg("Linear"))


def test_steps_must_ascend():
    with pytest.raises(ValueError, match=r"SOLVER\.STEPS must ascend"):
        lr_factor(make_cfg("WarmupMultiStepLR", STEPS=(80, 50)))


def test_steps_that_are_never_reached_are_logged(caplog):
    lr_factor(make_cfg("WarmupMultiStepLR", STEPS=(50, 500)))
    assert "never reached" in caplog.text


@pytest.mark.parametrize("name", SCHEDULES)
def test_scheduler_resumes(name):
    cfg = make_cfg(name, WARMUP_ITERS=4, STEPS=(6, 12), MAX_ITER=15)

    def build():
        optimizer = torch.optim.SGD(
            [
                {"params": nn.Linear(1, 1).parameters(), "lr": 1.0},
                {"params": nn.Linear(1, 1).parameters(), "lr": 0.1},
            ]
        )
        return optimizer, build_lr_scheduler(cfg, optimizer)

    def run(optimizer, scheduler, steps):
        rates = []
        for _ in range(steps):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return rates

    straight = run(*build(), 15)
    assert straight == [[pytest.approx(lr_factor(cfg)(i) * base) for base in (1.0, 0.1)] for i in range(15)]
    optimizer, scheduler = build()
    first = run(optimizer, scheduler, 7)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = build()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert first + run(optimizer, scheduler, 8) == straight
