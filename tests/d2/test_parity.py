"""The bundled objects against Detectron2's own, wherever it is installed."""

import importlib
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.d2.bundled import augmentation, boxes, config, defaults, image_list, layers, masks, modeling
from mask2former.d2.bundled import transforms as bundled_transforms

pytest.importorskip("detectron2._C", reason="Detectron2 is not installed")

from detectron2 import config as official_config
from detectron2 import layers as official_layers
from detectron2 import structures as official_structures
from detectron2.data import transforms as official_transforms
from detectron2.modeling.postprocessing import sem_seg_postprocess


def _leaves(tree: dict[str, Any], parents: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        full_key = f"{parents}{key}"
        leaves |= _leaves(value, f"{full_key}.") if isinstance(value, dict) else {full_key: value}
    return leaves


def test_defaults_are_detectron2s() -> None:
    ours, theirs = _leaves(defaults.DEFAULTS), _leaves(official_config.get_cfg())
    assert ours.keys() <= theirs.keys()
    ours.pop("MODEL.DEVICE")
    assert ours == {key: theirs[key] for key in ours}
    assert {k: type(v) for k, v in ours.items()} == {k: type(theirs[k]) for k in ours}


AUGMENTATIONS = [
    ("RandomFlip", {"prob": 0.5}),
    ("RandomFlip", {"prob": 0.5, "horizontal": False, "vertical": True}),
    ("ResizeShortestEdge", {"short_edge_length": (20, 60), "max_size": 70}),
    ("ResizeShortestEdge", {"short_edge_length": (20, 33, 60), "max_size": 70, "sample_style": "choice"}),
    ("ResizeScale", {"min_scale": 0.1, "max_scale": 2.0, "target_height": 64, "target_width": 64}),
    ("FixedSizeCrop", {"crop_size": (40, 40)}),
    ("FixedSizeCrop", {"crop_size": (20, 80), "pad": False}),
    ("RandomCrop", {"crop_type": "relative", "crop_size": (0.31, 0.7)}),
    ("RandomCrop", {"crop_type": "relative_range", "crop_size": (0.31, 0.7)}),
    ("RandomCrop", {"crop_type": "absolute", "crop_size": (30, 99)}),
    ("RandomCrop", {"crop_type": "absolute_range", "crop_size": (10, 45)}),
]


@pytest.mark.parametrize(("name", "arguments"), AUGMENTATIONS)
def test_augmentations_draw_and_do_the_same(name: str, arguments: dict[str, Any]) -> None:
    def run(module: ModuleType, aug_input_type: Any, seed: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        height, width = rng.integers(30, 70, 2)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = rng.integers(0, 9, (height, width)).astype(np.uint8 if seed % 2 else np.float64)
        aug_input = aug_input_type(image, sem_seg=labels, boxes=np.array([[1.0, 2.0, 20.0, 25.0]]))
        np.random.seed(seed)
        getattr(module, name)(**arguments)(aug_input)
        return aug_input.image, aug_input.sem_seg, aug_input.boxes, np.random.rand()

    for seed in range(40):
        ours = run(bundled_transforms, augmentation.AugInput, seed)
        theirs = run(official_transforms, official_transforms.AugInput, seed)
        for mine, other in zip(ours[:2], theirs[:2], strict=True):
            assert mine.dtype == other.dtype
            assert np.array_equal(mine, other)
        assert np.allclose(ours[2], theirs[2], rtol=0, atol=1e-12)
        assert ours[3] == theirs[3], "as many random numbers were drawn"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(13, 17), (13, 17, 1), (13, 17, 3)])
def test_resizing(dtype: type, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    for size in ((7, 40), (26, 9), (13, 17)):
        ours = bundled_transforms.ResizeTransform(13, 17, *size)
        theirs = official_transforms.ResizeTransform(13, 17, *size)
        assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))
        assert np.array_equal(ours.apply_segmentation(image), theirs.apply_segmentation(image))


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN", "LN"])
def test_norms(norm: str) -> None:
    torch.manual_seed(0)
    ours, theirs = layers.get_norm(norm, 64), official_layers.get_norm(norm, 64)
    state = {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    ours.load_state_dict(state, strict=False)
    for mode in (True, False):
        x, y = (torch.linspace(-3, 3, 64 * 40).view(2, 64, 4, 5).requires_grad_() for _ in range(2))
        out, expected = ours.train(mode)(x), theirs.train(mode)(y)
        torch.testing.assert_close(out, expected)
        out.pow(3).sum().backward()
        expected.pow(3).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "padding",
    [
        (0, 1.5, None),
        (32, 0.0, None),
        (8, 1.5, {"square_size": 48}),
        (8, 0.0, {"size_divisibility": 5}),
    ],
)
def test_image_lists(count: int, padding: tuple[Any, ...]) -> None:
    images = [torch.rand(3, 20, 31), torch.rand(3, 25, 17)][:count]
    ours = image_list.ImageList.from_tensors(images, *padding)
    theirs = official_structures.ImageList.from_tensors(images, *padding)
    assert torch.equal(ours.tensor, theirs.tensor)
    assert ours.image_sizes == theirs.image_sizes


