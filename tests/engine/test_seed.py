"""Seeds depend on every part, and reach every generator."""

import random

import numpy as np
import pytest
import torch

from mask2former.d2 import comm
from mask2former.engine.seed import seed_everything
from tests.helpers.training import TinyTrainer, tiny_cfg


def draw(*parts):
    seed_everything(*parts)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_same_parts_same_numbers():
    assert draw(7, 100, 0) == draw(7, 100, 0)


@pytest.mark.parametrize("other", [(8, 100, 0), (7, 101, 0), (7, 100, 1), (7, 0, 100), (7,)])
def test_other_parts_other_numbers(other):
    assert all(left != right for left, right in zip(draw(7, 100, 0), draw(*other), strict=True))


def test_each_step_of_each_process_draws_its_own_numbers(tmp_path, monkeypatch):
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        trainer = TinyTrainer(tiny_cfg(tmp_path / str(rank), MAX_ITER=2))
        trainer.raw_model.register_forward_pre_hook(lambda *_: drawn.append(torch.rand(1).item()))
        trainer.train()
    assert len(set(drawn)) == 4
