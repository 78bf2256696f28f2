"""Weights, gradients and optimiser state divided among processes by PyTorch's FSDP2, for what no GPU holds."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode

_LISTS = (nn.ModuleList, nn.Sequential)


def is_asked_for(cfg: CfgNode) -> bool:
    """Tell whether `MODEL.FSDP` has an effect: with several processes.

    Raises:
        ValueError: it does not go with the type of autocast, or with this PyTorch on a CPU.
    """
    if not cfg.MODEL.FSDP or comm.get_world_size() == 1:
        return False
    if cfg.MODEL.DEVICE == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise ValueError(f"MODEL.FSDP needs a newer PyTorch than {torch.__version__} on a CPU: set it to False")
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.DTYPE == "float16" and cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError("MODEL.FSDP does not go with float16's loss scaling: set SOLVER.AMP.DTYPE bfloat16")
    return True


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` was called."""
    return any(is_divided(parameter) for parameter in model.parameters())


def shard(model: nn.Module) -> None:
    """Divide the parameters of `model` among all processes, in place; before the optimiser is made.

    The parts of the model gather their weights when they run, and give them back: each block of `model.backbone` by
    itself, and what is left of each child. `state_dict` and `load_state_dict` speak of whole tensors, as without; the
    first is to be called by all processes together.

    Raises:
        ValueError: a parameter belongs to no child, but to the model itself.
    """
    from torch.distributed.fsdp import fully_shard

    if own := [name for name, _ in model.named_parameters(recurse=False)]:
        raise ValueError(f"MODEL.FSDP divides the children of a model; {', '.join(own)} belongs to none")
    for part in [*_blocks(getattr(model, "backbone", nn.Identity())), *model.children()]:
        if next(part.parameters(), None) is not None:
            fully_shard(part)
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_load_state_dict_pre_hook(_divide_loaded)
            module.register_state_dict_post_hook(_gather_saved)


def with_whole_state(optimizer: Optimizer) -> Optimizer:
    """The optimiser; if its parameters are divided, its states hold whole tensors, and all processes ask together."""
    if any(is_divided(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.register_state_dict_post_hook(lambda _, state: _map(state, whole))
        optimizer.register_load_state_dict_pre_hook(_divide_optimizer_state)
    return optimizer


def whole_copy(model: nn.Module, fresh: nn.Module) -> nn.Module:
    """`fresh`, of the same config, with the weights of `model`; all processes call it together.

    Evaluation needs it: with divided weights all processes would have to run as many batches.
    """
    fresh.load_state_dict(model.state_dict())
    return fresh.train(model.training)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of lists that have children and hold no lists themselves: blocks, not stages and not layers."""
    for part in module.modules():
        if isinstance(part, _LISTS):
            for block in part:
                inner = list(block.modules())[1:]
                if inner and not any(isinstance(below, _LISTS) for below in inner):
                    yield block


def _divide_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if prefix + name in state:
            state[prefix + name] = divided_like(parameter, state[prefix + name])


def _gather_saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, _ in module.named_parameters(recurse=False):
        if prefix + name in state:
            state[prefix + name] = whole(state[prefix + name])


def _divide_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    divided = {
        index: {key: divided_like(parameters[index], value) for key, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": divided}


def is_divided(value: Any) -> bool:
    """Tell whether a tensor is a part of one that is divided among processes."""
    return hasattr(value, "full_tensor")  # as PyTorch's DTensor has alone, which takes a while to import


def divided_like(parameter: Any, value: Any) -> Any:
    """This process's part of a whole tensor that every process has; as it is if `parameter` is not divided."""
    from torch.distributed.tensor import distribute_tensor

    if not is_divided(parameter) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    known = inspect.signature(distribute_tensor).parameters
    without_traffic = {"src_data_rank": None} if "src_data_rank" in known else {}
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, **without_traffic)


def whole(value: Any) -> Any:
    """The whole of a divided tensor, for which all processes ask together; anything else as it is."""
    return value.full_tensor() if is_divided(value) else value


def local(value: Any) -> Any:
    """This process's part of a divided tensor; anything else as it is."""
    return value.to_local() if is_divided(value) else value


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_map(inner, change) for inner in value]
    return change(value)
