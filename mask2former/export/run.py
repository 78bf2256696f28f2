"""From a model to a file that has been run and compared: what `mask2former export` does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mask2former.d2.config import CfgNode
from mask2former.modeling.backbone.swin import SwinTransformer
from mask2former.modeling.mask_former import MaskFormer

from .deformable import GatheredDeformAttn
from .description import KEY, describe_export
from .errors import ExportError
from .graph import LogitsGraph
from .onnx import check_onnx, make_onnx, set_metadata
from .openvino import write_openvino
from .postprocess import OutputsGraph
from .pt2 import write_pt2
from .reader import open_exported
from .reference import expected_outputs
from .tensorrt import PLUGIN, PluginDeformAttn
from .verify import TOLERANCE, Comparison, Shape, check, compare, probe_images

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml", "tensorrt-onnx": ".onnx"}
"""Suffix of each format's files."""


def export_model(
    model: nn.Module,
    cfg: CfgNode,
    output: str | os.PathLike[str],
    *,
    format: str = "onnx",
    categories: Sequence[Mapping[str, Any]] = (),
    score_thresholds: Sequence[float] = (),
    postprocess: bool = False,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Write a model to a file, run the file, and compare what it gives with PyTorch.

    Args:
        model: a `MaskFormer` with its weights; it stays as it is.
        cfg: its config.
        output: the file, with the suffix of its format; it appears only if it computes what the model does.
        format: a key of `FORMATS`. Of "tensorrt-onnx" the graph is checked, since no other runtime can run it.
        categories: the classes, as in MODEL.CATEGORIES.
        score_thresholds: for each class the least score of instances that are worth showing, if known.
        postprocess: let the graph also make the outputs that the config turns on.
        size: height and width that images will always have; None if they may have any, in `pt2` multiples of what
            the model pads to.
        batch: the number of images that there will always be; None for any.
        tolerance: the largest difference, as a share of the largest number of an output.

    Returns:
        The differences found, at two sizes and numbers of images unless these are fixed.

    Raises:
        ExportError: the model cannot be exported, or the file differs by more than `tolerance`; nothing is written.
    """
    path = Path(output)
    _check_request(model, cfg, format, path)
    if format == "pt2" and size is None and isinstance(getattr(model, "backbone", None), SwinTransformer):
        raise ExportError(
            "torch.export does not come to an end with the windows of a Swin Transformer for images of any size: give "
            "one, or take the format onnx"
        )
    assert isinstance(model, MaskFormer)  # as has been checked
    graph = _graph(model, cfg, postprocess, PluginDeformAttn if format == "tensorrt-onnx" else GatheredDeformAttn)
    outputs = graph.outputs
    text = describe_export(
        cfg,
        categories,
        score_thresholds=score_thresholds,
        size_divisibility=model.size_divisibility,
        outputs=list(outputs),
        in_graph=postprocess,
    )
    dynamic = [name for name, fixed in (("batch", batch), ("height", size), ("width", size)) if fixed is None]
    example = probe_images((batch or 2, *(size or _example_size(model))))
    with _moved_when_done(path) as temporary:
        _write(_Job(format, temporary, graph, example, dynamic, text, model.size_divisibility))
        if format == "tensorrt-onnx":
            return Comparison({})
        comparison = compare(
            open_exported(temporary),
            lambda images, found: expected_outputs(model, images, found),
            verified_shapes(example, size, batch, whole=format == "pt2"),
        )
        check(comparison, tolerance)
    return comparison


def verified_shapes(
    example: Tensor, size: tuple[int, int] | None, batch: int | None, *, whole: bool = False
) -> list[Shape]:
    """Numbers and sizes of images to compare at: as traced, and another, as far as free, that needs padding.

    `whole`: the other needs none, but is a multiple of what the model pads to.
    """
    count, _, height, width = example.shape
    other = (height // 2, width * 2) if whole else (height - 56, width + 13)
    first, second = (count, height, width), (batch or 1, *(size or other))
    return [first] if second == first else [first, second]


@dataclass(frozen=True)
class _Job:
    """What a writer of a format needs."""

    format: str
    path: Path
    graph: LogitsGraph | OutputsGraph
    example: Tensor
    dynamic: Sequence[str]
    text: str
    size_divisibility: int


def _write(job: _Job) -> None:
    if job.format == "pt2":
        divisor = max(job.size_divisibility, 1)
        write_pt2(job.path, job.graph, job.example, dynamic=job.dynamic, divisor=divisor, text=job.text)
        return
    plugins = [PLUGIN] if job.format == "tensorrt-onnx" else []
    proto = make_onnx(job.graph, job.example, job.graph.outputs, dynamic=job.dynamic)
    check_onnx(proto, plugins=plugins)
    set_metadata(proto, {KEY: job.text})
    onnx_path = job.path.with_suffix(".onnx")
    onnx_path.write_bytes(proto.SerializeToString())
    if job.format == "openvino":
        write_openvino(job.path, onnx_path, job.text)
        onnx_path.unlink()


def _check_request(model: nn.Module, cfg: CfgNode, format: str, path: Path) -> None:
    if not isinstance(model, MaskFormer):
        raise ExportError(
            f"{type(model).__name__} cannot be exported: MODEL.META_ARCHITECTURE 'MaskFormer' with a head that "
            "classifies masks can"
        )
    if isinstance(model.sem_seg_head, nn.Identity):
        raise ExportError("this model is an exported file already: export its checkpoint")
    if cfg.MODEL.COMPILE:
        raise ExportError("compiled modules cannot be traced: set MODEL.COMPILE to False")
    if format not in FORMATS:
        raise ExportError(f"the format {format!r} is none of {', '.join(FORMATS)}")
    if path.suffix != FORMATS[format]:
        raise ExportError(f"{path} must end in {FORMATS[format]}, as files of the format {format} do")


def _graph(
    model: MaskFormer, cfg: CfgNode, postprocess: bool, attention: Callable[[Any], nn.Module]
) -> LogitsGraph | OutputsGraph:
    logits = LogitsGraph(model, attention).cpu()
    if not postprocess:
        return logits
    return OutputsGraph(
        logits,
        num_classes=model.num_classes,
        thing_ids=model.thing_ids if model.panoptic_on else None,
        semantic=model.semantic_on,
        panoptic=model.panoptic_on,
        instance=model.instance_on,
        object_mask_threshold=model.object_mask_threshold,
        overlap_threshold=model.overlap_threshold,
        topk=model.detections_per_image,
    )


def _example_size(model: MaskFormer) -> tuple[int, int]:
    side = 4 * max(model.size_divisibility, 32)
    return 2 * side, side + side // 4


@contextmanager
def _moved_when_done(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder, whose files are moved beside `path` unless an error is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / path.name
        for file in sorted(
            Path(folder).iterdir(), key=lambda file: file.name == path.name
        ):  # the one that is named last
            os.replace(file, path.parent / file.name)
