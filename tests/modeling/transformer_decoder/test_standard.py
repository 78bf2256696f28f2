from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.transformer_decoder import StandardTransformerDecoder
from tests.helpers.models import NUM_CLASSES, example, small_cfg, small_model, total

MASKFORMER = {
    "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res5",
    "MODEL__MASK_FORMER__DEC_LAYERS": 3,
}


def decoder(in_channels: int = 16, mask_classification: bool = True, **changes: object) -> StandardTransformerDecoder:
    torch.manual_seed(0)
    settings = {
        "num_classes": 4,
        "hidden_dim": 16,
        "num_queries": 5,
        "nheads": 2,
        "dim_feedforward": 8,
        "enc_layers": 0,
        "dec_layers": 3,
        "dropout": 0.0,
        "pre_norm": False,
        "deep_supervision": True,
        "mask_dim": 12,
        "enforce_input_project": False,
        **changes,
    }
    return StandardTransformerDecoder(in_channels, mask_classification, **settings)  # type: ignore[arg-type]


def maps(channels: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, channels, 4, 6), torch.randn(2, 12, 16, 24)


@pytest.mark.parametrize("changes", [{}, {"enc_layers": 2}, {"pre_norm": True, "enc_layers": 1, "dropout": 0.3}])
def test_every_layer_predicts(changes: dict[str, object]) -> None:
    outputs = decoder(**changes)(*maps())
    assert len(outputs["aux_outputs"]) == 2
    for prediction in [*outputs["aux_outputs"], outputs]:
        assert prediction["pred_logits"].shape == (2, 5, 5)
        assert prediction["pred_masks"].shape == (2, 5, 16, 24)
        assert prediction["pred_masks"].isfinite().all()


def test_the_last_prediction_does_not_depend_on_deep_supervision() -> None:
    deep, last = decoder()(*maps()), decoder(deep_supervision=False)(*maps())
    assert last["aux_outputs"] == []
    assert torch.equal(last["pred_masks"], deep["pred_masks"])


def test_without_mask_classification_there_are_masks_alone() -> None:
    model = decoder(mask_classification=False)
    outputs = model(*maps())
    assert "pred_logits" not in {*outputs, *outputs["aux_outputs"][0]}
    assert torch.equal(outputs["pred_masks"], model(*maps())["pred_masks"])
    assert not [name for name, _ in model.named_parameters() if name.startswith("class_embed")]


def test_positions_of_the_map_matter() -> None:
    model, (feature, mask_features) = decoder(), maps()
    moved = model(feature.flip(3), mask_features)["pred_logits"]
    assert not torch.allclose(moved, model(feature, mask_features)["pred_logits"], atol=1e-4)


def test_the_encoder_works_on_the_map() -> None:
    with_encoder, without = decoder(enc_layers=1), decoder()
    without.load_state_dict(with_encoder.state_dict(), strict=False)
    assert not torch.allclose(with_encoder(*maps())["pred_logits"], without(*maps())["pred_logits"])


def test_projection_exists_where_channels_differ_or_it_is_enforced() -> None:
    def projections(*args: int, **changes: object) -> list[str]:
        return [name for name, _ in decoder(*args, **changes).named_parameters() if name.startswith("input_proj")]

    assert projections() == []
    assert projections(enforce_input_project=True) == ["input_proj.weight", "input_proj.bias"]
    assert decoder(20)(*maps(20))["pred_masks"].shape == (2, 5, 16, 24)


def test_impossible_settings_are_named() -> None:
    for changes in ({"dec_layers": 0}, {"enc_layers": -1}):
        with pytest.raises(ValueError, match="DEC_LAYERS of at least 1 and ENC_LAYERS of at least 0"):
            decoder(**changes)
    with pytest.raises(ValueError, match=r"'multi_scale_pixel_decoder', but StandardTransformerDecoder reads one map"):
        small_model(**{**MASKFORMER, "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder"})
    with pytest.raises(ValueError, match=r"'res5', one map, but MultiScaleMaskedTransformerDecoder reads several"):
        small_model(MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res5")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "pixel_embedding", "MODEL__MASK_FORMER__ENC_LAYERS": 2},
        {
            "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
            "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "transformer_encoder",
        },
    ],
)
def test_maskformer_trains_a_step_and_segments(changes: dict[str, object]) -> None:
    model = small_model(**{**MASKFORMER, **changes})
    assert len(model.sem_seg_head.predictor.transformer["decoder"].layers) == 3
    encoder_layers = changes.get("MODEL__MASK_FORMER__ENC_LAYERS", 0)
    assert len(model.sem_seg_head.predictor.transformer["encoder"].layers) == encoder_layers
    losses = model([example(), example(labels=(), seed=1)])
    assert len(losses) == 9
    total(losses).backward()
    assert total(losses).isfinite()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    with torch.no_grad():
        result = model.eval()([{"image": torch.zeros(3, 50, 70)}])[0]
    assert result["sem_seg"].shape == (NUM_CLASSES, 50, 70)
    assert "panoptic_seg" in result


