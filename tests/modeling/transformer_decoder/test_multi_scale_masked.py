from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.modeling import build_transformer_decoder
from mask2former.modeling.position_encoding import sine_tokens
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.multi_scale_masked import attention_mask, resize
from tests.helpers.models import small_cfg


def decoder(**changes: object) -> MultiScaleMaskedTransformerDecoder:
    torch.manual_seed(0)
    settings = {
        "num_classes": 4,
        "hidden_dim": 16,
        "num_queries": 5,
        "nheads": 2,
        "dim_feedforward": 8,
        "dec_layers": 4,
        "pre_norm": False,
        "mask_dim": 12,
        "enforce_input_project": False,
        **changes,
    }
    return MultiScaleMaskedTransformerDecoder(
        changes.pop("in_channels", 16),
        **{  # type: ignore[arg-type]
            key: value for key, value in settings.items() if key != "in_channels"
        },
    )


def maps(channels: int = 16) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(1)
    levels = [torch.randn(2, channels, 2 * 2**i, 3 * 2**i) for i in range(3)]
    return levels, torch.randn(2, 12, 16, 24)


def test_every_layer_and_the_learned_queries_predict() -> None:
    outputs = decoder()(*maps())
    predictions = [*outputs["aux_outputs"], outputs]
    assert len(predictions) == 5
    for prediction in predictions:
        assert prediction["pred_logits"].shape == (2, 5, 5)
        assert prediction["pred_masks"].shape == (2, 5, 16, 24)
    # before the first layer, queries have seen no image
    assert torch.equal(outputs["aux_outputs"][0]["pred_logits"][0], outputs["aux_outputs"][0]["pred_logits"][1])


def test_layers_read_the_levels_in_turn() -> None:
    model = decoder()
    sizes = []
    for layer in model.transformer_cross_attention_layers:
        layer.register_forward_hook(lambda _module, inputs, _output: sizes.append(inputs[2].shape[1]))
    model(*maps())
    assert sizes == [6, 24, 96, 6]


def test_keys_carry_positions_and_values_their_level_alone() -> None:
    model, (levels, mask_features), seen = decoder(), maps(), []
    model.transformer_cross_attention_layers[1].register_forward_pre_hook(lambda _module, inputs: seen.extend(inputs))
    model(levels, mask_features)
    _, position, key, value, _ = seen
    assert torch.equal(position, model.query_embed.weight)
    assert torch.equal(value, levels[1].flatten(2).transpose(1, 2) + model.level_embed.weight[1])
    assert torch.equal(key, value + sine_tokens(4, 6, 16, "cpu"))


def test_the_prediction_of_the_learned_queries_counts_as_a_layer() -> None:
    model = build_transformer_decoder(small_cfg(MODEL__MASK_FORMER__DEC_LAYERS=4), 32)
    assert len(model.transformer_ffn_layers) == 3


def test_masked_positions_are_not_looked_at() -> None:
    model = decoder(dec_layers=1)
    levels, mask_features = maps()
    first = model(levels, mask_features)
    open_ = attention_mask(resize(first["aux_outputs"][0]["pred_masks"], (2, 3)))[0, 0]
    blocked = next(int(k) for k in range(6) if 0 < open_[:, k].sum() < 5)  # some queries look there, some not
    query, looking = int(open_[:, blocked].int().argmin()), int(open_[:, blocked].int().argmax())
    levels[0][0].flatten(1)[:, blocked] += 100.0
    cross = []
    model.transformer_cross_attention_layers[0].register_forward_hook(lambda *args: cross.append(args[2]))
    model(levels, mask_features)
    changed = cross[0][0]
    levels[0][0].flatten(1)[:, blocked] -= 100.0
    model(levels, mask_features)
    torch.testing.assert_close(changed[query], cross[1][0][query])
    assert not torch.allclose(changed[looking], cross[1][0][looking])


def test_attention_mask_opens_what_the_query_covers_and_everything_when_empty() -> None:
    logits = torch.full((1, 3, 8, 8), -4.0)
    logits[0, 0, :, :4] = 4
    logits[0, 1, 3, 3] = 4  # vanishes when resized
    mask = attention_mask(resize(logits, (2, 2)))
    assert mask.shape == (1, 1, 3, 4)
    assert mask[0, 0].tolist() == [[True, False, True, False], [True] * 4, [True] * 4]


def test_attention_masks_are_those_of_the_resized_prediction() -> None:
    model, (levels, mask_features) = decoder(dec_layers=6), maps()
    seen: list[Tensor] = []
    for layer in model.transformer_cross_attention_layers:
        layer.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[4]))
    outputs = model(levels, mask_features)
    for i, (mask, prediction) in enumerate(zip(seen, outputs["aux_outputs"], strict=True)):
        logits = resize(prediction["pred_masks"], levels[i % 3].shape[-2:])
        # equal but for logits that are zero to the last digits
        differs = (mask != attention_mask(logits)).squeeze(1)
        assert logits.flatten(2)[differs].abs().sum() < 1e-5
        assert not mask.requires_grad


