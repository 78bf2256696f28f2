"""What a run is about to do, in the log before its first step."""

import logging
import re
from collections.abc import Iterable
from typing import Any

from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

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
    parts = cfg.SOLVER.ACCUMULATION_STEPS
    shares += f", {batch // processes // parts} at a time" if parts > 1 else ""
    images = len(getattr(loader, "dataset", ()))
    epochs = f", {steps * batch / images:.1f} epochs of {images} images" if images else ""
    logger.info("Training from iteration %d to %d, %d images a step%s%s", start_iter, steps, batch, shares, epochs)


def log_groups(model: nn.Module, optimizer: Optimizer) -> None:
    """Log a table of the parameters: how each group learns, and what is frozen."""
    logger.info("Learning rates and weight decays:\n%s", group_table(model, optimizer))


def group_table(model: nn.Module, optimizer: Optimizer) -> str:
    """The optimiser's groups, the last row what is not trained; in names, `*` stands for the numbers of layers."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    frozen = [parameter for parameter in names if not parameter.requires_grad]
    rows = [
        (f"{group.get('initial_lr', group['lr']):g}", f"{group['weight_decay']:g}", group["params"])
        for group in optimizer.param_groups
    ]
    rows += [("frozen", "", frozen)] if frozen else []
    headers = ["learning rate", "weight decay", "tensors", "parameters", "names"]
    table = [
        (*row, len(params), sum(parameter.numel() for parameter in params), _joined(names[p] for p in params))
        for *row, params in rows
    ]
    return tabulate(table, headers=headers, maxcolwidths=[None] * 4 + [80], disable_numparse=True)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
