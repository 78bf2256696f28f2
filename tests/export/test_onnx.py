"""ONNX files of logits: equal to PyTorch at any size and number of images, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.d2.structures import ImageList
from mask2former.export import Comparison, ExportError, export_model, open_exported
from mask2former.export import run as export_run
from mask2former.export.onnx import INPUT, OnnxSession, check_onnx
from mask2former.export.verify import check, probe_images
from tests.helpers.models import small_cfg, small_model

onnx = pytest.importorskip("onnx", reason="not installed: pip install 'mask2former[export]'")
ort = pytest.importorskip("onnxruntime", reason="not installed: pip install 'mask2former[export]'")

SWIN = {
    "MODEL__BACKBONE__NAME": "D2SwinTransformer",
    "MODEL__SWIN__EMBED_DIM": 8,
    "MODEL__SWIN__DEPTHS": [2, 1, 1, 1],
    "MODEL__SWIN__NUM_HEADS": [1, 1, 2, 2],
    "MODEL__SWIN__WINDOW_SIZE": 7,
    "MODEL__MASK_FORMER__DEC_LAYERS": 3,
}
MODELS: dict[str, dict[str, Any]] = {"resnet": {}, "swin": SWIN}
SHALLOW = {"MODEL__MASK_FORMER__DEC_LAYERS": 2}
CATEGORIES = [{"name": f"class {i}", "isthing": int(i < 3)} for i in range(5)]


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Comparison]:
    """A model, its file, and how they compare."""
    model = small_model(**MODELS[request.param]).eval()
    path = tmp_path_factory.mktemp("export") / "new" / "model.onnx"
    comparison = export_model(model, small_cfg(**MODELS[request.param]), path, categories=CATEGORIES)
    return model, path, comparison


def logits(model: Any, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Of the model itself, by the road that predictions take."""
    pixels = [(image - model.pixel_mean) / model.pixel_std for image in images]
    batch = ImageList.from_tensors(pixels, model.size_divisibility)
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(batch.tensor))
    return {"class_logits": outputs["pred_logits"].numpy(), "mask_logits": outputs["pred_masks"].numpy()}


@pytest.mark.parametrize("shape", [(1, 97, 130), (3, 64, 224)], ids=str)
def test_any_size_and_number_of_images(exported: tuple[Any, Path, Comparison], shape: tuple[int, int, int]) -> None:
    model, path, _ = exported
    images = probe_images(shape, seed=3)
    expected, found = logits(model, images), open_exported(path)(images.numpy())
    assert list(found) == ["class_logits", "mask_logits"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5 * np.abs(value).max())


def test_it_was_compared_at_two_sizes(exported: tuple[Any, Path, Comparison]) -> None:
    *_, comparison = exported
    (first, *_), (second, *_) = comparison.differences
    assert (first, second) == (2, 1)
    assert len({size for _, *size in map(list, comparison.differences) for size in size}) == 4
    assert 0 < comparison.largest < 1e-5


def test_standard_operators_and_no_more_than_five_dimensions(exported: tuple[Any, Path, Comparison]) -> None:
    model = onnx.load(exported[1])
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"GridSample", "If", "Loop"}
    outputs = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(None, {INPUT: probe_images((2, 64, 96)).numpy()})
    assert max(value.ndim for value in values) == 5


def test_the_file_says_what_it_is(exported: tuple[Any, Path, Comparison]) -> None:
    description = json.loads(OnnxSession(exported[1]).metadata["mask2former"])
    assert description["categories"] == CATEGORIES
    assert description["task"] == "panoptic"
    assert description["input"] == {"format": "RGB", "min_size": 800, "max_size": 1333, "size_divisibility": 32}
    assert not description["postprocessing"]["in_graph"]
    assert "NUM_CLASSES: 5" in description["config_yaml"]


def test_a_fixed_size_and_number(tmp_path: Path) -> None:
    model = small_model(**SHALLOW).eval()
    comparison = export_model(model, small_cfg(**SHALLOW), tmp_path / "model.onnx", size=(64, 90), batch=1)
    assert list(comparison.differences) == [(1, 64, 90)]
    (images,) = onnx.load(tmp_path / "model.onnx").graph.input
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim] == [1, 3, 64, 90]


def spoil(change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what was traced be changed before it is written."""
    make = export_run.make_onnx

    def spoilt(*args: Any, **options: Any) -> Any:
        model = make(*args, **options)
        change(model)
        return model

    monkeypatch.setattr(export_run, "make_onnx", spoilt)


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_a_relu(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Identity"

    spoil(lose_a_relu, monkeypatch)
    with pytest.raises(ExportError, match=r"differs from PyTorch by more than 1e-03(.|\n)*2 x 256 x 160: class_logits"):
        export_model(small_model(**SHALLOW).eval(), small_cfg(**SHALLOW), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_right_at_one_size_alone_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a size became a constant."""

    class Fixed(export_run.LogitsGraph):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = super().forward(images)
            mean = torch.tensor(float(images.float().mean()))
            return first + (images.float().mean() - mean), second

    monkeypatch.setattr(export_run, "LogitsGraph", Fixed)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_model(small_model(**SHALLOW).eval(), small_cfg(**SHALLOW), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_nan_is_a_difference() -> None:
    with pytest.raises(ExportError, match="nan"):
        check(Comparison({(1, 8, 8): {"class_logits": float("nan"), "mask_logits": 0.0}}), 1e-3)


def make(*nodes: Any, **shapes: list[int]) -> Any:
    values = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, s) for name, s in shapes.items()}
    graph = onnx.helper.make_graph(list(nodes), "graph", [v for n, v in values.items() if n != "y"], [values["y"]])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_what_runtimes_cannot_be_trusted_with_is_refused() -> None:
    node = onnx.helper.make_node
    check_onnx(make(node("Relu", ["x"], ["y"]), x=[1, 2], y=[1, 2]))
    sampler = make(node("GridSample", ["x", "g"], ["y"]), x=[1, 1, 4, 4], g=[1, 2, 2, 2], y=[1, 1, 2, 2])
    with pytest.raises(ExportError, match="GridSample, which TensorRT computes wrongly"):
        check_onnx(sampler)
    with pytest.raises(ExportError, match="not standard: Fancy"):
        check_onnx(make(node("Fancy", ["x"], ["y"], domain="com.example"), x=[1], y=[1]))
    high = make(node("Neg", ["x"], ["z"]), node("Flatten", ["z"], ["y"]), x=[1, 2, 1, 2, 1, 2], y=[1, 8])
    with pytest.raises(ExportError, match=r"more than 5 dimensions.* such as z with 6"):
        check_onnx(high)


def test_a_module_that_samples_a_grid_is_refused(tmp_path: Path) -> None:
    class Sampler(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.grid_sample(super().forward(x), x[:, :2].permute(0, 2, 3, 1), align_corners=False)

    model: Any = small_model(**SHALLOW).eval()
    old = model.sem_seg_head.pixel_decoder.mask_features
    model.sem_seg_head.pixel_decoder.mask_features = Sampler(old.in_channels, old.out_channels, 1)
    with pytest.raises(ExportError, match="GridSample"):
        export_model(model, small_cfg(**SHALLOW), tmp_path / "model.onnx", size=(64, 64), batch=1)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Linear cannot be exported"):
        export_model(nn.Linear(1, 1), small_cfg(**SHALLOW), tmp_path / "model.onnx")
    cfg = small_cfg(MODEL__COMPILE=True)
    with pytest.raises(ExportError, match=r"set MODEL\.COMPILE to False"):
        export_model(small_model(**SHALLOW), cfg, tmp_path / "model.onnx")
