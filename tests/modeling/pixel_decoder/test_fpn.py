from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.d2.layers import ShapeSpec
from mask2former.modeling.build import build_pixel_decoder
from mask2former.modeling.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from tests.helpers.models import small_cfg

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in range(2, 6)}
FPN = {"conv_dim": 32, "mask_dim": 12, "norm": "GN", "common_stride": 4}
ENCODER = {
    "transformer_dropout": 0.0,
    "transformer_nheads": 4,
    "transformer_dim_feedforward": 16,
    "transformer_enc_layers": 2,
    "transformer_pre_norm": False,
}


def base(shapes: dict[str, ShapeSpec] = SHAPES, **changes: object) -> BasePixelDecoder:
    torch.manual_seed(0)
    return BasePixelDecoder(shapes, **{**FPN, **changes})  # type: ignore[arg-type]


def with_encoder(**changes: object) -> TransformerEncoderPixelDecoder:
    torch.manual_seed(0)
    return TransformerEncoderPixelDecoder(SHAPES, **{**FPN, **ENCODER, **changes})  # type: ignore[arg-type]


def features(height: int = 64, width: int = 96, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn(batch, spec.channels, math.ceil(height / spec.stride), math.ceil(width / spec.stride))
        for name, spec in SHAPES.items()
    }


def test_gives_mask_features_and_three_maps_lowest_resolution_first() -> None:
    mask_features, encoded, maps = base().forward_features(features())
    assert mask_features.shape == (2, 12, 16, 24)
    assert encoded is None
    assert [tuple(m.shape) for m in maps] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]


def test_a_level_is_smoothed_after_the_coarser_one_is_added() -> None:
    decoder, inputs = base(), features()
    maps = decoder.forward_features(inputs).multi_scale_features
    upsampled = maps[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(maps[1], decoder.layer_3(decoder.adapter_3(inputs["res4"]) + upsampled))
    assert (maps[1] >= 0).all()


def test_odd_sizes_and_any_order_of_features_work() -> None:
    decoder = base(dict(reversed(SHAPES.items())))
    assert decoder.in_features == ["res2", "res3", "res4", "res5"]
    mask_features, _, maps = decoder.forward_features(features(31, 33))
    assert mask_features.shape[-2:] == (8, 9)
    assert maps[0].shape[-2:] == (1, 2)


def test_one_feature_is_enough() -> None:
    mask_features, _, maps = base({"res2": SHAPES["res2"]}).forward_features(features())
    assert mask_features.shape == (2, 12, 16, 24)
    assert len(maps) == 1


def test_the_encoder_reads_the_coarsest_map_and_the_pyramid_stands_on_it() -> None:
    decoder, inputs = with_encoder(), features()
    mask_features, encoded, maps = decoder.forward_features(inputs)
    assert mask_features.shape == (2, 12, 16, 24)
    assert encoded is not None
    assert encoded.shape == (2, 32, 2, 3)
    torch.testing.assert_close(maps[0], decoder.layer_4(encoded))
    inputs["res5"][:, :, 0, 0] += 1
    changed = decoder.forward_features(inputs).encoder_features
    assert changed is not None
    assert not torch.allclose(changed[:, :, -1, -1], encoded[:, :, -1, -1])  # every position has looked there


def test_the_encoder_sees_positions() -> None:
    decoder, inputs = with_encoder(), features()
    inputs["res5"] = torch.ones_like(inputs["res5"])
    encoded = decoder.forward_features(inputs).encoder_features
    assert encoded is not None
    assert encoded.std(dim=(2, 3)).max() < 1e-5  # equal values stay equal whatever the attention
    inputs["res5"][:, :, 0, 0] = -1
    encoded = decoder.forward_features(inputs).encoder_features
    assert encoded is not None
    assert encoded[:, :, 1, 0].sub(encoded[:, :, 0, 1]).abs().max() > 1e-5


def test_all_parameters_learn() -> None:
    decoder = with_encoder(transformer_pre_norm=True)
    decoder.forward_features(features()).mask_features.square().mean().backward()
    assert [name for name, value in decoder.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_without_norm_there_are_biases() -> None:
    names = dict(base(norm="").named_parameters())
    assert "adapter_1.bias" in names
    assert "adapter_1.norm.weight" not in names
    assert "adapter_4.weight" not in names


def test_convolutions_start_as_published() -> None:
    weight = base(conv_dim=64).layer_1.weight
    assert weight.abs().max() <= math.sqrt(3 / (64 * 9))
    assert F.relu(weight).max() > 0.95 * math.sqrt(3 / (64 * 9))


@pytest.mark.parametrize("name", ["BasePixelDecoder", "TransformerEncoderPixelDecoder"])
def test_configs_name_them(name: str) -> None:
    cfg = small_cfg(MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME=name, MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS=3)
    decoder = build_pixel_decoder(cfg, SHAPES)
    assert type(decoder).__name__ == name
    encoder = getattr(decoder, "transformer", None)
    assert encoder is None or len(encoder["encoder"].layers) == 3
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res9"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res9'\]"):
        build_pixel_decoder(cfg, SHAPES)


@pytest.mark.parametrize("build", [base, with_encoder])
def test_a_stride_that_it_does_not_decode_to_is_named(build: type) -> None:
    with pytest.raises(ValueError, match=r"COMMON_STRIDE is 8, but .* stride 4 of 'res2'"):
        build(common_stride=8)


def test_no_features_and_unknown_strides_are_named() -> None:
    with pytest.raises(ValueError, match="IN_FEATURES is empty"):
        base({})
    with pytest.raises(ValueError, match="IN_FEATURES is empty"):
        TransformerEncoderPixelDecoder({}, **{**FPN, **ENCODER})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not say the stride of its feature 'res2'"):
        base({"res2": ShapeSpec(channels=8)})
