"""Learning-rate schedules: pure functions from an iteration to a factor on the base learning rate.

The arithmetic is that of Detectron2 (`WarmupMultiStepLR`, `WarmupCosineLR`) and of its DeepLab project
(`WarmupPolyLR`), so a published config trains at the published learning rates. `WarmupConstantLR` and
`WarmupOneCycleLR` are further schedules.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mask2former.d2.config import CfgNode

logger = logging.getLogger(__name__)

WARMUP_METHODS = ("linear", "constant")
SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR", "WarmupOneCycleLR", "WarmupConstantLR")


def warmup_factor_at(iteration: int, *, method: str, factor: float, iters: int) -> float:
    """Warm-up multiplier in [factor, 1]; 1 from iteration `iters` on.

    Raises:
        ValueError: `method` is neither "linear" nor "constant".
    """
    if method not in WARMUP_METHODS:
        raise ValueError(f"SOLVER.WARMUP_METHOD is {method!r}, expected one of {WARMUP_METHODS}")
    if iteration >= iters:
        return 1.0
    if method == "constant":
        return factor
    alpha = iteration / iters
    return factor * (1 - alpha) + alpha


def multi_step_factor(iteration: int, *, steps: Sequence[int], gamma: float) -> float:
    """`gamma` to the power of the number of `steps` (ascending iterations) already reached."""
    return gamma ** bisect_right(steps, iteration)


def cosine_factor(iteration: int, *, max_iter: int, end_factor: float = 0.0) -> float:
    """Half a cosine from 1 at iteration 0 to `end_factor` at `max_iter` (SGDR, arXiv 1608.03983, eq. 5)."""
    return end_factor + (1 - end_factor) * 0.5 * (1 + math.cos(math.pi * iteration / max_iter))


def poly_factor(iteration: int, *, max_iter: int, power: float) -> float:
    """(1 - iteration / max_iter) ^ power, 0 after the end (DeepLab, arXiv 1606.00915, section 4.1)."""
    return max(0.0, 1 - iteration / max_iter) ** power


def one_cycle_factor(iteration: int, *, max_iter: int, rise: float, start_factor: float, end_factor: float) -> float:
    """Half a cosine up to 1 in the share `rise` of the run, then half a cosine down (Smith, arXiv 1708.07120).

    As PyTorch's `OneCycleLR`: from `start_factor`, 1 at iteration `rise * max_iter - 1`, `end_factor` at the last one.
    """
    top, last = rise * max_iter - 1, max_iter - 1
    if iteration <= top:
        return start_factor + (1 - start_factor) * 0.5 * (1 - math.cos(math.pi * iteration / top)) if top > 0 else 1.0
    share = min(1.0, (iteration - top) / (last - top)) if last > top else 1.0
    return end_factor + (1 - end_factor) * 0.5 * (1 + math.cos(math.pi * share))


def warmup_into(schedule: Callable[[int], float], iteration: int, *, method: str, factor: float, iters: int) -> float:
    """`schedule`, but its first `iters` iterations lead from `factor * schedule(0)` to `schedule(iters)`."""
    if iteration >= iters:
        return schedule(iteration)
    start = factor * schedule(0)
    if method == "constant":
        return start
    return start + (schedule(iters) - start) * iteration / iters


def warmup_poly_factor(
    iteration: int,
    *,
    max_iter: int,
    power: float,
    constant_ending: float,
    method: str,
    factor: float,
    iters: int,
) -> float:
    """Polynomial decay times the warm-up; once warmed up, never below `constant_ending` (0: no limit)."""
    warmup = warmup_factor_at(iteration, method=method, factor=factor, iters=iters)
    decay = poly_factor(iteration, max_iter=max_iter, power=power)
    if warmup == 1.0:
        return max(decay, constant_ending)
    return warmup * decay


def lr_factor(cfg: CfgNode) -> Callable[[int], float]:
    """The function iteration → factor that `SOLVER.LR_SCHEDULER_NAME` and its keys describe.

    Raises:
        ValueError: the name or the warm-up method is unknown, or STEPS is not ascending.
    """
    solver = cfg.SOLVER
    warmup = {
        "method": solver.WARMUP_METHOD,
        "factor": solver.WARMUP_FACTOR,
        # a run shorter than its warm-up warms up until its end
        "iters": min(solver.WARMUP_ITERS, solver.MAX_ITER),
    }
    if solver.WARMUP_METHOD not in WARMUP_METHODS:
        raise ValueError(f"SOLVER.WARMUP_METHOD is {solver.WARMUP_METHOD!r}, expected one of {WARMUP_METHODS}")
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if steps != sorted(steps):
            raise ValueError(f"SOLVER.STEPS must ascend, got {tuple(solver.STEPS)}")
        if len(steps) < len(solver.STEPS):
            logger.warning("SOLVER.STEPS %s beyond SOLVER.MAX_ITER %d are never reached", solver.STEPS, solver.MAX_ITER)
        return partial(warmup_into, partial(multi_step_factor, steps=steps, gamma=solver.GAMMA), **warmup)
    if name == "WarmupCosineLR":
        end_factor = solver.BASE_LR_END / solver.BASE_LR
        cosine = partial(cosine_factor, max_iter=solver.MAX_ITER, end_factor=end_factor)
        return partial(warmup_into, cosine, **warmup)
    if name == "WarmupPolyLR":
        return partial(
            warmup_poly_factor,
            max_iter=solver.MAX_ITER,
            power=solver.POLY_LR_POWER,
            constant_ending=solver.POLY_LR_CONSTANT_ENDING,
            **warmup,
        )
    if name == "WarmupConstantLR":
        return partial(warmup_into, lambda iteration: 1.0, **warmup)
    if name == "WarmupOneCycleLR":
        return partial(warmup_into, _one_cycle(cfg), **warmup)
    raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}, expected one of {', '.join(SCHEDULES)}")


def _one_cycle(cfg: CfgNode) -> Callable[[int], float]:
    solver, node = cfg.SOLVER, cfg.SOLVER.ONE_CYCLE
    if not 0 < node.PCT_START < 1 or node.DIV_FACTOR < 1:
        raise ValueError(
            f"SOLVER.ONE_CYCLE.PCT_START must lie between 0 and 1 and DIV_FACTOR be at least 1, not {node.PCT_START} "
            f"and {node.DIV_FACTOR}"
        )
    return partial(
        one_cycle_factor,
        max_iter=solver.MAX_ITER,
        rise=node.PCT_START,
        start_factor=1 / node.DIV_FACTOR,
        end_factor=solver.BASE_LR_END / solver.BASE_LR,
    )


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LambdaLR:
    """Scheduler whose `step()` is called once after every iteration; its state dict resumes."""
    return LambdaLR(optimizer, lr_factor(cfg))
