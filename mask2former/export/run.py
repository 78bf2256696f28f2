"""From a model to a file that has been run and compared: what `mask2former export` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.d2.config import CfgNode
from mask2former.d2.structures import ImageList
from mask2former.files import replacing
from mask2former.modeling.mask_former import MaskFormer

from .description import KEY, describe_export
from .errors import ExportError
from .graph import LogitsGraph
from .onnx import OnnxSession, check_onnx, make_onnx, set_metadata
from .verify import TOLERANCE, Comparison, Shape, check, compare, probe_images

FORMATS = ("onnx",)
OUTPUTS = {"class_logits": ("batch", "", ""), "mask_logits": ("batch", "", "mask_height", "mask_width")}


def export_model(
    model: nn.Module,
    cfg: CfgNode,
    output: str | os.PathLike[str],
    *,
    categories: Sequence[Mapping[str, Any]] = (),
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Write a model to a file, run the file, and compare what it gives with PyTorch.

    Args:
        model: a `MaskFormer` with its weights; it stays as it is.
        cfg: its config.
        output: the file; it appears only if it computes what the model does.
        categories: the classes, as in MODEL.CATEGORIES.
        size: height and width that images will always have; None if they may have any.
        batch: the number of images that there will always be; None for any.
        tolerance: the largest difference, as a share of the largest number of an output.

    Returns:
        The differences found, at two sizes and numbers of images unless these are fixed.

    Raises:
        ExportError: the model cannot be exported, or the file differs by more than `tolerance`; nothing is written.
    """
    if not isinstance(model, MaskFormer):
        raise ExportError(
            f"{type(model).__name__} cannot be exported: MODEL.META_ARCHITECTURE 'MaskFormer' with a head that "
            "classifies masks can"
        )
    if cfg.MODEL.COMPILE:
        raise ExportError("compiled modules cannot be traced: set MODEL.COMPILE to False")
    dynamic = [name for name, fixed in (("batch", batch), ("height", size), ("width", size)) if fixed is None]
    example = probe_images((batch or 2, *(size or _example_size(model))))
    graph = LogitsGraph(model).cpu()
    proto = make_onnx(graph, example, OUTPUTS, dynamic=dynamic)
    check_onnx(proto)
    text = describe_export(
        cfg, categories, size_divisibility=model.size_divisibility, outputs=list(OUTPUTS), in_graph=False
    )
    set_metadata(proto, {KEY: text})
    with replacing(Path(output)) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        comparison = compare(OnnxSession(temporary), _Reference(model), verified_shapes(example, size, batch))
        check(comparison, tolerance)
    return comparison


def verified_shapes(example: Tensor, size: tuple[int, int] | None, batch: int | None) -> list[Shape]:
    """Numbers and sizes of images to compare at: as traced, and another, which needs padding, as far as free."""
    count, _, height, width = example.shape
    first, second = (count, height, width), (batch or 1, *(size or (height - 56, width + 13)))
    return [first] if second == first else [first, second]


def _example_size(model: MaskFormer) -> tuple[int, int]:
    side = 4 * max(model.size_divisibility, 32)
    return 2 * side, side + side // 4


class _Reference:
    """The model's own way from images to logits, in float32."""

    def __init__(self, model: MaskFormer) -> None:
        self._model = model

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        model = self._model
        pixels = [(image - model.pixel_mean) / model.pixel_std for image in images.to(model.device)]
        batch = ImageList.from_tensors(pixels, model.size_divisibility)
        was_training = model.training
        with torch.no_grad():
            outputs = model.eval().sem_seg_head(model.backbone(batch.tensor))
        model.train(was_training)
        return {"class_logits": outputs["pred_logits"].cpu(), "mask_logits": outputs["pred_masks"].cpu()}