THEIR_NAMES = [
    (r"pixel_decoder\.layer_4\.norm", "model.pixel_level_module.decoder.fpn.stem.1"),
    (r"pixel_decoder\.layer_4", "model.pixel_level_module.decoder.fpn.stem.0"),
    *[
        (rf"pixel_decoder\.{ours}_{3 - i}{norm}", f"model.pixel_level_module.decoder.fpn.layers.{i}.{theirs}.{number}")
        for i in range(3)
        for ours, theirs in (("adapter", "proj"), ("layer", "block"))
        for norm, number in ((r"\.norm", 1), ("", 0))
    ],
    (r"pixel_decoder\.mask_features", "model.pixel_level_module.decoder.mask_projection"),
    (r"predictor\.query_embed", "model.transformer_module.queries_embedder"),
    (r"predictor\.input_proj", "model.transformer_module.input_projection"),
    (r"predictor\.class_embed", "class_predictor"),
    (r"predictor\.mask_embed\.layers\.(\d)", r"mask_embedder.\1.0"),
    (r"predictor\.transformer\.decoder\.norm", "model.transformer_module.decoder.layernorm"),
    (r"predictor\.transformer\.decoder", "model.transformer_module.decoder"),
    (r"multihead_attn", "encoder_attn"),
    (r"norm1", "self_attn_layer_norm"),
    (r"norm2", "encoder_attn_layer_norm"),
    (r"norm3", "final_layer_norm"),
    (r"linear(\d)", r"fc\1"),
]


def our_weights(theirs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Return their weights under our names."""
    # The names of two of their modules depend on their version.
    theirs = {name.replace(".mlp.fc", ".fc").replace(".o_proj.", ".out_proj."): value for name, value in theirs.items()}
    weights = {}
    for name in names:
        theirs_name = name
        for pattern, replacement in THEIR_NAMES:
            theirs_name = re.sub(pattern, replacement, theirs_name)
        if ".in_proj_" in theirs_name:
            parts = [theirs_name.replace(".in_proj_", f".{part}_proj.") for part in "qkv"]
            weights[name] = torch.cat([theirs[part] for part in parts])
        else:
            weights[name] = theirs[theirs_name]
    return weights


def test_transformers_maskformer_predicts_the_same() -> None:
    """FPN and this decoder against an independent implementation."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=stages
    )
    detr = transformers.DetrConfig(
        d_model=32, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=56, num_queries=12
    )
    their_config = transformers.MaskFormerConfig(
        backbone_config=backbone, decoder_config=detr, fpn_feature_size=64, mask_feature_size=48, num_labels=NUM_CLASSES
    )
    theirs = transformers.MaskFormerForInstanceSegmentation(their_config).eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if value.is_floating_point() and not name.endswith("running_var"):
                value.add_(torch.randn_like(value), alpha=0.05)
        expected = theirs(pixel_values=torch.randn(2, 3, 64, 96), output_hidden_states=True)
    settings = {
        "MODEL__RESNETS__DEPTH": 50,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
        "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
        "MODEL__SEM_SEG_HEAD__MASK_DIM": 48,
        "MODEL__MASK_FORMER__NHEADS": 4,
        "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 56,
        "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 12,
    }
    head: nn.Module = small_model(**{**MASKFORMER, **settings}).sem_seg_head.eval()
    head.load_state_dict(our_weights(theirs.state_dict(), list(head.state_dict())))
    features = dict(zip(("res2", "res3", "res4", "res5"), expected.encoder_hidden_states, strict=True))
    with torch.no_grad():
        outputs = head(features)
    torch.testing.assert_close(outputs["pred_logits"], expected.class_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["pred_masks"], expected.masks_queries_logits, atol=1e-4, rtol=1e-4)
    assert expected.masks_queries_logits.std() > 0.1


def test_configs_state_the_layers_of_encoder_and_decoder() -> None:
    cfg = small_cfg(**{**MASKFORMER, "MODEL__MASK_FORMER__ENC_LAYERS": 2})
    predictor = StandardTransformerDecoder(cfg, 24, True)
    assert len(predictor.transformer["encoder"].layers) == 2
    assert len(predictor.transformer["decoder"].layers) == 3
