from __future__ import annotations

import pytest
import torch

from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY
from mask2former.modeling import MaskFormerHead
from mask2former.modeling.build import build_pixel_decoder
from tests.helpers.models import small_cfg, small_model


def test_feeds_the_pixel_decoders_maps_to_the_transformer_decoder() -> None:
    model = small_model().eval()
    features = model.backbone(torch.zeros(1, 3, 64, 64))
    head = model.sem_seg_head
    with torch.no_grad():
        outputs = head(features)
        mask_features, _, maps = head.pixel_decoder.forward_features(features)
        expected = head.predictor(maps, mask_features)
    assert isinstance(head, MaskFormerHead)
    torch.testing.assert_close(outputs["pred_masks"], expected["pred_masks"])


def test_an_unknown_input_of_the_decoder_is_named() -> None:
    with pytest.raises(ValueError, match=r"TRANSFORMER_IN_FEATURE 'res9' is none of"):
        small_model(MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res9")


@SEM_SEG_HEADS_REGISTRY.register()
class NotAPixelDecoder(torch.nn.Module):
    """A segmentation head, as any other project may register."""

    def __init__(self, cfg: object, input_shape: object) -> None:
        super().__init__()


def test_a_head_that_is_no_pixel_decoder_is_named() -> None:
    cfg = small_cfg(MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME="NotAPixelDecoder")
    with pytest.raises(TypeError, match="'NotAPixelDecoder' is no pixel decoder: it has no `forward_features`"):
        build_pixel_decoder(cfg, {})
