"""Averages over views: identity, mirror symmetry, memory, and the keys TEST.AUG."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mask2former import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.engine.test_time_augmentation import SemanticSegmentorWithTTA
from mask2former.engine.trainer import Trainer
from tests.helpers.models import example, small_cfg, small_model

SEMANTIC = {"MODEL__MASK_FORMER__TEST__INSTANCE_ON": False, "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False}


def aug_cfg(*, sizes: tuple[int, ...] = (64,), flip: bool = False, max_size: int = 4000, **changes: Any) -> CfgNode:
    return small_cfg(
        **{
            "TEST__AUG__ENABLED": True,
            "TEST__AUG__MIN_SIZES": sizes,
            "TEST__AUG__MAX_SIZE": max_size,
            "TEST__AUG__FLIP": flip,
            "INPUT__MIN_SIZE_TEST": 64,
            **changes,
        }
    )


def image_input(**size: int) -> dict[str, Any]:
    return {"image": example(64, 80)["image"], **size}


class Recorder(nn.Module):
    """A semantic model that gives the image's own values, and notes what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.given: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (inputs,) = batch
        self.alive.append(sum(reference() is not None for reference in self.given))
        self.shapes.append(tuple(inputs["image"].shape[1:]))
        size = (inputs["height"], inputs["width"])
        scores = nn.functional.interpolate(inputs["image"][None].float(), size=size)[0]
        self.given.append(weakref.ref(scores))
        return [{"sem_seg": scores}]


@pytest.mark.parametrize("size", [{}, {"height": 50, "width": 61}], ids=["own size", "another size"])
def test_one_view_equals_the_plain_semantic_model(size: dict[str, int]) -> None:
    model = small_model(**SEMANTIC).eval()
    augmented = SemanticSegmentorWithTTA(aug_cfg(**SEMANTIC), model)
    inputs = image_input(**size)
    with torch.no_grad():
        expected = model([inputs])[0]
    output = augmented([inputs])[0]
    assert output.keys() == expected.keys()
    assert torch.equal(output["sem_seg"], expected["sem_seg"])


def test_semantic_scores_of_a_panoptic_model_are_averaged() -> None:
    model = small_model().eval()
    with torch.no_grad():
        expected = model([image_input()])[0]
    output = SemanticSegmentorWithTTA(aug_cfg(), model)([image_input()])[0]
    assert expected.keys() == {"sem_seg", "panoptic_seg", "instances"}
    assert output.keys() == {"sem_seg"}
    assert torch.equal(output["sem_seg"], expected["sem_seg"])


def test_a_mirrored_image_gives_mirrored_scores() -> None:
    model = small_model(**SEMANTIC).eval()
    augmented = SemanticSegmentorWithTTA(aug_cfg(sizes=(64, 96), flip=True, **SEMANTIC), model)
    inputs = image_input(height=50, width=61)
    mirrored = {**inputs, "image": inputs["image"].flip(2)}
    output, other = (augmented([given])[0]["sem_seg"] for given in (inputs, mirrored))
    torch.testing.assert_close(output, other.flip(2), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(output, model([inputs])[0]["sem_seg"], atol=1e-4)


def test_scores_are_the_mean_over_views() -> None:
    model = small_model(**SEMANTIC).eval()
    inputs = image_input(height=64, width=80)
    output = SemanticSegmentorWithTTA(aug_cfg(flip=True, **SEMANTIC), model)([inputs])[0]["sem_seg"]
    with torch.no_grad():
        plain = model([inputs])[0]["sem_seg"]
        mirrored = model([{**inputs, "image": inputs["image"].flip(2)}])[0]["sem_seg"].flip(2)
    torch.testing.assert_close(output, (plain + mirrored) / 2)


def test_keys_decide_on_the_views() -> None:
    def shapes(**keys: Any) -> list[tuple[int, ...]]:
        model = Recorder()
        SemanticSegmentorWithTTA(aug_cfg(**keys), model)([image_input()])
        return model.shapes

    assert shapes(sizes=(32, 64)) == [(64, 80), (32, 40)]  # that of INPUT.MIN_SIZE_TEST comes first
    assert shapes(sizes=(32, 64), flip=True) == [(64, 80), (64, 80), (32, 40), (32, 40)]
    assert shapes(sizes=(128,), max_size=100) == [(80, 100)]
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES is empty"):
        shapes(sizes=())


def test_one_view_at_a_time_is_held() -> None:
    model = Recorder()
    SemanticSegmentorWithTTA(aug_cfg(sizes=(32, 48, 64, 80), flip=True), model)([image_input(), image_input()])
    assert len(model.alive) == 16
    assert max(model.alive) <= 1


def test_image_is_read_when_it_is_absent(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "image.png")
    cfg = aug_cfg(sizes=(40,), INPUT__FORMAT="RGB")
    output = SemanticSegmentorWithTTA(cfg, Recorder())([{"file_name": str(tmp_path / "image.png")}])[0]["sem_seg"]
    assert np.array_equal(output.permute(1, 2, 0).numpy(), array)


def test_mode_follows_the_model() -> None:
    """A wrapper in training mode would put the model into it after an evaluation."""
    assert not SemanticSegmentorWithTTA(aug_cfg(), Recorder().eval()).training
    assert SemanticSegmentorWithTTA(aug_cfg(), Recorder()).training


@pytest.mark.parametrize(
    "key",
    [{"COMPACT_OUTPUTS": True}, {"SEMANTIC_ON": False, "INSTANCE_ON": True}],
    ids=["labels", "no semantic output"],
)
def test_models_without_semantic_scores_are_refused(key: dict[str, bool]) -> None:
    changes = {**SEMANTIC, **{f"MODEL__MASK_FORMER__TEST__{name}": value for name, value in key.items()}}
    with pytest.raises(ValueError, match=r"averages semantic scores.*SEMANTIC_ON True and COMPACT_OUTPUTS False"):
        SemanticSegmentorWithTTA(aug_cfg(), small_model(**changes).eval())([image_input()])


def test_results_get_an_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Count(DatasetEvaluator):
        def reset(self) -> None:
            self.images = 0

        def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
            self.images += len(outputs)

        def evaluate(self) -> dict[str, dict[str, float]]:
            return {"sem_seg": {"images": float(self.images)}}

    folders = []

    class CountingTrainer(Trainer):
        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[list[dict[str, Any]]]:
            return [[image_input()], [image_input()]]

        @classmethod
        def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
            folders.append(output_folder)
            return Count()

    cfg = aug_cfg(DATASETS__TEST=("some_set",), OUTPUT_DIR=str(tmp_path), **SEMANTIC)
    model = Recorder()
    assert CountingTrainer.test_with_TTA(cfg, model) == {"sem_seg_TTA": {"images": 2.0}}
    assert folders == [str(tmp_path / "inference_TTA")]
    assert model.training


def test_defaults_are_detectron2s() -> None:
    aug = get_cfg().TEST.AUG
    assert (aug.ENABLED, aug.MAX_SIZE, aug.FLIP) == (False, 4000, True)
    assert list(aug.MIN_SIZES) == list(range(400, 1300, 100))
