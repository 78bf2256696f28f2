from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mask2former.d2.layers import ShapeSpec
from mask2former.modeling.build import build_pixel_decoder
from mask2former.modeling.pixel_decoder import MSDeformAttnPixelDecoder, deformable_encoder
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn, pixel_centres
from mask2former.modeling.position_encoding import sine_tokens
from tests.helpers.models import small_cfg

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in range(2, 6)}


def decoder(**changes: object) -> MSDeformAttnPixelDecoder:
    torch.manual_seed(0)
    settings = {
        "transformer_in_features": ["res3", "res4", "res5"],
        "transformer_dropout": 0.0,
        "transformer_nheads": 4,
        "transformer_dim_feedforward": 16,
        "transformer_enc_layers": 1,
        "transformer_num_points": 2,
        "conv_dim": 32,
        "mask_dim": 12,
        "norm": "GN",
        "common_stride": 4,
        **changes,
    }
    return MSDeformAttnPixelDecoder(SHAPES, **settings)


def features(height: int = 64, width: int = 96, batch: int = 2) -> dict[str, Tensor]:
    return {
        name: torch.randn(batch, spec.channels, math.ceil(height / spec.stride), math.ceil(width / spec.stride))
        for name, spec in SHAPES.items()
    }


def test_gives_mask_features_and_three_maps_lowest_resolution_first() -> None:
    mask_features, encoded, maps = decoder().forward_features(features())
    assert mask_features.shape == (2, 12, 16, 24)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]
    assert encoded is maps[0]


def test_odd_sizes_and_one_pixel_levels_work() -> None:
    mask_features, _, maps = decoder().forward_features(features(31, 33))
    assert mask_features.shape[-2:] == (8, 9)
    assert maps[0].shape[-2:] == (1, 2)


def test_a_coarser_common_stride_needs_no_fpn_and_a_finer_set_of_levels_none_either() -> None:
    assert decoder(common_stride=8).forward_features(features())[0].shape[-2:] == (8, 12)
    every = decoder(transformer_in_features=["res2", "res3", "res4", "res5"])
    mask_features, _, maps = every.forward_features(features())
    assert every.fpn_features == []
    assert mask_features.shape[-2:] == (16, 24)
    assert len(maps) == 3


def test_a_fpn_without_norm_has_biases() -> None:
    names = dict(decoder(norm="").named_parameters())
    assert "adapter_1.bias" in names
    assert "adapter_1.norm.weight" not in names


def test_missing_features_are_named() -> None:
    for names in (["res3", "res4", "res7"], []):
        with pytest.raises(ValueError, match=r"IN_FEATURES must name some of .*'res2', 'res3', 'res4', 'res5'\], not"):
            decoder(transformer_in_features=names)


def test_the_transformer_decoder_may_read_other_numbers_of_maps() -> None:
    for count in (1, 2, 4):
        maps = decoder(num_decoder_levels=count).forward_features(features()).multi_scale_features
        assert [m.shape[-1] for m in maps] == [3, 6, 12, 24][:count]
    with pytest.raises(ValueError, match=r"NUM_FEATURE_LEVELS is 5, but .* makes 4 maps, of \['res5', .*'res2'\]"):
        decoder(num_decoder_levels=5)


def test_heads_that_would_differ_in_the_published_encoder_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    build_pixel_decoder(small_cfg(), SHAPES)
    assert caplog.messages == []
    built = build_pixel_decoder(small_cfg(MODEL__MASK_FORMER__NHEADS=4), SHAPES)
    assert built.transformer.encoder.layers[0].self_attn.num_heads == 8
    assert "the published one would have MODEL.MASK_FORMER.NHEADS, 4" in caplog.text


def test_sampling_locations_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(value: Tensor, shapes: object, locations: Tensor, weights: Tensor) -> Tensor:
        seen.append(locations)
        return value.new_zeros(2, locations.shape[1], 32)

    monkeypatch.setattr(deformable_encoder, "ms_deform_attn", record)
    torch.manual_seed(0)
    attention = MSDeformAttn(embed_dim=32, num_heads=4, num_levels=1, num_points=2)
    nn.init.normal_(attention.sampling_offsets.weight)
    query, value = torch.randn(2, 7, 32), torch.randn(2, 6, 32)
    points = torch.rand(7, 2)
    query = query.bfloat16().float()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            attention(query, points, value, [(2, 3)], torch.tensor([[1 / 3, 1 / 2]]))
            if enabled:  # a query of that type is no other
                attention(query.bfloat16(), points, value, [(2, 3)], torch.tensor([[1 / 3, 1 / 2]]))
    assert seen[1].dtype == torch.float32
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    offsets = attention.sampling_offsets(query).view(2, 7, 4, 1, 2, 2) / torch.tensor([3.0, 2.0])
    torch.testing.assert_close(seen[0], points[:, None, None, None] + offsets)


def test_offsets_start_on_a_star_around_the_query() -> None:
    attention = MSDeformAttn(embed_dim=32, num_heads=8, num_levels=3, num_points=2)
    offsets = attention.sampling_offsets.bias.view(8, 3, 2, 2)
    star = torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    for level in range(3):
        for point in range(2):
            torch.testing.assert_close(offsets[:, level, point], star * (point + 1), atol=1e-5, rtol=0)
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    assert attention.value_proj.weight.any()


def test_positions_are_added_to_queries_alone() -> None:
    encoder = decoder().transformer
    layer, seen = encoder.encoder.layers[0], []
    layer.self_attn.register_forward_pre_hook(lambda _module, inputs: seen.append((inputs[0], inputs[2])))
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[:2]))
    encoder([torch.randn(2, 32, 2, 3), torch.randn(2, 32, 4, 6), torch.randn(2, 32, 8, 12)])
    (x, position), (query, value) = seen
    assert torch.equal(query, x + position)
    assert torch.equal(value, x)
    torch.testing.assert_close(position[:, 6:30], sine_tokens(4, 6, 32) + encoder.level_embed[1])


def test_pixel_centres_are_x_and_y_row_by_row() -> None:
    torch.testing.assert_close(
        pixel_centres(2, 3)[[0, 1, 3]], torch.tensor([[1 / 6, 0.25], [0.5, 0.25], [1 / 6, 0.75]])
    )
