"""Mixed precision as `SOLVER.AMP` describes it."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.amp import GradScaler

from mask2former.d2.config import CfgNode
from mask2former.modeling.mask_former import PRECISIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Type of autocast on one device; `dtype` None means float32 throughout."""

    device_type: str
    dtype: torch.dtype | None

    @classmethod
    def from_config(cls, cfg: CfgNode, device: torch.device) -> "Precision":
        """Read `SOLVER.AMP`. float16 on a CPU means float32: published configs ask for it and run there too.

        Raises:
            ValueError: `SOLVER.AMP.DTYPE` is neither "float16" nor "bfloat16".
        """
        name = cfg.SOLVER.AMP.DTYPE
        dtype = PRECISIONS.get(name)
        if dtype is None:
            raise ValueError(f"SOLVER.AMP.DTYPE is {name!r}, expected one of {[n for n, d in PRECISIONS.items() if d]}")
        if not cfg.SOLVER.AMP.ENABLED:
            return cls(device.type, None)
        if device.type == "cpu" and name == "float16":
            logger.info("float16 autocast is off on the CPU; SOLVER.AMP.DTYPE bfloat16 switches autocast on")
            return cls(device.type, None)
        return cls(device.type, dtype)

    def autocast(self) -> AbstractContextManager:
        """The context that a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def build_scaler(self) -> GradScaler:
        """The scaler of losses: active for float16, whose small gradients would vanish, idle otherwise."""
        return GradScaler(self.device_type, enabled=self.dtype == torch.float16)
