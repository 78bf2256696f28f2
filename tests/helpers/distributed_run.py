"""Script that torchrun starts: trains the tiny model without random numbers; argument: output folder."""

import sys
from pathlib import Path

from torch import nn

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.engine.launch import launch
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class PlainTrainer(TinyTrainer):
    """Its result depends on the global batch alone."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return TinyModel(random=False)


def main(output_dir: str) -> None:
    """Train for six iterations and save `model_final.pth`."""
    trainer = PlainTrainer(tiny_cfg(Path(output_dir)))
    trainer.resume_or_load(False)
    trainer.train()
    Path(output_dir, f"rank{comm.get_rank()}of{comm.get_world_size()}").touch()


if __name__ == "__main__":
    launch(main, 1, args=(sys.argv[1],))
