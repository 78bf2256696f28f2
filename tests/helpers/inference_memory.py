"""Peak memory in MiB that the outputs of one image take above its predictions, by task: run as a program.

`python tests/helpers/inference_memory.py 4000 5000` is the case that must stay below 2 GiB: 100 queries, 133 classes,
compact outputs, and a model that saw the image at a shorter edge of 800 pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mask2former.modeling.inference import InstanceTask, PanopticTask, SemanticTask, Task, run_tasks
from mask2former.modeling.mask_rows import OutputMasks

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
QUERIES, CLASSES, THINGS = 100, 133, range(80)


def predictions(height: int, width: int) -> tuple[torch.Tensor, OutputMasks]:
    """Class logits and masks of discs, 15 queries of them certain, and the others of no class."""
    torch.manual_seed(0)
    seen = (800, round(800 * width / height))
    padded = tuple(-(-size // 32) * 32 for size in seen)
    y, x = (torch.linspace(0, 1, size // 4) for size in padded)
    center_y, center_x, radius = (torch.rand(QUERIES, 1, 1) for _ in range(3))
    distances = (y[:, None] - center_y).square() + (x - center_x).square()
    logits = 12 * (1 - distances / (0.05 + 0.3 * radius).square()).clamp(min=-1)
    classes = torch.randn(QUERIES, CLASSES + 1)
    classes[:, -1] += 8
    classes[:15, -1] -= 8
    classes[torch.arange(15), torch.randint(CLASSES, (15,))] += 10
    masks = OutputMasks(logits, padded_size=padded, image_size=seen, output_size=(height, width))
    return classes, masks


def tasks(name: str, classes: torch.Tensor, size: tuple[int, int]) -> list[Task]:
    """The named tasks with compact outputs."""
    chosen: list[Task] = []
    if name in ("semantic", "all"):
        chosen.append(SemanticTask(classes, size, labels_only=True))
    if name in ("panoptic", "all"):
        thresholds = {"object_mask_threshold": 0.8, "overlap_threshold": 0.8}
        chosen.append(PanopticTask(classes, size, thing_ids=THINGS, **thresholds))
    if name in ("instance", "all"):
        chosen.append(InstanceTask(classes, size, topk=100, packed=True))
    return chosen


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, or VmHWM, the most it had."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def peak(function: Callable[[], object]) -> float:
    """MiB that a call takes above what the process has, at most."""
    before = memory("VmRSS")
    CLEAR.write_text("5")  # forget the peak
    function()
    return memory("VmHWM") - before


def peaks(height: int, width: int, max_memory_mb: int) -> dict[str, float]:
    """MiB above the predictions, by task; what the allocator keeps of one task counts for the next, too."""
    classes, masks = predictions(height, width)
    before = memory("VmRSS")
    result = {}
    for name in ("semantic", "panoptic", "instance", "all"):
        CLEAR.write_text("5")
        chosen = tasks(name, classes, masks.size)
        outputs = run_tasks(chosen, masks, max_bytes=max_memory_mb * 2**20)
        result[name] = round(memory("VmHWM") - before, 1)
        del chosen, outputs
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--max-memory-mb", type=int, default=32)
    sys.stdout.write(json.dumps(peaks(**vars(parser.parse_args()))) + "\n")
