"""Averages over views: identity, mirror symmetry, matching of queries, memory, and the keys TEST.AUG."""

import weakref
from collections.abc import Iterator
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
from mask2former.engine.test_time_augmentation import (
    PanopticSegmentorWithTTA,
    SemanticSegmentorWithTTA,
    build_model_with_tta,
    match_queries,
)
from mask2former.engine.trainer import Trainer
from mask2former.modeling.mask_rows import Masks, OutputMasks
from tests.helpers.models import example, small_cfg, small_model

PANOPTIC = {"MODEL__MASK_FORMER__TEST__OBJECT_MASK_THRESHOLD": 0.0, "MODEL__MASK_FORMER__TEST__OVERLAP_THRESHOLD": 0.0}
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
    augmented = build_model_with_tta(aug_cfg(**SEMANTIC), model)
    assert isinstance(augmented, SemanticSegmentorWithTTA)
    inputs = image_input(**size)
    with torch.no_grad():
        expected = model([inputs])[0]
    output = augmented([inputs])[0]
    assert output.keys() == expected.keys()
    assert torch.equal(output["sem_seg"], expected["sem_seg"])


@pytest.mark.parametrize("size", [{}, {"height": 50, "width": 61}], ids=["own size", "another size"])
def test_one_view_equals_the_plain_panoptic_model(size: dict[str, int]) -> None:
    model = small_model(**PANOPTIC).eval()
    augmented = build_model_with_tta(aug_cfg(**PANOPTIC), model)
    assert isinstance(augmented, PanopticSegmentorWithTTA)
    inputs = image_input(**size)
    with torch.no_grad():
        expected = model([inputs])[0]
    output = augmented([inputs])[0]
    assert output.keys() == expected.keys() == {"sem_seg", "panoptic_seg", "instances"}
    assert torch.equal(output["sem_seg"], expected["sem_seg"])
    assert (output["panoptic_seg"][0] == expected["panoptic_seg"][0]).float().mean() > 0.999
    assert [s["category_id"] for s in output["panoptic_seg"][1]] == [
        s["category_id"] for s in expected["panoptic_seg"][1]
    ]
    assert len(expected["panoptic_seg"][1]) > 1
    torch.testing.assert_close(output["instances"].scores, expected["instances"].scores, rtol=1e-4, atol=1e-5)


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


def quadrants() -> Tensor:
    masks = torch.zeros(4, 8, 8)
    for i, (y, x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        masks[i, y : y + 4, x : x + 4] = 1
    return masks


def test_queries_are_matched_by_mask_and_class() -> None:
    masks = quadrants()[[0, 1, 2, 2]].bool().flatten(1)  # the last repeats a mask as "no object"
    classes = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.9, 0.1], [0.8, 0.1, 0.1], [0.0, 0.1, 0.9]])
    order = [3, 2, 0, 1]
    pairs = match_queries((classes, masks), (classes[order], masks[order]))
    assert sorted((own, order[other]) for own, other in pairs) == [(i, i) for i in range(4)]


def test_what_a_view_does_not_see_is_not_matched() -> None:
    masks, classes = quadrants().bool().flatten(1), torch.full((4, 3), 1 / 3)
    other = masks.clone()
    other[3] = masks[0] | masks[1] | masks[2]  # overlaps all, none well enough
    assert {own for own, _ in match_queries((classes, masks), (classes, other))} == {0, 1, 2}
    assert match_queries((classes, masks), (classes, torch.zeros_like(masks))) == []
    assert len(match_queries((classes, masks), (classes[:2], masks[:2]))) == 2


class Queries(nn.Module):
    """Predicts the quadrants, in another order and with other certainty for each view."""

    semantic_on = compact_outputs = False
    max_inference_bytes = 1
    orders = ([0, 1, 2, 3], [2, 0, 1, 3])
    probabilities = ((0.9, 0.6), (0.7, 0.8))  # of the class, and inside the mask

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def predict_masks(self, batch: list[dict[str, Any]]) -> Iterator[tuple[Tensor, OutputMasks]]:
        view = self.calls
        self.calls += 1
        certainty, inside = self.probabilities[view]
        masks = torch.where(quadrants()[self.orders[view]] > 0, inside, 0.1)
        if view == 1:
            masks = masks.flip(2)  # the second view is mirrored
            masks[3] = 0.1  # and does not see the last query's quadrant
        rest = (1 - certainty) / 4
        classes = torch.full((4, 5), rest).scatter(1, torch.tensor(self.orders[view])[:, None], certainty)
        yield classes.log(), OutputMasks(masks.logit())

    def segment(self, class_logits: Tensor, masks: Masks, semantic_on: bool) -> dict[str, Any]:
        assert not semantic_on
        return {"classes": class_logits.softmax(dim=-1), "masks": masks.rows(slice(0, 8)).sigmoid()}


def test_matched_queries_are_averaged() -> None:
    output = PanopticSegmentorWithTTA(aug_cfg(flip=True), Queries())([image_input()])[0]
    inside, certainty = [0.7, 0.7, 0.7, 0.6], [0.8, 0.8, 0.8, 0.9]
    for query in range(4):
        assert output["classes"][query, query].item() == pytest.approx(certainty[query], abs=1e-5)
        expected = torch.where(quadrants()[query] > 0, inside[query], 0.1)
        torch.testing.assert_close(output["masks"][query], expected, rtol=0, atol=1e-5)


def test_panoptic_views_run_through_a_real_model() -> None:
    cfg = aug_cfg(sizes=(64, 96), flip=True, **PANOPTIC)
    output = PanopticSegmentorWithTTA(cfg, small_model(**PANOPTIC).eval())([image_input(height=50, width=61)])[0]
    assert output["sem_seg"].shape == (5, 50, 61)
    assert output["panoptic_seg"][0].shape == (50, 61)
    assert torch.isfinite(output["instances"].scores).all()


def test_compact_outputs_of_views() -> None:
    inputs = image_input(height=50, width=61)
    compact = {"MODEL__MASK_FORMER__TEST__COMPACT_OUTPUTS": True}
    outputs = []
    for changes in ({}, compact):
        model = small_model(**PANOPTIC, **changes).eval()
        outputs.append(PanopticSegmentorWithTTA(aug_cfg(sizes=(64, 96), flip=True, **PANOPTIC), model)([inputs])[0])
    scores, labels = (output["sem_seg"] for output in outputs)
    assert torch.equal(labels.long(), scores.argmax(dim=0))
    assert torch.equal(outputs[1]["instances"].pred_masks.tensor, outputs[0]["instances"].pred_masks)
    model = small_model(**SEMANTIC, **compact).eval()
    with pytest.raises(ValueError, match=r"averages scores.*\(50, 61\).*COMPACT_OUTPUTS False"):
        SemanticSegmentorWithTTA(aug_cfg(**SEMANTIC), model)([inputs])


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Recorder lacks predict_masks.*TEST\.AUG\.ENABLED False"):
        PanopticSegmentorWithTTA(aug_cfg(), Recorder())


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
