"""Random numbers that depend on the seed and on the place in the run, and on nothing else."""

import random

import numpy as np
import torch

from mask2former.d2.config import CfgNode


def seed_everything(*parts: int) -> None:
    """Seed torch (all devices), NumPy and `random` with numbers that depend on all of `parts` (each >= 0)."""
    words = np.random.SeedSequence(parts).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    """A frozen copy of `cfg` with that SEED."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg
