from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2.modeling import SemanticSegmentor
from mask2former.modeling import PerPixelBaselineHead, PerPixelBaselinePlusHead
from mask2former.modeling.per_pixel import pixel_loss, upsample
from mask2former.modeling.transformer_decoder import StandardTransformerDecoder
from tests.helpers.models import NUM_CLASSES, small_cfg, small_model, total

BASELINE = {
    "MODEL__META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL__SEM_SEG_HEAD__NAME": "PerPixelBaselineHead",
    "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "BasePixelDecoder",
}
PLUS = {
    **BASELINE,
    "MODEL__SEM_SEG_HEAD__NAME": "PerPixelBaselinePlusHead",
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res5",
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": NUM_CLASSES,
    "MODEL__MASK_FORMER__DEC_LAYERS": 3,
}


def labelled(height: int = 64, width: int = 64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (height, width), generator=generator)
    labels[: height // 4] = 255
    return {"image": torch.randint(0, 256, (3, height, width), generator=generator), "sem_seg": labels}


def head(changes: dict[str, object]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a head and features for it."""
    model = small_model(**changes)
    with torch.no_grad():
        return model.sem_seg_head, model.backbone(torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (BASELINE, {"loss_sem_seg"}),
        ({**BASELINE, "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder"}, {"loss_sem_seg"}),
        (PLUS, {"loss_sem_seg", "loss_sem_seg_0", "loss_sem_seg_1"}),
        ({**PLUS, "MODEL__MASK_FORMER__DEEP_SUPERVISION": False}, {"loss_sem_seg"}),
    ],
)
def test_trains_a_step_and_segments(changes: dict[str, object], names: set[str]) -> None:
    model = small_model(**changes)
    assert isinstance(model, SemanticSegmentor)
    losses = model([labelled(), labelled(62, 51, seed=1)])
    assert set(losses) == names
    assert total(losses).isfinite()
    total(losses).backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    with torch.no_grad():
        result = model.eval()([{"image": torch.zeros(3, 50, 71), "height": 100, "width": 142}])
    assert result[0]["sem_seg"].shape == (NUM_CLASSES, 100, 142)


def test_learns_a_label_map() -> None:
    model = small_model(**BASELINE)
    inputs = labelled()
    inputs["sem_seg"][:, :32], inputs["sem_seg"][:, 32:] = 1, 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = None
    for _ in range(12):
        loss = total(model([inputs]))
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first


@pytest.mark.parametrize("changes", [BASELINE, PLUS])
def test_the_loss_is_that_of_the_predictions_times_its_weight(changes: dict[str, object]) -> None:
    module, features = head({**changes, "MODEL__SEM_SEG_HEAD__LOSS_WEIGHT": 3.0, "MODEL__MASK_FORMER__DROPOUT": 0.0})
    targets = torch.randint(0, NUM_CLASSES, (2, 64, 96))
    targets[0, :, :30] = 255
    nothing, losses = module(features, targets)
    assert nothing is None
    logits, no_losses = module.eval()(features)
    assert no_losses == {}
    assert logits.shape == (2, NUM_CLASSES, 64, 96)
    torch.testing.assert_close(losses["loss_sem_seg"], 3 * F.cross_entropy(logits, targets, ignore_index=255))


def test_the_queries_of_the_plus_head_are_classes() -> None:
    module, features = head(PLUS)
    logits, _ = module.eval()(features)
    mask_features = module.pixel_decoder.forward_features(features).mask_features
    masks = module.predictor(features["res5"], mask_features)["pred_masks"]
    torch.testing.assert_close(logits, upsample(masks, 4))


def test_ignored_pixels_do_not_count_and_may_be_all() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    targets = torch.randint(0, 3, (1, 16, 16))
    targets[:, :, 8:] = 9
    expected = F.cross_entropy(upsample(logits, 4)[..., :8], targets[..., :8])
    torch.testing.assert_close(pixel_loss(logits, targets, stride=4, ignore_value=9), expected)
    nothing = pixel_loss(logits, torch.full_like(targets, 9), stride=4, ignore_value=9)
    assert nothing == 0
    nothing.backward()


def test_targets_need_not_be_a_multiple_of_the_stride() -> None:
    logits, targets = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 14, 13))
    expected = F.cross_entropy(upsample(logits, 4)[:, :, :14, :13], targets)
    torch.testing.assert_close(pixel_loss(logits, targets, stride=4, ignore_value=255), expected)


def test_losses_are_in_float32_under_autocast() -> None:
    logits = torch.randn(1, 3, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pixel_loss(logits, torch.zeros(1, 16, 16, dtype=torch.int64), stride=4, ignore_value=255)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("label", [-1, 3, 254])
def test_labels_that_are_no_class_are_named(label: int) -> None:
    targets = torch.full((1, 16, 16), label)
    with pytest.raises(ValueError, match=rf"outside \[0, 3\): \[{label}\]; MODEL.SEM_SEG_HEAD.NUM_CLASSES"):
        pixel_loss(torch.zeros(1, 3, 4, 4), targets, stride=4, ignore_value=255)


@pytest.mark.parametrize("changes", [BASELINE, PLUS])
def test_training_without_label_maps_names_the_mapper(changes: dict[str, object]) -> None:
    model = small_model(**changes)
    with pytest.raises(ValueError, match=r"INPUT.DATASET_MAPPER_NAME 'mask_former_semantic'"):
        model([{"image": labelled()["image"]}])


@pytest.mark.parametrize("changes", [BASELINE, PLUS])
def test_mask_classification_and_pixels_do_not_mix(changes: dict[str, object]) -> None:
    name = changes["MODEL__SEM_SEG_HEAD__NAME"]
    with pytest.raises(ValueError, match=rf"NAME '{name}' classifies pixels.*META_ARCHITECTURE 'SemanticSegmentor'"):
        small_model(**{**changes, "MODEL__META_ARCHITECTURE": "MaskFormer"})


def test_the_plus_head_needs_a_decoder_of_masks_alone() -> None:
    wrong = {
        "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    }
    with pytest.raises(ValueError, match=r"per-pixel heads need .*'StandardTransformerDecoder'"):
        small_model(**{**PLUS, **wrong})
    decoder = StandardTransformerDecoder(small_cfg(**PLUS), 512, True)
    with pytest.raises(ValueError, match="mask_classification=False"):
        PerPixelBaselinePlusHead(
            pixel_decoder=head(BASELINE)[0].pixel_decoder,
            transformer_predictor=decoder,
            transformer_in_feature="res5",
            deep_supervision=True,
            common_stride=4,
            loss_weight=1.0,
            ignore_value=255,
        )


def test_constructors_need_no_config() -> None:
    module, features = head(BASELINE)
    alone = PerPixelBaselineHead(
        pixel_decoder=module.pixel_decoder, mask_dim=32, num_classes=7, common_stride=4, loss_weight=1.0, ignore_value=0
    )
    assert alone.eval()(features)[0].shape == (2, 7, 64, 96)
