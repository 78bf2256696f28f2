"""What a run is about to do, in the log before its first step."""

import logging
from typing import Any

from torch import nn

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode

logger = logging.getLogger(__name__)


def log_run(cfg: CfgNode, model: nn.Module, loader: Any, *, start_iter: int) -> None:
    """Log the size of the model, the steps to go, the batch, and the epochs where the loader has a data set."""
    sizes = {parameter: parameter.numel() for parameter in model.parameters()}
    trained = sum(size for parameter, size in sizes.items() if parameter.requires_grad)
    logger.info("Model: %.2f million parameters, %.2f million are trained", sum(sizes.values()) / 1e6, trained / 1e6)
    batch, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    processes = comm.get_world_size()
    shares = f" ({processes} processes with {batch // processes} each)" if processes > 1 else ""
    images = len(getattr(loader, "dataset", ()))
    epochs = f", {steps * batch / images:.1f} epochs of {images} images" if images else ""
    logger.info("Training from iteration %d to %d, %d images a step%s%s", start_iter, steps, batch, shares, epochs)
