"""A predictor for whatever a user names, batches of equal sizes, and options that change what is found."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mask2former
from mask2former import Predictor
from mask2former.checkpoint import CheckpointError, published
from mask2former.checkpoint.description import describe
from mask2former.d2.config import CfgNode
from mask2former.d2.modeling import build_model
from mask2former.data.datasets.metadata import metadata_of
from mask2former.modeling.run_lengths import RunLengthMasks
from mask2former.predict.sources import EXPORTED, Loaded, source_config
from tests.helpers.brightness_model import BrightnessModel, brightness_config
from tests.helpers.models import small_cfg

CATEGORIES = [{"id": 7, "name": "boat", "isthing": 1}, {"id": 3, "name": "water", "isthing": 0}]
NAME = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep"


def half_bright(height: int = 40, width: int = 60, level: int = 200) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, width // 2 :] = level
    return image


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a model that finds what is bright, for all tasks; on average brighter things than at last."""
    cfg = brightness_config()
    cfg.MODEL.CATEGORIES = CATEGORIES
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    weights = {"model": {"threshold": torch.tensor(100.0)}, "ema_state": {"threshold": torch.tensor(190.0)}}
    torch.save({**weights, **describe(cfg)}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a true model with random weights."""
    torch.manual_seed(0)
    cfg = small_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=2, INPUT__MIN_SIZE_TEST=48)
    cfg.MODEL.CATEGORIES = CATEGORIES
    path = tmp_path_factory.mktemp("small") / "model.pth"
    torch.save({"model": build_model(cfg).state_dict(), **describe(cfg)}, path)
    return path


def test_a_checkpoint_and_an_image_are_two_lines(checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(half_bright()).save(tmp_path / "photo.png")
    (found,) = Predictor(checkpoint)(tmp_path / "photo.png")
    assert (found.name, found.box) == ("boat", (30, 0, 60, 40))
    assert isinstance(Predictor(str(checkpoint))(half_bright()), mask2former.Result)


def test_names_of_published_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (NAME, f"{NAME}.yaml", f"configs/{NAME}.yaml", f"zoo://{NAME}"):
        cfg = source_config(name)
        assert cfg.MODEL.WEIGHTS.removesuffix(".yaml") == f"zoo://{NAME}"
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    with pytest.raises(FileNotFoundError, match=f"neither a file nor a folder, nor a published .*{NAME}"):
        Predictor(NAME.replace("coco", "coko"))
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        Predictor("x.pth")


def test_a_published_model_is_loaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, from its address, with the classes of its data set."""
    cfg = brightness_config()
    monkeypatch.setattr("mask2former.checkpoint.model_config.get_config", lambda name: cfg.clone())
    monkeypatch.setattr("mask2former.checkpoint.reader.local_path", lambda address: checkpoint)
    assert NAME in published.published_models()
    predictor = Predictor(NAME)
    assert predictor.cfg.MODEL.WEIGHTS == "zoo://" + NAME
    assert float(predictor.model.threshold) == 100


@pytest.mark.parametrize(
    ("task", "key"),
    [("auto", "panoptic"), ("panoptic", "panoptic"), ("instance", "instance"), ("semantic", "semantic")],
)
def test_task(checkpoint: Path, task: str, key: str) -> None:
    result = Predictor(checkpoint, task=task)(half_bright())
    assert result.task == key
    assert len(result.keys()) == 1


def test_options_change_what_is_found(checkpoint: Path) -> None:
    image = half_bright()
    found = Predictor(checkpoint, task="instance")
    assert found(image).scores == pytest.approx([0.9, 0.7, 0.5])
    assert Predictor(checkpoint, task="instance", threshold=0.6)(image).scores == pytest.approx([0.9, 0.7])
    assert len(Predictor(checkpoint, task="instance", threshold=0.0)(image)) == 5
    assert Predictor(checkpoint, task="instance", threshold=0.6, score_threshold=0.8)(image).scores == [
        pytest.approx(0.9)
    ]
    assert len(Predictor(checkpoint, task="instance", max_instances=2, threshold=0)(image)) == 2
    assert len(Predictor(checkpoint, ema=True)(half_bright(level=150))) == 0
    assert len(Predictor(checkpoint, ema=False)(half_bright(level=150))) == 1
    assert Predictor(checkpoint, device="meta").cfg.MODEL.DEVICE == "meta"
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 250
    for input_format, channel in ((None, 2), ("RGB", 2), ("BGR", 0)):  # of the model, BGR
        predictor = Predictor(checkpoint, input_format=input_format)
        predictor(red)
        assert int(predictor.model.received[0]["image"][channel].max()) == 250
    with pytest.raises(ValueError, match="task must be auto, panoptic, instance, semantic, not 'boxes'"):
        Predictor(checkpoint, task="boxes")
    with pytest.raises(ValueError, match=r"threshold must lie in 0\.\.1, not 50"):
        Predictor(checkpoint, threshold=50)


def test_threshold_of_panoptic_segments(small: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    some = Predictor(small, task="panoptic", threshold=0.0)(image)
    assert len(some)
    assert len(Predictor(small, task="panoptic", threshold=1.0)(image)) == 0


def test_a_named_source_gives_compact_outputs(small: Path) -> None:
    assert isinstance(Predictor(small, task="instance")(half_bright())["instances"].pred_masks, RunLengthMasks)
    assert Predictor(small, task="semantic")(half_bright())["sem_seg"].shape == (40, 60)
    assert Predictor.from_checkpoint(small)(half_bright())["sem_seg"].shape == (2, 40, 60)


def test_batches_keep_the_order_and_equal_sizes_run_together(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint)
    sizes: list[list[tuple[int, ...]]] = []
    model = predictor.model

    def watch(batch: Any) -> Any:
        sizes.append([tuple(inputs["image"].shape[1:]) for inputs in batch])
        return model(batch)

    predictor.model = watch
    images = [half_bright(*size) for size in [(40, 60), (60, 40), (40, 60), (80, 120), (60, 40), (40, 60), (50, 50)]]
    results = predictor.predict(images, batch_size=3)
    assert [result.size for result in results] == [image.shape[:2] for image in images]
    assert [len(batch) for batch in sizes] == [3, 2, 1, 1]
    assert all(len(set(batch)) == 1 for batch in sizes)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predictor.stream(images, batch_size=0)


def test_a_stream_holds_few_images(checkpoint: Path) -> None:
    asked = []

    def frames() -> Iterator[np.ndarray]:
        yield half_bright(40, 60)  # waits for another of its size
        for number in range(10_000):
            asked.append(number)
            yield half_bright(50, 40 + number)

    stream = Predictor(checkpoint).stream(frames(), batch_size=2)
    assert next(stream).size == (40, 60)
    assert len(asked) == 7  # four batches of two


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_batch_finds_what_single_images_do(small: Path, task: str) -> None:
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 255, size, dtype=np.uint8) for size in [(48, 64, 3), (96, 128, 3), (48, 64, 3)]]
    predictor = Predictor(small, task=task, threshold=0.0)
    batched = predictor.predict(images, batch_size=3)
    for image, found in zip(images, batched, strict=True):
        alone = predictor(image)
        assert len(alone)
        assert alone.names == found.names
        np.testing.assert_allclose(alone.scores, found.scores, rtol=1e-4, equal_nan=True)
        differing = (alone.masks.dense() != found.masks.dense()).mean()
        assert differing < 1e-3  # logits that round to another side of 0


def test_an_exported_file_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_config(path: Path) -> CfgNode:
        cfg = brightness_config()
        cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = path.name == "a.exported"
        return cfg

    def load(cfg: CfgNode) -> Loaded:
        assert str(tmp_path / "a.exported") == cfg.MODEL.WEIGHTS
        model = BrightnessModel(cfg)
        model.threshold.data.fill_(100)
        return Loaded(model, metadata_of(CATEGORIES), [0.6, 0.1])

    module = types.ModuleType("exported_here")
    module.read_config, module.load = read_config, load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "exported_here", module)
    monkeypatch.setitem(EXPORTED, ".exported", "exported_here")
    (tmp_path / "a.exported").touch()
    result = Predictor(tmp_path / "a.exported")(half_bright())
    assert (result.task, result.names) == ("instance", ["boat", "boat"])
