"""Seconds of functions that take turns: A B A B, so that what slows the machine for a while slows all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm

MIN_SECONDS = 0.02
"""A sample lasts at least so long: shorter functions are called several times for one."""
MAX_CALLS = 2000

Function = Callable[[], object]


def in_turn(
    functions: Mapping[str, Function],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    title: str,
    repeat_short: bool = True,
) -> dict[str, list[float]]:
    """Measure functions in turn.

    Args:
        functions: by name; each is called once a round, in this order.
        rounds: samples of each function.
        warmup: calls of each function before the first round that do not count.
        device: waited for before and after each sample.
        title: of the progress bar on stderr.
        repeat_short: call functions that take less than `MIN_SECONDS` several times for a sample.

    Returns:
        Seconds of one call, `rounds` values for each name; values at the same place are of the same round.
    """
    calls: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    with tqdm(total=len(functions) * (rounds + 1), desc=title, leave=False) as progress:
        for name, function in functions.items():
            for _ in range(warmup):
                function()
            calls[name] = _calls_per_sample(seconds(function, device)) if repeat_short else 1
            progress.update()
        for _ in range(rounds):
            for name, function in functions.items():
                samples[name].append(seconds(function, device, calls[name]))
                progress.update()
    return samples


def seconds(function: Function, device: torch.device, calls: int = 1) -> float:
    """Return the seconds of a call, averaged over `calls` of them without waiting for the device between them."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(of: list[float], over: list[float]) -> list[float]:
    """Return, round by round, how many times as long `of` took as `over`."""
    return [a / b for a, b in zip(of, over, strict=True)]


def _calls_per_sample(first: float) -> int:
    return min(MAX_CALLS, max(1, math.ceil(MIN_SECONDS / max(first, 1e-9))))
