"""Inputs of a model as plain data, which files can hold and `torch.load(weights_only=True)` reads, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.d2.structures import BitMasks, Boxes, Instances
from mask2former.modeling.masks import PackedMasks

_KIND = "__kind__"


def to_plain(value: Any) -> Any:
    """Tensors on the CPU, numbers, text, lists and dicts; what else there is becomes its text."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Instances):
        return {_KIND: "instances", "size": list(value.image_size), "fields": to_plain(value.get_fields())}
    if isinstance(value, BitMasks):
        masks = PackedMasks.pack(value.tensor)
        return {_KIND: "masks", "planes": masks.planes.cpu(), "ids": masks.ids.cpu()}
    if isinstance(value, Boxes):
        return {_KIND: "boxes", "tensor": value.tensor.cpu()}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str | int) else str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def from_plain(value: Any) -> Any:
    """The inputs that `to_plain` was given; tuples are lists now, and masks are packed."""
    if isinstance(value, list):
        return [from_plain(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind == "instances":
        return Instances(tuple(value["size"]), **from_plain(value["fields"]))
    if kind == "masks":
        return PackedMasks(value["planes"], value["ids"])
    if kind == "boxes":
        return Boxes(value["tensor"])
    return {key: from_plain(inner) for key, inner in value.items()}
