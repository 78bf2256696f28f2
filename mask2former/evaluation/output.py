"""Reading the model's output and writing predictions, shared by the evaluators."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from mask2former.files import write_bytes
from mask2former.modeling.masks import PackedMasks


def model_output(output: dict[str, Any], key: str, switch: str) -> Any:
    """`output[key]`, or an error that names the config key `switch` that turns it on.

    Raises:
        KeyError: the model made no such output.
    """
    if key not in output:
        raise KeyError(
            f"the model's output has {sorted(output)} but no {key!r}: set MODEL.MASK_FORMER.TEST.{switch} True"
        )
    return output[key]


def iterate_masks(masks: Tensor | PackedMasks, chosen: Iterable[int]) -> Iterator[np.ndarray]:
    """One mask bool (H, W) after another of the chosen ones of `pred_masks`, whether these are a tensor or packed."""
    masks = masks.cpu()
    for i in chosen:
        yield masks[i].numpy().astype(bool, copy=False)


def write_json(path: str, content: Any) -> None:
    """Write JSON atomically, making the folder when needed."""
    write_bytes(path, json.dumps(content).encode())
