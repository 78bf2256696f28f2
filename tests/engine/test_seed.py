"""Seeds depend on every part, and reach every generator."""

import random

import numpy as np
import pytest
import torch

from mask2former.engine.seed import seed_everything


def draw(*parts):
    seed_everything(*parts)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_same_parts_same_numbers():
    assert draw(7, 100, 0) == draw(7, 100, 0)


@pytest.mark.parametrize("other", [(8, 100, 0), (7, 101, 0), (7, 100, 1), (7, 0, 100), (7,)])
def test_other_parts_other_numbers(other):
    assert all(left != right for left, right in zip(draw(7, 100, 0), draw(*other), strict=True))
