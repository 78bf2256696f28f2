"""What this project set out to reach, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from tools.benchmarks.results import Document

Measured = tuple[float, str]
"""The number that decides, and what the table says."""
JsonRow = dict[str, Any]

SWIN_SECONDS = 1.95
"""Of transformers' Swin-T at 512x512 on the machine that the target in seconds was set for."""


@dataclass(frozen=True)
class Target:
    """A number that should be at least, or at most, so much."""

    what: str
    goal: float
    unit: str
    measure: Callable[[list[JsonRow]], Measured | None]
    at_most: bool = False
    device: str = "cpu"

    def row(self, documents: Sequence[Document]) -> list[str]:
        """Return what, target, what was measured in the first run that did, and whether that is enough."""
        goal = f"{'≤' if self.at_most else '≥'} {self.goal:g}{self.unit}"
        for number, document in enumerate(documents, 1):
            if not document["settings"]["device"].startswith(self.device):
                continue
            measured = self.measure(document["rows"])
            if measured is not None:
                met = measured[0] <= self.goal if self.at_most else measured[0] >= self.goal
                return [self.what, goal, measured[1], "yes" if met else "no", str(number)]
        return [self.what, goal, "not measured", "", ""]


def targets_table(documents: Sequence[Document]) -> str:
    """Return all targets as a table in Markdown."""
    headers = ["what", "target", "measured", "met", "run"]
    return tabulate([target.row(documents) for target in TARGETS], headers, tablefmt="github", disable_numparse=True)


def _find(rows: list[JsonRow], suite: str, versus: str | None = None, **case: str) -> Iterator[JsonRow]:
    """Rows of a suite with these values in their case; where `versus` is given, compared with that."""
    for row in rows:
        fits = row["suite"] == suite and all(row["case"].get(key) == value for key, value in case.items())
        if fits and (versus is None or (row["ratio"] or {}).get("versus") == versus):
            yield row


def _ratio(suite: str, versus: str, **case: str) -> Callable[[list[JsonRow]], Measured | None]:
    def measure(rows: list[JsonRow]) -> Measured | None:
        for row in _find(rows, suite, versus, **case):
            ratio = row["ratio"]
            return ratio["median"], f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        return None

    return measure


def _figure(suite: str, figure: str, **case: str) -> Callable[[list[JsonRow]], Measured | None]:
    def measure(rows: list[JsonRow]) -> Measured | None:
        for row in _find(rows, suite, **case):
            if figure in row["figures"]:
                return row["figures"][figure], f"{row['figures'][figure]:.3g}"
        return None

    return measure


def _scaled_r50(rows: list[JsonRow]) -> Measured | None:
    """Seconds of R50, all tasks, on a machine where transformers' Swin-T takes `SWIN_SECONDS`."""
    size = {"size": "512x512", "dtype": "fp32"}
    ours = next(_find(rows, "inference", model="R50", of="ours", tasks="all", **size), None)
    theirs = next(_find(rows, "inference", model="Swin-T", of="transformers", **size), None)
    if ours is None or theirs is None:
        return None
    seconds, swin = ours["seconds"]["median"], theirs["seconds"]["median"]
    scaled = seconds / swin * SWIN_SECONDS
    return scaled, f"{scaled:.2f}: {seconds:.2f} where Swin-T takes {swin:.2f}"


_INFERENCE = {"size": "512x512", "of": "ours"}
_TRAIN = {"model": "Swin-T", "images": "2 x 384x384, 10 instances each", "dtype": "fp32", "of": "ours"}
_MANY = {"images": "1 x 1024x1024, 1000 instances each", "dtype": "fp32", "of": "ours"}
_GPU_TRAIN = {"model": "R50", "images": "8 x 1024x1024, 10 instances each", "dtype": "bf16", "of": "ours"}
_OP = {"size": "512x512", "batch": "1", "dtype": "fp32", "backend": "compiled"}
_GPU_OP = {"size": "1024x1024", "batch": "8", "dtype": "bf16", "pass": "forward", "backend": "compiled"}
_CRITERION = {"images": "2 x 384x384, 10 instances each", "predictions": "10", "pass": "forward", "of": "ours"}

TARGETS = (
    Target(
        "Swin-T 512², panoptic, end to end, against transformers' model alone",
        *(
            2.0,
            "x",
            _ratio("inference", "transformers fp32", model="Swin-T", dtype="fp32", tasks="panoptic", **_INFERENCE),
        ),
    ),
    Target(
        "the same in bf16, against transformers' model in fp32",
        *(
            4.0,
            "x",
            _ratio("inference", "transformers fp32", model="Swin-T", dtype="bf16", tasks="panoptic", **_INFERENCE),
        ),
    ),
    Target(
        f"R50 512², all three tasks, end to end, where transformers' Swin-T takes {SWIN_SECONDS} s",
        *(1.1, " s", _scaled_r50, True),
    ),
    Target(
        "the same, share of the measured rate of `torch.mm`",
        *(70, " %", _figure("inference", "share of matmul %", model="R50", dtype="fp32", tasks="all", **_INFERENCE)),
    ),
    Target(
        "training step Swin-T, 2 x 384², 10 instances each, against transformers",
        *(2.5, "x", _ratio("train", "transformers", **_TRAIN)),
    ),
    Target("its peak memory, relative to transformers'", 0.6, "x", _figure("train", "peak / theirs", **_TRAIN), True),
    Target(
        "deformable attention, forward, 512², against the reference backend",
        *(15, "x", _ratio("op", "reference", **{"pass": "forward"}, **_OP)),
    ),
    Target(
        "deformable attention, forward and backward, likewise",
        *(5, "x", _ratio("op", "reference", **{"pass": "forward and backward"}, **_OP)),
    ),
    Target(
        "matching and criterion, 10 predictions, 2 images x 10 instances, against a per-layer, per-image loop",
        *(3, "x", _ratio("criterion", "loop", **_CRITERION)),
    ),
    Target("1,000 instances at 1024²: peak memory of training", 6, " GiB", _figure("train", "peak GiB", **_MANY), True),
    Target(
        "GPU: deformable attention, forward, bf16, 8 x 1024²: share of the copy bandwidth",
        *(50, " %", _figure("op", "share of copy %", **_GPU_OP), False, "cuda"),
    ),
    Target(
        "GPU: the same, against the reference backend",
        *(10, "x", _ratio("op", "reference", **_GPU_OP), False, "cuda"),
    ),
    Target(
        "GPU: training step R50, 8 x 1024², bf16, against transformers",
        *(2, "x", _ratio("train", "transformers", **_GPU_TRAIN), False, "cuda"),
    ),
    Target(
        "GPU: its peak memory, relative to transformers'",
        *(0.6, "x", _figure("train", "peak / theirs", **_GPU_TRAIN), True, "cuda"),
    ),
    Target("GPU: waits in its training step", 1, "", _figure("train", "waits", **_GPU_TRAIN), True, "cuda"),
)
