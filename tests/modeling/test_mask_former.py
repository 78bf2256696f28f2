from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mask2former.d2.data import MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.d2.structures import BitMasks, Instances, PolygonMasks
from mask2former.modeling.build import build_criterion
from mask2former.modeling.mask_rows import OutputMasks
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.matcher import Target
from mask2former.modeling.run_lengths import RunLengthMasks
from tests.helpers import golden
from tests.helpers.models import DATASET, example, published_cfg, small_cfg, small_model, stripes, total

PANOPTIC = "coco/panoptic-segmentation"
R101_SEMANTIC = {
    "MODEL__RESNETS__NORM": "SyncBN",
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 150,
    "MODEL__MASK_FORMER__TEST__INSTANCE_ON": False,
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
}
R50_INSTANCE = {
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 80,
    "MODEL__MASK_FORMER__TEST__SEMANTIC_ON": False,
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
}
GOLDEN = {
    "coco_panoptic_R50": (f"{PANOPTIC}/maskformer2_R50_bs16_50ep", {}, (96, 128)),
    "coco_instance_R50": (f"{PANOPTIC}/maskformer2_R50_bs16_50ep", R50_INSTANCE, (90, 70)),
    "ade20k_semantic_R101": (f"{PANOPTIC}/maskformer2_R101_bs16_50ep", R101_SEMANTIC, (64, 96)),
    "coco_panoptic_swin_tiny": (f"{PANOPTIC}/swin/maskformer2_swin_tiny_bs16_50ep", {}, (96, 128)),
}


def published_model(config: str, **changes: Any) -> nn.Module:
    MetadataCatalog.get(DATASET).thing_dataset_id_to_contiguous_id = {11: 0, 12: 1, 13: 2}
    model = build_model(published_cfg(config, DATASETS__TRAIN=(DATASET,), **changes))
    golden.fill_by_name(model)
    return model


