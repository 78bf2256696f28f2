"""Reading the model's output and writing predictions, shared by the evaluators."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
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


def prediction_name(inputs: dict[str, Any]) -> str:
    """Name, without suffix, of files of an image's prediction: its id where that is a path, else that of its file."""
    name = inputs.get("image_id")
    if not isinstance(name, str) or name.startswith(("/", "\\")) or ".." in name or ":" in name:
        name = os.path.splitext(os.path.basename(inputs["file_name"]))[0]
    return name


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 or uint16 (H, W), or of uint8 (H, W, 3) in RGB; larger than the least, but quick to make."""
    channels = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
    return cv2.imencode(".png", channels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def write_json(path: str, content: Any) -> None:
    """Write JSON atomically, making the folder when needed."""
    write_bytes(path, json.dumps(content).encode())
