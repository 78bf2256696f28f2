import pytest
import torch

from mask2former import get_cfg
from mask2former.d2.layers import ShapeSpec
from mask2former.d2.modeling import BACKBONE_REGISTRY, Backbone
from mask2former.modeling.backbone import SwinTransformer
from mask2former.modeling.backbone.window_attention import (
    WindowAttention,
    from_windows,
    relative_position_index,
    shifted_window_mask,
    to_windows,
)
from tests.helpers.backbones import assert_published, gradients

SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}


def small(**settings):
    torch.manual_seed(0)
    return SwinTransformer(**(SMALL | settings))


def test_published_names_and_features():
    assert_published(SwinTransformer(), "swin_tiny")


def test_features_have_the_announced_shape_at_odd_sizes():
    model = small().eval()
    for height, width in [(97, 130), (33, 5), (1, 1)]:
        features = model(torch.randn(1, 3, height, width))
        for name, shape in model.output_shape().items():
            size = (-(-height // shape.stride), -(-width // shape.stride))
            assert features[name].shape == (1, shape.channels, *size)
            assert features[name].isfinite().all()
    assert model.size_divisibility == 32


def test_empty_batch():
    assert small()(torch.zeros(0, 3, 64, 64))["res5"].shape == (0, 128, 2, 2)


def test_windows_round_trip():
    x = torch.arange(2 * 6 * 9 * 2).view(2, 6, 9, 2)
    windows = to_windows(x, 3)
    assert windows.shape == (2 * 6, 9, 2)
    assert torch.equal(windows[1], x[0, :3, 3:6].reshape(9, 2))
    assert torch.equal(from_windows(windows, 3, 6, 9), x)


@pytest.mark.parametrize("window", [3, 4])
def test_mask_joins_exactly_the_tokens_that_were_neighbours(window):
    height, width, shift = 3 * window, 2 * window, window // 2
    blocked = shifted_window_mask(height, width, window, torch.device("cpu"))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows, columns], dim=-1)[None].roll((-shift, -shift), dims=(1, 2))
    position = to_windows(position, window)
    distance = (position[:, :, None] - position[:, None]).abs().amax(-1)
    assert torch.equal(blocked.squeeze(1), distance >= window)


def test_relative_position_index_depends_on_the_offset_alone():
    index = relative_position_index(3)
    assert index.min() == 0
    assert index.max() == 24
    assert index[0, 1] == index[1, 2] == index[3, 4]
    assert index.diagonal().unique().tolist() == [12]
    assert len(index.unique()) == 25


def test_attention_is_softmax_of_scaled_products_and_bias():
    torch.manual_seed(0)
    attention = WindowAttention(
        dim=8, window_size=2, num_heads=2, qkv_bias=True, qk_scale=0.3, attn_drop=0.0, proj_drop=0.0
    )
    x = torch.randn(4, 4, 8)
    blocked = torch.rand(2, 1, 4, 4) < 0.3
    blocked &= ~torch.eye(4, dtype=torch.bool)
    q, k, v = attention.qkv(x).view(4, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = 0.3 * q @ k.mT + attention.relative_position_bias_table[relative_position_index(2)].permute(2, 0, 1)
    scores = scores - 1e9 * blocked.repeat(2, 1, 1, 1)
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, blocked), expected)


@pytest.mark.parametrize("stage", [0, 1])
def test_images_of_a_batch_do_not_see_each_other(stage):
    model = small().eval()
    images = torch.randn(2, 3, 40, 56)
    together, alone = model(images), model(images[1:])
    name = f"res{stage + 2}"
    torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient():
    image = torch.randn(2, 3, 48, 40)
    plain, recomputing = small(), small(use_checkpoint=True)
    expected, actual = gradients(plain, image), gradients(recomputing, image)
    assert expected.keys() == actual.keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(actual, expected)


def test_frozen_parts_get_no_gradient_and_no_stochastic_depth():
    model = small(freeze_at=2, ape=True, pretrain_img_size=32, drop_rate=0.5)
    assert not model.layers[0].training
    assert model.layers[1].training
    grads = gradients(model, torch.randn(1, 3, 32, 32))
    assert not [name for name in grads if name.startswith(("patch_embed", "absolute", "layers.0", "norm0"))]
    assert grads["layers.1.blocks.0.attn.qkv.weight"].abs().sum() > 0
    assert torch.equal(*(model(torch.ones(1, 3, 32, 32))["res2"] for _ in range(2)))