def test_gradients_under_autocast_are_those_of_float32() -> None:
    """On PyTorch up to 2.10 a weight first used without gradient has none for as long as autocast keeps its cast."""
    (levels, mask_features), gradients = maps(), []
    for enabled in (False, True):
        model = decoder(dec_layers=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = model(levels, mask_features)
        predictions = [*outputs["aux_outputs"], outputs]
        torch.manual_seed(2)
        sum(
            (prediction[name].float() * torch.randn(prediction[name].shape)).sum()
            for prediction in predictions
            for name in ("pred_logits", "pred_masks")
        ).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, exact in gradients[0].items():
        assert gradients[1][name] is not None, name
        error = (gradients[1][name] - exact).norm() / exact.norm()
        assert error < 0.1 or exact.norm() < 1e-4, f"{name}: {error:.3f}"


def test_mask_features_may_be_float32_under_autocast() -> None:
    levels, mask_features = maps()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = decoder()(levels, mask_features)
    assert outputs["pred_masks"].dtype == outputs["mask_embeddings"].dtype == outputs["mask_features"].dtype
    product = torch.einsum("bqc,bchw->bqhw", outputs["mask_embeddings"].float(), outputs["mask_features"].float())
    torch.testing.assert_close(outputs["pred_masks"].float(), product, atol=0.02, rtol=0.02)


def test_each_state_of_the_queries_is_described_once_with_gradient() -> None:
    model, calls = decoder(), []
    model.mask_embed.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    model(*maps())
    assert calls == [True] * 5


def test_evaluation_gives_the_last_prediction_of_training() -> None:
    model, inputs = decoder(), maps()
    expected = model(*inputs)
    outputs = model.eval()(*inputs)
    assert outputs["aux_outputs"] == []
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(outputs[name], expected[name])


def test_projection_exists_where_channels_differ_or_it_is_enforced() -> None:
    def projections(**changes: object) -> list[str]:
        return [name for name, _ in decoder(**changes).named_parameters() if name.startswith("input_proj")]

    assert projections() == []
    assert len(projections(enforce_input_project=True)) == 6
    assert len(projections(in_channels=20)) == 6
    assert decoder(in_channels=20)(*maps(20))["pred_masks"].shape == (2, 5, 16, 24)


def test_no_layers_leave_the_prediction_of_the_learned_queries() -> None:
    outputs = decoder(dec_layers=0)(*maps())
    assert outputs["aux_outputs"] == []


def test_pre_norm_trains() -> None:
    outputs = decoder(pre_norm=True)(*maps())
    assert outputs["pred_masks"].isfinite().all()
    outputs["pred_masks"].sum().backward()


def test_there_is_no_dropout_whatever_the_config_says() -> None:
    model = build_transformer_decoder(small_cfg(MODEL__MASK_FORMER__DROPOUT=0.5), 32)
    inputs = maps(32)[0], torch.randn(2, 32, 16, 24)
    assert torch.equal(model.train()(*inputs)["pred_masks"], model(*inputs)["pred_masks"])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_other_numbers_of_levels_are_read_in_turn(count: int) -> None:
    model, sizes = decoder(num_levels=count, dec_layers=5), []
    for layer in model.transformer_cross_attention_layers:
        layer.register_forward_hook(lambda _module, inputs, _output: sizes.append(inputs[2].shape[1]))
    levels = [torch.randn(2, 16, 2, 3 + i) for i in range(count)]
    model(levels, maps()[1])
    assert sizes == [2 * (3 + i % count) for i in range(5)]


def test_queries_may_come_from_elsewhere() -> None:
    model, inputs = decoder(), maps()
    expected = model(*inputs)["pred_masks"]
    features, positions = model.query_feat.weight.detach(), model.query_embed.weight.detach()
    given = {"query_features": features.expand(2, -1, -1), "query_positions": positions}
    assert torch.equal(model(*inputs, **given)["pred_masks"], expected)
    fewer = model(*inputs, query_features=features[:3] + 1, query_positions=positions[:3])
    assert fewer["pred_masks"].shape[1] == fewer["aux_outputs"][0]["pred_logits"].shape[1] == 3
    each = torch.stack([features, features + 1])
    torch.testing.assert_close(model(*inputs, query_features=each)["pred_masks"][0], expected[0])
    assert not torch.allclose(model(*inputs, query_features=each)["pred_masks"][1], expected[1])


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="DEC_LAYERS"):
        decoder(dec_layers=-1)
    model, (levels, mask_features) = decoder(), maps()
    with pytest.raises(ValueError, match=r"built for 3 feature maps \(MODEL.MASK_FORMER.NUM_FEATURE_LEVELS\), not 2"):
        model(levels[:2], mask_features)
