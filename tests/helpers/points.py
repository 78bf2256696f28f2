"""The same random points for every mask, in this library and in others."""

import pytest
import torch
from torch import Tensor

from mask2former.modeling import matcher, points


def same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matching and losses draw points that depend on their number alone, and `torch.rand` the same in [0, 1]."""
    original = torch.rand
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **options: (_points_by_count if len(shape) > 1 else original)(*shape, **options)
    )
    for module in (matcher, points):
        monkeypatch.setattr(module, "random_points", lambda *shape, device: 2 * _points_by_count(*shape, 2) - 1)


def _points_by_count(*shape: int, device: torch.device | None = None) -> Tensor:
    *leading, count, _ = shape
    generator = torch.Generator().manual_seed(count)
    return torch.empty(count, 2).uniform_(generator=generator).expand(*leading, -1, -1).clone()
