"""Every format of file: equal to PyTorch, with post-processing inside, and as the source of a predictor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former import Predictor
from mask2former.benchmarks.models import make_sure
from mask2former.checkpoint.description import describe
from mask2former.d2.structures import Instances
from mask2former.export import FORMATS, Comparison, ExportError, export_model, open_exported
from mask2former.export.postprocess import OutputsGraph
from mask2former.export.tensorrt import PLUGIN
from mask2former.export.verify import probe_images
from tests.export.test_onnx import CATEGORIES, SWIN
from tests.helpers.models import small_cfg, small_model

PACKAGES = {"onnx": ["onnx", "onnxruntime"], "openvino": ["onnx", "openvino"], "pt2": [], "tensorrt-onnx": ["onnx"]}
RUNNABLE = [name for name in FORMATS if name != "tensorrt-onnx"]
CHANGES: dict[str, Any] = {
    "MODEL__MASK_FORMER__DEC_LAYERS": 2,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 20,
    "MODEL__MASK_FORMER__TEST__SEMANTIC_ON": True,
    "MODEL__MASK_FORMER__TEST__OBJECT_MASK_THRESHOLD": 0.3,
    "MODEL__MASK_FORMER__TEST__OVERLAP_THRESHOLD": 0.4,
    "TEST__DETECTIONS_PER_IMAGE": 25,
    "INPUT__MIN_SIZE_TEST": 64,
    "INPUT__MAX_SIZE_TEST": 128,
}
SIZE = (96, 64)
THRESHOLDS = [0.2, 0.1, 0.4, 0.0, 0.3]


def need(format: str) -> None:
    for name in PACKAGES[format]:
        pytest.importorskip(name, reason="not installed: pip install 'mask2former[export]'")


def sure_model() -> Any:
    """A model that is sure of many classes, so that there are segments and instances."""
    model: Any = small_model(**CHANGES).eval()
    make_sure(model, probe_images((1, 128, 128))[0])
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return sure_model()


@pytest.fixture(scope="module", params=RUNNABLE)
def exported(
    request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Comparison]:
    """A file with post-processing, and how it compares."""
    need(request.param)
    path = tmp_path_factory.mktemp("formats") / f"model{FORMATS[request.param]}"
    comparison = export_model(
        model,
        small_cfg(**CHANGES),
        path,
        format=request.param,
        categories=CATEGORIES,
        score_thresholds=THRESHOLDS,
        postprocess=True,
        size=SIZE if request.param == "pt2" else None,  # for any size it takes a while
    )
    return path, comparison


def ask(model: Any, image: torch.Tensor) -> dict[str, Any]:
    with torch.no_grad():
        return model([{"image": image}])[0]


def test_post_processing_in_the_graph(exported: tuple[Path, Comparison], model: Any) -> None:
    path, comparison = exported
    assert comparison.largest < 1e-5
    images = probe_images((2, *SIZE), seed=1)
    found = open_exported(path)(images.numpy())
    for i, image in enumerate(images):
        assert_equal({name: value[i] for name, value in found.items()}, ask(model, image))


def assert_equal(found: Mapping[str, np.ndarray], expected: dict[str, Any]) -> None:
    assert (found["semantic"] == expected["sem_seg"].argmax(0).numpy()).all()
    ids, segments = expected["panoptic_seg"]
    assert len(segments) > 1
    assert (found["panoptic"] == ids.numpy()).all()
    count = len(segments)
    assert found["segment_classes"][:count].tolist() == [segment["category_id"] for segment in segments]
    np.testing.assert_allclose(found["segment_scores"][:count], [s["score"] for s in segments], rtol=1e-4)
    assert set(found["segment_classes"][count:].tolist()) == {-1}
    assert not found["segment_scores"][count:].any()
    instances: Instances = expected["instances"]
    count = len(instances)
    assert 0 < count < 25, "stuff is left out"
    np.testing.assert_allclose(found["instance_scores"][:count], instances.scores, rtol=1e-4, atol=1e-7)
    assert found["instance_classes"].tolist() == [*instances.pred_classes.tolist(), *[-1] * (25 - count)]
    assert (found["instance_masks"][:count] == instances.pred_masks.numpy()).all()
    assert (found["instance_boxes"][:count] == instances.pred_boxes.tensor.numpy()).all()
    assert not found["instance_masks"][count:].any()
    assert not found["instance_boxes"][count:].any()


def test_nothing_found() -> None:
    """Thresholds that nothing passes, and empty masks: no segment, and boxes of nothing."""
    graph = OutputsGraph(
        torch.nn.Identity(),  # type: ignore[arg-type]
        num_classes=2,
        thing_ids=[0],
        semantic=False,
        panoptic=True,
        instance=True,
        object_mask_threshold=0.5,
        overlap_threshold=0.5,
        topk=3,
    )
    classes = torch.tensor([[[0.4, 0.3, 0.3], [0.2, 0.1, 0.7]]])
    masks = torch.full((1, 2, 4, 5), -5.0)
    ids, labels, scores = graph._panoptic(classes, masks.sigmoid())
    assert not ids.any()
    assert labels.tolist() == [[-1, -1]]
    assert scores.tolist() == [[0, 0]]
    _, boxes, scores, labels = graph._instances(classes, masks, masks.sigmoid())
    assert boxes.tolist() == [[[0.0] * 4] * 3]
    assert scores.tolist() == [[0, 0, 0]]
    assert labels.tolist() == [[0, 0, -1]]


def test_the_same_results_from_a_predictor(exported: tuple[Path, Comparison], model: Any, tmp_path: Path) -> None:
    cfg = small_cfg(**CHANGES)
    cfg.MODEL.CATEGORIES = CATEGORIES
    torch.save({"model": model.state_dict(), **describe(cfg)}, tmp_path / "model.pth")
    pictures = [picture.permute(1, 2, 0).numpy() for picture in probe_images((3, 144, 96), seed=2)]
    for task in ("panoptic", "instance", "semantic"):
        ours, theirs = (Predictor(source, task=task) for source in (tmp_path / "model.pth", exported[0]))
        pairs = zip(ours.predict(pictures, batch_size=2), theirs.predict(pictures, batch_size=2), strict=True)
        for expected, found in pairs:
            assert set(found.output) == set(expected.output)
            if task == "panoptic":
                assert (found.output["panoptic_seg"][0] == expected.output["panoptic_seg"][0]).all()
                assert [s["category_id"] for s in found.output["panoptic_seg"][1]] == [
                    s["category_id"] for s in expected.output["panoptic_seg"][1]
                ]
            elif task == "semantic":
                assert (found.output["sem_seg"] == expected.output["sem_seg"]).all()
        assert theirs.metadata.stuff_classes == ours.metadata.stuff_classes
        assert theirs.score_threshold == THRESHOLDS, "the least score of each class rides along"
    with pytest.raises(ExportError, match="already: export its checkpoint"):
        theirs.export(tmp_path / "again.onnx")


def test_a_predictor_exports(tmp_path: Path) -> None:
    need("onnx")
    cfg = small_cfg(**CHANGES)
    cfg.MODEL.CATEGORIES = CATEGORIES
    torch.save({"model": small_model(**CHANGES).state_dict(), **describe(cfg)}, tmp_path / "model.pth")
    comparison = Predictor(tmp_path / "model.pth", task="semantic").export(tmp_path / "model.onnx", size=(64, 64))
    assert comparison.largest < 1e-5
    assert Predictor(tmp_path / "model.onnx").cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON


def test_the_plugin_of_tensorrt(tmp_path: Path) -> None:
    need("tensorrt-onnx")
    onnx = pytest.importorskip("onnx")
    cfg = small_cfg(**CHANGES)
    comparison = export_model(small_model(**CHANGES), cfg, tmp_path / "model.onnx", format="tensorrt-onnx")
    assert not comparison.differences
    graph = onnx.load(tmp_path / "model.onnx").graph
    (node,) = [node for node in graph.node if node.op_type == PLUGIN]  # the encoder has one layer
    assert {a.name: a.s for a in node.attribute} == {"plugin_version": b"2", "plugin_namespace": b""}
    assert len(node.input) == 5
    assert len(node.output) == 1
    cut = onnx.load(tmp_path / "model.onnx")
    del cut.graph.output[:]
    cut.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in node.input)
    needed = onnx.utils.Extractor(cut).extract_model(["images"], list(node.input))
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(needed.SerializeToString(), providers=["CPUExecutionProvider"])
    value, shapes, starts, locations, weights = session.run(None, {"images": probe_images((2, 64, 96)).numpy()})
    assert shapes.tolist() == [[2, 3], [4, 6], [8, 12]]
    assert starts.tolist() == [0, 6, 30]
    assert shapes.dtype == starts.dtype == np.int32
    heads, points = cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS, 4
    assert value.shape == (2, 126, heads, 32 // heads)
    assert locations.shape == (2, 126, heads, 3, points, 2)
    assert weights.shape == (2, 126, heads, 3, points)
    np.testing.assert_allclose(weights.sum(axis=(3, 4)), 1, rtol=1e-5)
    # The first position of the coarsest map, 2 x 3; at first all points of a head lie along a ray from it.
    centre = locations[0, 0, :, 0, :, :].mean(axis=(0, 1))
    np.testing.assert_allclose(centre, [1 / 6, 1 / 4], atol=0.05)


@pytest.mark.parametrize(
    ("format", "name", "text"),
    [
        ("onnx", "model.pt2", r"must end in \.onnx"),
        ("openvino", "model.onnx", r"must end in \.xml"),
        ("tflite", "model.tflite", "is none of onnx, pt2, openvino, tensorrt-onnx"),
    ],
)
def test_names_and_formats_are_checked(format: str, name: str, text: str, tmp_path: Path, model: Any) -> None:
    with pytest.raises(ExportError, match=text):
        export_model(model, small_cfg(**CHANGES), tmp_path / name, format=format)


def test_any_multiple_of_the_divisor_in_pt2(tmp_path: Path) -> None:
    changes = {**CHANGES, "MODEL__MASK_FORMER__DEC_LAYERS": 1}
    path = tmp_path / "model.pt2"
    comparison = export_model(small_model(**changes), small_cfg(**changes), path, format="pt2")
    assert list(comparison.differences) == [(2, 256, 160), (1, 128, 320)]
    assert comparison.largest < 1e-5


def test_swin_needs_a_size_in_pt2(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not come to an end"):
        export_model(small_model(**SWIN), small_cfg(**SWIN), tmp_path / "model.pt2", format="pt2")


def test_what_is_no_exported_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_exported(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match=r"these end in \.onnx, \.pt2, \.xml"):
        open_exported(tmp_path / "model.bin")
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    with pytest.raises(ExportError, match="was not written by `mask2former export`"):
        open_exported(tmp_path / "foreign.pt2")
