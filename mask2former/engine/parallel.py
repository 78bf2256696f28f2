"""The model in several processes, and on a device that may be busy forever."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.d2 import comm
from mask2former.engine.sharding import is_sharded


def distributed(model: nn.Module) -> nn.Module:
    """The model itself in a single process or if it is divided, else a wrapper that averages gradients over processes.

    Buffers, such as running statistics, stay those of each process, as published.
    """
    if comm.get_world_size() == 1 or is_sharded(model):
        return model
    devices = [torch.cuda.current_device()] if _is_on_gpu(model) else None
    wrapper = DistributedDataParallel(model, device_ids=devices)
    wrapper.broadcast_buffers = False  # the argument of this name warns in new PyTorch
    return wrapper


def side_stream(model: nn.Module) -> AbstractContextManager[Any]:
    """Context in which weights can be copied from the GPU although the work that was queued before does not end."""
    return torch.cuda.stream(torch.cuda.Stream()) if _is_on_gpu(model) else nullcontext()


def _is_on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cuda"