def test_boxes() -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 20
    ours, theirs = boxes.Boxes(rows.clone()), official_structures.Boxes(rows.clone())
    for method, arguments in (
        ("area", ()),
        ("nonempty", (2.0,)),
        ("clip", ((10, 15),)),
    ):
        mine, other = getattr(ours, method)(*arguments), getattr(theirs, method)(*arguments)
        assert mine is other is None or torch.equal(mine, other)
        assert torch.equal(ours.tensor, theirs.tensor)


def test_masks() -> None:
    rng = np.random.default_rng(0)
    polygons = [[rng.uniform(0, 30, 2 * n) for n in rng.integers(3, 8, parts)] for parts in (1, 3, 0, 2)]
    ours = masks.BitMasks.from_polygon_masks(polygons, 30, 32)
    theirs = official_structures.BitMasks.from_polygon_masks(polygons, 30, 32)
    assert torch.equal(ours.tensor, theirs.tensor)
    assert torch.equal(ours.get_bounding_boxes().tensor, theirs.get_bounding_boxes().tensor)
    assert torch.equal(ours.nonempty(), theirs.nonempty())
    mine, other = masks.PolygonMasks(polygons), official_structures.PolygonMasks(polygons)
    assert torch.equal(mine.get_bounding_boxes().tensor, other.get_bounding_boxes().tensor)


def test_postprocessing() -> None:
    result = torch.rand(3, 20, 24)
    ours = modeling.sem_seg_postprocess(result, (17, 21), 33, 50)
    assert torch.equal(ours, sem_seg_postprocess(result, (17, 21), 33, 50))


def test_merging_agrees_on_published_style_files(tmp_path: Path) -> None:
    base = "SOLVER: {STEPS: [1, 2], BASE_LR: 1e-4}\nINPUT: {CROP: {ENABLED: true}}\n"
    sizes = '!!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]'
    text = f"_BASE_: base.yaml\nINPUT: {{MIN_SIZE_TRAIN: {sizes}}}\nTEST: {{AUG: {{MAX_SIZE: 3}}}}\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "top.yaml").write_text(text + "VERSION: 2\n")
    ours, theirs = config.get_cfg(), official_config.get_cfg()
    for cfg in (ours, theirs):
        cfg.merge_from_file(os.fspath(tmp_path / "top.yaml"))
    mine, other = _leaves(ours), _leaves(theirs)
    mine["MODEL.DEVICE"] = other["MODEL.DEVICE"]
    assert mine == {key: other[key] for key in mine}
    assert ours.INPUT.MIN_SIZE_TRAIN[0] == 320


OFFICIAL_MODULES = {
    "config": "detectron2.config",
    "structures": "detectron2.structures",
    "data": "detectron2.data.catalog",
    "transforms": "detectron2.data.transforms",
    "evaluation": "detectron2.evaluation",
    "events": "detectron2.utils.events",
    "comm": "detectron2.utils.comm",
}


@pytest.mark.parametrize("module", OFFICIAL_MODULES)
def test_nothing_public_of_ours_is_missing_in_detectron2(module: str) -> None:
    """Code written with the bundled source would break when the source changes."""
    facade = importlib.import_module(f"mask2former.d2.{module}")
    official = importlib.import_module(OFFICIAL_MODULES[module])
    bundled = [
        importlib.import_module(f"mask2former.d2.bundled.{path.stem}")
        for path in Path(inspect.getfile(boxes)).parent.glob("*.py")
        if path.stem != "__init__"
    ]
    for name in facade.__all__:
        ours = next(getattr(part, name) for part in bundled if hasattr(part, name))
        theirs = getattr(official, name)
        assert {member for member in dir(ours) if member[0] != "_"} <= set(dir(theirs))
        if inspect.isfunction(ours):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
