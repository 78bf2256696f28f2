"""Writing ONNX: standard operators of opset 17, no `GridSample`, and no tensor of more than five dimensions."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ExportError
from .extras import import_extra

OPSET = 17
MAX_RANK = 5
FORBIDDEN = ("GridSample",)
"""Computed wrongly by TensorRT 10.13 and 10.14 in deformable attention (NVIDIA/TensorRT #4813)."""
INPUT = "images"


def make_onnx(
    graph: nn.Module, images: Tensor, outputs: Mapping[str, Sequence[str]], *, dynamic: Sequence[str], **options: Any
) -> Any:
    """Trace a graph.

    Args:
        graph: from images to a tuple of outputs.
        images: an example.
        outputs: for each output, in their order, what its dimensions are called, "" for those that do not vary.
        dynamic: of "batch", "height" and "width" those that may vary.
        options: of `torch.onnx.export`.

    Returns:
        `onnx.ModelProto`.
    """
    onnx = import_extra("onnx")
    axes = {INPUT: ("batch", "", "height", "width"), **outputs}
    varies = {"batch": "batch" in dynamic}
    named = {
        name: {i: axis for i, axis in enumerate(names) if axis and varies.get(axis, "height" in dynamic)}
        for name, names in axes.items()
    }
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # That the exporter is an old one, and that Python's branches on sizes that never change become constants.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (images,),
            file,  # type: ignore[arg-type]  # only the other exporter wants a path
            dynamo=False,  # the one that all versions from 2.6 on have alike, and that needs no further package
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_axes=named,
            **options,
        )
    return onnx.load_model_from_string(file.getvalue())


def set_metadata(model: Any, metadata: Mapping[str, str]) -> None:
    """Write texts by key into a model."""
    import_extra("onnx").helper.set_model_props(model, dict(metadata))


def check_onnx(model: Any, *, plugins: Sequence[str] = ()) -> None:
    """Raises ExportError for what runtimes cannot be trusted with, or do not know.

    Args:
        plugins: operators that may be there though no standard knows them; what they take may have six dimensions.
    """
    onnx = import_extra("onnx")
    operators = {(node.domain, node.op_type) for node in _nodes(model.graph)}
    found = sorted({name for _, name in operators if name in FORBIDDEN})
    if found:
        raise ExportError(
            f"the graph has {', '.join(found)}, which TensorRT computes wrongly: a module samples in a way of its own; "
            "let it use mask2former's MSDeformAttn, or plain indexing"
        )
    foreign = sorted(name for domain, name in operators if domain not in ("", "ai.onnx") and name not in plugins)
    if foreign:
        raise ExportError(f"the graph has operators that are not standard: {', '.join(foreign)}")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    high = sorted(name for name, rank in ranks.items() if rank > MAX_RANK and not plugins)
    if high:
        raise ExportError(
            f"{len(high)} tensors of the graph have more than {MAX_RANK} dimensions, which some runtimes do not "
            f"know, such as {high[0]} with {ranks[high[0]]}"
        )


class OnnxSession:
    """A file under onnxruntime, on the CPU."""

    def __init__(self, path: Path | str | bytes, *, threads: int = 0) -> None:
        """`threads`: 0 for as many as there are cores."""
        ort = import_extra("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        source = path if isinstance(path, bytes) else str(path)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs in their order for images uint8 (N, 3, H, W)."""
        return tuple(self._session.run(None, {INPUT: images}))


def _nodes(graph: Any) -> Iterator[Any]:
    """Nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)