def test_tables_of_another_window_size_are_resized():
    old, new = small(window_size=4), small(window_size=6)
    missing, unexpected = new.load_state_dict(old.state_dict())
    assert not missing
    assert not unexpected
    attention = new.layers[0].blocks[0].attn
    assert torch.equal(attention.relative_position_index, relative_position_index(6))
    centre_old = old.layers[0].blocks[0].attn.relative_position_bias_table[24]
    centre_new = attention.relative_position_bias_table[60]
    torch.testing.assert_close(centre_new, centre_old)


def test_table_with_other_heads_is_an_error():
    other = small(num_heads=(2, 2, 4, 8)).state_dict()
    with pytest.raises(RuntimeError, match=r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"):
        small().load_state_dict(other)


def test_position_embedding_fits_any_image_and_checkpoint():
    model = small(ape=True, pretrain_img_size=64)
    state = model.state_dict()
    assert state["absolute_pos_embed"].shape == (1, 16, 16, 16)
    assert model(torch.zeros(1, 3, 40, 72))["res2"].shape == (1, 16, 10, 18)

    larger = small(ape=True, pretrain_img_size=128)
    larger.load_state_dict(state)
    torch.testing.assert_close(larger.absolute_pos_embed.mean(), model.absolute_pos_embed.mean(), rtol=0.1, atol=1e-4)

    state["absolute_pos_embed"] = state["absolute_pos_embed"].flatten(2).transpose(1, 2)  # the original layout
    again = small(ape=True, pretrain_img_size=64)
    again.load_state_dict(state)
    assert torch.equal(again.absolute_pos_embed, model.absolute_pos_embed)


def test_later_blocks_are_dropped_more_often():
    model = SwinTransformer(**SMALL)
    rates = [getattr(b.drop_path, "probability", 0.0) for layer in model.layers for b in layer.blocks]
    assert rates == pytest.approx([0.3 * i / 7 for i in range(8)])


def test_bfloat16_autocast_stays_close():
    model = small().eval()
    image = torch.randn(1, 3, 50, 64)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = model(image)
    for name in expected:
        error = (actual[name].float() - expected[name]).norm() / expected[name].norm()
        assert error < 0.03, name


def test_autocast_trains():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = gradients(model := small(), torch.randn(1, 3, 40, 40))
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert all(grad.isfinite().all() for grad in grads.values())


def test_stages_behind_the_last_feature_are_not_built():
    model = small(out_features=["res3"])
    grads = gradients(model, torch.randn(1, 3, 32, 32))
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert len(model.layers) == 2
    assert model.output_shape().keys() == {"res3"}


def test_exports_with_its_features_unchanged():
    model = small().eval()
    image = torch.randn(1, 3, 40, 48)
    program = torch.export.export(model, (image,))
    torch.testing.assert_close(program.module()(image), model(image))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (2, 2, 2)}, r"DEPTHS \[2, 2, 2\]"),
        ({"num_heads": (2, 2, 4)}, r"NUM_HEADS \[2, 2, 4\] need 4 numbers"),
        ({"num_heads": (3, 2, 4, 8)}, r"NUM_HEADS\[0\] is 3; it must divide the stage's 16 channels"),
        ({"window_size": 0}, "WINDOW_SIZE 0 must be positive"),
        ({"out_features": ["stem"]}, r"OUT_FEATURES are \['stem'\]"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"not \(3, 32, 32\)"):
        small()(torch.zeros(3, 32, 32))


def test_registered_and_built_from_a_config():
    cfg = get_cfg()
    cfg.MODEL.SWIN.EMBED_DIM = 192
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 18, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [6, 12, 24, 48]
    cfg.MODEL.SWIN.WINDOW_SIZE = 12
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2  # for ResNets
    with torch.device("meta"):
        model = BACKBONE_REGISTRY.get("D2SwinTransformer")(cfg, ShapeSpec(channels=3))
        features = model.eval()(torch.empty(1, 3, 100, 64))
    assert isinstance(model, Backbone)
    assert features["res5"].shape == (1, 1536, 4, 2)
    assert len(model.layers[2].blocks) == 18
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 195_201_204