@cache
def golden_forward(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the head's outputs and the model's result."""
    config, changes, size = GOLDEN[name]
    model = published_model(config, **changes).eval()
    outputs: dict[str, Any] = {}
    model.sem_seg_head.predictor.train()  # gives the auxiliary outputs; nothing else differs, without dropout
    model.sem_seg_head.register_forward_hook(lambda _module, _inputs, output: outputs.update(output))
    with torch.no_grad():
        result = model([{"image": golden.golden_image(*size)}])[0]
    return outputs, result


def assert_relative(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("name", GOLDEN)
def test_predictions_equal_those_of_the_published_model(name: str) -> None:
    figures = golden.load("forward")
    outputs, _ = golden_forward(name)
    assert len(outputs["aux_outputs"]) == 9
    assert_relative(outputs["pred_logits"][0, ::4], figures[f"{name}.logits"])
    assert_relative(outputs["pred_masks"][0, :40:10], figures[f"{name}.masks"])
    assert_relative(outputs["aux_outputs"][0]["pred_logits"][0, :30:10], figures[f"{name}.first_logits"])


@pytest.mark.parametrize("name", GOLDEN)
def test_results_equal_those_of_the_published_model(name: str) -> None:
    figures = golden.load("forward")
    _, result = golden_forward(name)
    if "sem_seg" in result:
        assert torch.equal(result["sem_seg"].argmax(dim=0).byte(), figures[f"{name}.semantic"])
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        assert segments == []  # the published model's, too: its random weights are sure of nothing
        assert not ids.any()
    if name == "coco_instance_R50":
        instances = result["instances"]
        torch.testing.assert_close(instances.scores, figures[f"{name}.scores"], rtol=1e-4, atol=1e-6)
        assert torch.equal(instances.pred_classes.byte(), figures[f"{name}.classes"])
        areas = instances.pred_masks.sum(dim=(1, 2))
        # Of 6300 pixels, those whose logit is zero to rounding, which depends on the number of threads.
        assert (areas - figures[f"{name}.areas"]).abs().max() <= 12


@pytest.mark.parametrize("name", ["coco_panoptic_R50", "coco_panoptic_swin_tiny"])
def test_training_step_agrees_with_the_published_one(name: str) -> None:
    recorded = json.loads((golden.FOLDER / "training_step.json").read_text())
    y, x = np.mgrid[0:96, 0:128]
    instances = Instances((96, 128))
    instances.gt_classes = torch.tensor([disc[3] for disc in recorded["discs"]])
    discs = [(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx, radius, _ in recorded["discs"]]
    instances.gt_masks = torch.from_numpy(np.stack(discs))
    model = published_model(
        GOLDEN[name][0],
        MODEL__MASK_FORMER__TRAIN_NUM_POINTS=60000,
        MODEL__MASK_FORMER__OVERSAMPLE_RATIO=1.0,
        MODEL__MASK_FORMER__IMPORTANCE_SAMPLE_RATIO=0.0,
        MODEL__SWIN__DROP_PATH_RATE=0.0,
    ).train()
    torch.manual_seed(0)
    losses = model([{"image": golden.golden_image(96, 128), "instances": instances}])
    total(losses).backward()
    parameters = dict(model.named_parameters())
    for figure, (mean, deviation) in recorded["figures"][name].items():
        if figure == "total":
            ours = total(losses).item()
        elif figure.startswith("grad_norm "):
            ours = parameters[figure.split()[1]].grad.norm().item()  # type: ignore[union-attr]
        else:
            ours = losses[figure].item()
        # deviations were estimated from four draws, hence the allowance beside them
        assert abs(ours - mean) <= 5 * deviation + 3e-3 * abs(mean), (figure, ours, mean, deviation)


def test_an_image_alone_and_in_a_batch_give_the_same_result() -> None:
    model = small_model().eval()
    images = [{"image": example(64, 96, seed=seed)["image"]} for seed in range(3)]
    with torch.no_grad():
        together, alone = model(images), [model([image])[0] for image in images]
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours["sem_seg"], theirs["sem_seg"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours["instances"].scores, theirs["instances"].scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours["panoptic_seg"][0], theirs["panoptic_seg"][0])


def test_images_of_different_sizes_share_a_batch() -> None:
    model = small_model()
    sizes = [(64, 40), (33, 96)]
    losses = model([example(*size, seed=i) for i, size in enumerate(sizes)])
    total(losses).backward()
    assert all(loss.isfinite() for loss in losses.values())
    model.eval()
    with torch.no_grad():
        results = model([{"image": example(*size)["image"], "height": 50, "width": 70} for size in sizes])
    assert [tuple(r["sem_seg"].shape) for r in results] == [(5, 50, 70)] * 2
    assert [tuple(r["panoptic_seg"][0].shape) for r in results] == [(50, 70)] * 2
    assert [r["instances"].image_size for r in results] == [(50, 70)] * 2


@pytest.mark.parametrize("labels", [((), ()), ((), (1, 3))])
def test_images_without_targets_train(labels: tuple[tuple[int, ...], ...]) -> None:
    model = small_model()
    total(model([example(labels=classes, seed=i) for i, classes in enumerate(labels)])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient: distributed training would wait for it"
        assert parameter.grad.isfinite().all(), name
    assert model.sem_seg_head.predictor.class_embed.weight.grad.abs().sum() > 0


def test_every_parameter_gets_a_gradient() -> None:
    model = small_model()
    total(model([example()])).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_infers_close_to_float32(dtype: torch.dtype) -> None:
    model = small_model(MODEL__MASK_FORMER__TRAIN_NUM_POINTS=1024).eval()
    with torch.no_grad():
        exact = model([{"image": example()["image"]}])[0]["sem_seg"]
        with torch.autocast("cpu", dtype=dtype):
            close = model([{"image": example()["image"]}])[0]["sem_seg"]
    assert (exact - close).abs().max() < 0.1 * exact.abs().max()
    model.train()
    torch.manual_seed(0)
    expected = total(model([example()]))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        loss = total(model([example()]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_tasks_are_given_only_when_asked_for() -> None:
    only_semantic = small_model(
        MODEL__MASK_FORMER__TEST__INSTANCE_ON=False, MODEL__MASK_FORMER__TEST__PANOPTIC_ON=False
    ).eval()
    image = {"image": example(40, 56)["image"], "height": 80, "width": 112}
    with torch.no_grad():
        assert list(only_semantic([image])[0]) == ["sem_seg"]
        assert only_semantic([image])[0]["sem_seg"].shape == (5, 80, 112)
        assert set(small_model().eval()([image])[0]) == {"sem_seg", "panoptic_seg", "instances"}


def test_things_are_those_of_the_training_set() -> None:
    stripes = torch.full((5, 16, 15), -9.0)
    for i in range(5):
        stripes[i, :, 3 * i : 3 * i + 3] = 9.0
    masks = OutputMasks(stripes, padded_size=(64, 60), image_size=(64, 60), output_size=(64, 60))
    _, segments = small_model().segment(9 * torch.eye(5, 6), masks)["panoptic_seg"]
    assert [(segment["category_id"], segment["isthing"]) for segment in segments] == [
        *((0, True), (1, True), (2, True), (3, False), (4, False))
    ]


def test_outputs_can_be_compact_and_made_in_parts() -> None:
    image = {"image": example(40, 56)["image"], "height": 80, "width": 113}
    key = "MODEL__MASK_FORMER__TEST__"
    semantic = {f"{key}INSTANCE_ON": False, f"{key}PANOPTIC_ON": False}
    for only in ({}, semantic):
        plain = small_model(**only).eval()
        compact = small_model(**only, **{f"{key}COMPACT_OUTPUTS": True, f"{key}MAX_MEMORY_MB": 1}).eval()
        assert compact.max_inference_bytes == 2**20
        assert plain.max_inference_bytes is None
        compact.max_inference_bytes = 1
        with torch.no_grad():
            expected, found = plain([image])[0], compact([image])[0]
        assert found.keys() == expected.keys()
        assert torch.equal(found["sem_seg"].long(), expected["sem_seg"].argmax(dim=0))
        if not only:
            assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
            assert torch.equal(found["instances"].pred_masks.tensor, expected["instances"].pred_masks)
            torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, rtol=1e-5, atol=0)


def test_masks_of_instances_can_be_run_lengths() -> None:
    image = {"image": example(40, 56)["image"], "height": 80, "width": 113}
    key = "MODEL__MASK_FORMER__TEST__RUN_LENGTHS"
    with torch.no_grad():
        expected, found = (small_model(**{key: on}).eval()([image])[0]["instances"] for on in (False, True))
    assert isinstance(found.pred_masks, RunLengthMasks)
    assert torch.equal(found.pred_masks.tensor, expected.pred_masks)
    assert torch.equal(found.scores, expected.scores)


def test_negative_size_divisibility_means_the_backbones_own() -> None:
    model = small_model(MODEL__MASK_FORMER__SIZE_DIVISIBILITY=-1)
    assert model.size_divisibility == model.backbone.size_divisibility


def polygons(masks: Tensor) -> PolygonMasks:
    """Rectangles as polygons."""
    corners = [mask.nonzero().aminmax(dim=0) for mask in masks]
    return PolygonMasks(
        [[np.array([x0, y0, x1 + 1, y0, x1 + 1, y1 + 1, x0, y1 + 1])] for (y0, x0), (y1, x1) in map(_ints, corners)]
    )


def _ints(corners: Any) -> list[list[float]]:
    return [corner.double().tolist() for corner in corners]


@pytest.mark.parametrize(
    "kind", [BitMasks, PackedMasks.pack, polygons, lambda masks: 255 * masks.byte(), lambda masks: masks.float()]
)
def test_masks_of_every_kind_are_the_same_targets(kind: Callable[[Tensor], Any]) -> None:
    plain, wrapped = example(), example()
    wrapped["instances"].gt_masks = kind(wrapped["instances"].gt_masks)
    wrapped["instances"].gt_classes = wrapped["instances"].gt_classes.int()
    losses = []
    for inputs in (plain, wrapped):
        torch.manual_seed(3)
        losses.append(total(small_model()([inputs])))
    torch.testing.assert_close(*losses)


class Recorder(nn.Module):
    """A criterion that keeps its targets."""

    def forward(self, outputs: dict[str, Any], targets: list[Target]) -> dict[str, Tensor]:
        self.targets = targets
        return {}


def test_targets_are_padded_like_the_images_of_their_batch() -> None:
    model = small_model()
    model.criterion = Recorder()
    inputs = [example(64, 40, labels=(0,), seed=0), example(33, 96, labels=(1, 2), seed=1)]
    model(inputs)
    for target, given in zip(model.criterion.targets, inputs, strict=True):
        masks = given["instances"].gt_masks
        assert target["masks"].image_size == (64, 96)
        assert torch.equal(target["masks"].tensor[:, : masks.shape[1], : masks.shape[2]], masks)
        assert target["masks"].tensor.sum() == masks.sum()


class Weighted(nn.Module):
    """A criterion of another project: it leaves the weights to the model, and takes masks as tensors."""

    weight_dict: ClassVar = {"loss_mask": 3.0}

    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"loss_mask": targets[0]["masks"].sum(), "cardinality_error": torch.ones(())}


def test_the_model_weights_the_losses_of_criteria_that_do_not() -> None:
    model, inputs = small_model(), example()
    model.criterion = Weighted()
    assert model([inputs]) == {"loss_mask": 3 * inputs["instances"].gt_masks.sum()}


@pytest.mark.parametrize("size", [(96, 96), (32, 64), (64, 65)])
def test_masks_that_do_not_fit_their_image_are_named(size: tuple[int, int]) -> None:
    inputs = [example(), {**example(128, 128), "file_name": "large.jpg"}]
    inputs[0]["instances"] = stripes(*size, (0, 1))
    with pytest.raises(ValueError, match=rf"example_0.jpg are \(n, H, W\) \(2, {size[0]}, {size[1]}\).* 64 x 64"):
        small_model()(inputs)
    inputs[0]["instances"] = Instances((64, 64), gt_classes=torch.tensor([0]), gt_masks=torch.full((1, 64, 64), 0.7))
    with pytest.raises(ValueError, match=r"gt_masks of example_0.jpg: masks of float are 0 or 1"):
        small_model()(inputs)
    inputs[0]["instances"] = Instances((64, 64), gt_classes=torch.tensor([0]), gt_masks=["left"])
    with pytest.raises(TypeError, match=r"example_0.jpg are of an unknown kind.*PolygonMasks"):
        small_model()(inputs)


def test_loss_weight_is_for_per_pixel_heads() -> None:
    """As published: MaskFormer has weights of its own."""
    weighted = small_model(MODEL__SEM_SEG_HEAD__LOSS_WEIGHT=3.0, MODEL__MASK_FORMER__DICE_WEIGHT=7.0).criterion
    assert weighted.weights == {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 7.0}


def test_keys_of_matching_and_losses_reach_them() -> None:
    node = "MODEL__MASK_FORMER__"
    changes = {
        "CLASS_WEIGHT": 3.0,
        "MASK_WEIGHT": 4.0,
        "DICE_WEIGHT": 6.0,
        "NO_OBJECT_WEIGHT": 0.25,
        "TRAIN_NUM_POINTS": 99,
        "OVERSAMPLE_RATIO": 2.0,
        "IMPORTANCE_SAMPLE_RATIO": 0.5,
        "DEEP_SUPERVISION": False,
        "WEIGHT_OF_EACH_CLASS": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
    criterion = build_criterion(small_cfg(**{node + key: value for key, value in changes.items()}))
    matcher = criterion.matcher
    assert criterion.weights == {"loss_ce": 3.0, "loss_mask": 4.0, "loss_dice": 6.0}
    assert (matcher.cost_class, matcher.cost_mask, matcher.cost_dice, matcher.num_points) == (3.0, 4.0, 6.0, 99)
    assert criterion.empty_weight.tolist() == [1, 2, 3, 4, 5, 0.25]
    assert (criterion.num_points, criterion.oversample_ratio, criterion.importance_sample_ratio) == (99, 2.0, 0.5)
    assert not criterion.deep_supervision
    for key in ("CRITERION_NAME", "MATCHER_NAME"):
        with pytest.raises(KeyError, match="'Unknown'"):
            build_criterion(small_cfg(**{node + key: "Unknown"}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_pixel_decoder_trains_under_autocast(dtype: torch.dtype) -> None:
    model = small_model()
    decode = model.sem_seg_head.pixel_decoder.forward_features

    def in_float32(features: dict[str, Tensor]) -> Any:
        with torch.autocast("cpu", enabled=False):
            return decode({name: feature.float() for name, feature in features.items()})

    model.sem_seg_head.pixel_decoder.forward_features = in_float32
    torch.manual_seed(0)
    expected = total(model([example()]))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        loss = total(model([example()]))
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bad_input_is_named() -> None:
    model = small_model()
    wrong = {**example(), "instances": stripes(64, 64, (0, 5))}
    with pytest.raises(ValueError, match=r"example_0.jpg is outside \[0, 5\).*NUM_CLASSES"):
        model([wrong])
    with pytest.raises(ValueError, match=r"training needs `instances` for example_0.jpg"):
        model([{key: value for key, value in example().items() if key != "instances"}])


def test_impossible_configurations_are_named() -> None:
    with pytest.raises(ValueError, match="no task is on"):
        small_model(
            MODEL__MASK_FORMER__TEST__SEMANTIC_ON=False,
            MODEL__MASK_FORMER__TEST__INSTANCE_ON=False,
            MODEL__MASK_FORMER__TEST__PANOPTIC_ON=False,
        )
    model = build_model(small_cfg(DATASETS__TRAIN=("test_mask_former_unknown",))).eval()
    with pytest.raises(ValueError, match=r"test_mask_former_unknown.*thing_dataset_id_to_contiguous_id"):
        model([{"image": example()["image"]}])
