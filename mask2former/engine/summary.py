"""What a run is about to do, in the log before its first step."""

import logging
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode

logger = logging.getLogger(__name__)

KINDS_SHOWN = 3


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
    """A line for each setting of parameters: how many have it, of which part of the model; the last: what is frozen."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        setting = f"{group.get('initial_lr', group['lr']):g}", f"{group['weight_decay']:g}"
        groups.setdefault(setting, []).extend(group["params"])
    frozen = [parameter for parameter in names if not parameter.requires_grad]
    groups |= {("frozen", ""): frozen} if frozen else {}
    table = [
        (*setting, len(params), sum(parameter.numel() for parameter in params), _parts(names[p] for p in params))
        for setting, params in groups.items()
    ]
    headers = ["learning rate", "weight decay", "tensors", "parameters", "names"]
    return tabulate(table, headers=headers, disable_numparse=True)


def _parts(names: Iterable[str]) -> str:
    """What names have in common, for each child of a model: `backbone.layers.0 (weight, bias)`."""
    by_child: dict[str, list[list[str]]] = {}
    for name in names:
        by_child.setdefault(name.partition(".")[0], []).append(name.split("."))
    texts = []
    for paths in by_child.values():
        common = ".".join(_common_words(path[:-1] for path in paths))
        kinds = list(dict.fromkeys(path[-1] for path in paths))
        shown = ", ".join(kinds[:KINDS_SHOWN]) + (", ..." if len(kinds) > KINDS_SHOWN else "")
        texts.append(f"{common} ({shown})" if common else shown)
    return ", ".join(texts)


def _common_words(paths: Iterable[Sequence[str]]) -> list[str]:
    return [words[0] for words in takewhile(lambda words: len({*words}) == 1, zip(*paths, strict=False))]
