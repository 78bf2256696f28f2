"""Train a small model some steps as `MODEL.COMPILE` does and as it is, and print the losses beside each other.

    python tests/helpers/inductor_training.py --steps 5

No test of the suite: PyTorch's compiler, Inductor, takes minutes for forward and backward.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers.models import example, small_model, total

SMALL = {"MODEL__MASK_FORMER__DEC_LAYERS": 2, "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 64}


def train(model: nn.Module, steps: int) -> tuple[list[float], float]:
    """Return the loss of each step, and the seconds of the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses, start, first = [], time.perf_counter(), 0.0
    for step in range(steps):
        torch.manual_seed(step)  # of the points that losses are sampled at
        loss = total(model.train()([example(seed=step)]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        first = first or time.perf_counter() - start
    return losses, first


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of any weight or statistic, counts of batches left out."""
    return max(float((value - other[name]).abs().max()) for name, value in one.items() if value.is_floating_point())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="of training (%(default)s)")
    args = parser.parse_args()
    plain, model = small_model(**SMALL), small_model(**SMALL, MODEL__COMPILE=True)
    expected, _ = train(plain, args.steps)
    found, first = train(model, args.steps)
    for step, (a, b) in enumerate(zip(expected, found, strict=True)):
        sys.stdout.write(f"step {step}: eager {a:.6f}, Inductor {b:.6f}, relative difference {abs(b / a - 1):.1e}\n")
    apart = difference(plain.state_dict(), model.state_dict())
    moved = difference(plain.state_dict(), small_model(**SMALL).state_dict())
    sys.stdout.write(f"weights differ by up to {apart:.1e}, training moved them by up to {moved:.1e}; ")
    sys.stdout.write(f"the first step took {first:.0f} s to compile and run\n")


if __name__ == "__main__":
    main()
