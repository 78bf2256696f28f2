"""How every parameter starts, by name, as `shared/spec` says: training from scratch depends on it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.models import small_model
from tests.modeling.test_speed_settings import SWIN
from tests.modeling.transformer_decoder.test_standard import MASKFORMER

WIDER = {
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
    "MODEL__SEM_SEG_HEAD__MASK_DIM": 64,
    "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_DIM_FEEDFORWARD": 128,
    "MODEL__MASK_FORMER__HIDDEN_DIM": 64,
    "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 128,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 40,
    "MODEL__MASK_FORMER__ENFORCE_INPUT_PROJ": True,
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 30,
}


def fans(weight: Tensor) -> tuple[int, int]:
    receptive = weight[0, 0].numel()
    return weight.shape[1] * receptive, weight.shape[0] * receptive


def uniform(bound: float, value: Tensor) -> bool:
    near = 1 - 12 / value.numel()  # how close the largest of so many comes
    spread = value.std(unbiased=False) * math.sqrt(3) / bound
    return bool(near * bound <= value.abs().max() <= bound and abs(spread - 1) < 2 / math.sqrt(value.numel()))


def normal(std: float, value: Tensor) -> bool:
    return bool(abs(value.std() / std - 1) < 4 / math.sqrt(value.numel()) and value.abs().max() > 2 * std)


def xavier(value: Tensor) -> bool:
    return uniform(math.sqrt(6 / sum(fans(value))), value)


def caffe2_xavier(value: Tensor) -> bool:
    return uniform(math.sqrt(3 / fans(value)[0]), value)


def pytorch(value: Tensor) -> bool:
    return uniform(1 / math.sqrt(fans(value)[0]), value)


def pytorch_bias(fan_in: int) -> Callable[[Tensor], bool]:
    """`torch.nn.Linear`'s, which the published code does not touch."""
    return lambda value: uniform(1 / math.sqrt(fan_in), value)


def kaiming(value: Tensor) -> bool:
    return normal(math.sqrt(2 / fans(value)[1]), value)


def zero(value: Tensor) -> bool:
    return not value.any()


def one(value: Tensor) -> bool:
    return bool((value == 1).all())


def star(value: Tensor) -> bool:
    """Point p of head h lies p + 1 steps along direction h / 8 of the circle, its larger coordinate being whole."""
    offsets = value.view(8, 3, 4, 2)
    steps = torch.arange(1.0, 5)
    angles = torch.atan2(offsets[..., 1], offsets[..., 0]) % (2 * math.pi)
    expected = (torch.arange(8) * (2 * math.pi / 8))[:, None, None]
    turned = (angles - expected + math.pi) % (2 * math.pi) - math.pi
    return bool(turned.abs().max() < 1e-5 and (offsets.abs().amax(dim=-1) - steps).abs().max() < 1e-5)


def table(value: Tensor) -> bool:
    """A normal distribution, cut at 2 (far away)."""
    return bool(abs(value.std() / 0.02 - 1) < 0.3)


# The first that fits the name counts.
RULES: list[tuple[str, Callable[[Tensor], bool]]] = [
    (r"backbone\..*relative_position_bias_table", table),
    (r"backbone\..*norm\d?\.weight", one),
    (r"backbone\..*norm\d?\.bias", zero),
    (r"backbone\.(stem|res\d).*\.weight", kaiming),
    (r"backbone\.(patch_embed|layers).*\.weight", pytorch),
    (r".*(norm\d?|input_proj\.\d\.1)\.weight", one),
    (r".*(norm\d?|input_proj\.\d\.1)\.bias", zero),
    (r".*(query_feat|query_embed|level_embed)(\.weight)?", lambda value: normal(1, value)),
    (r".*sampling_offsets\.bias", star),
    (r".*(sampling_offsets|attention_weights)\.(weight|bias)", zero),
    (r".*(value_proj|output_proj|out_proj|in_proj)[._]weight", xavier),
    (r".*(value_proj|output_proj|out_proj|in_proj)[._]bias", zero),
    (r".*\.(linear1|linear2)\.weight", xavier),
    (r".*\.linear1\.bias", pytorch_bias(64)),
    (r".*\.linear2\.bias", pytorch_bias(128)),
    (r".*pixel_decoder\.input_proj\.\d\.0\.weight", xavier),
    (r".*\.(input_proj(\.\d)?|mask_features|adapter_\d|layer_\d)\.weight", caffe2_xavier),
    (r".*\.(input_proj\.\d(\.0)?|input_proj|mask_features)\.bias", zero),
    (r".*(class_embed|mask_embed\.layers\.\d)\.weight", pytorch),
    (r".*(class_embed|mask_embed\.layers\.\d)\.bias", pytorch_bias(64)),
]
MASKFORMER_WITH_ENCODERS = {
    **MASKFORMER,
    "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "transformer_encoder",
    "MODEL__MASK_FORMER__ENC_LAYERS": 1,
}


@pytest.mark.parametrize("changes", [{}, MASKFORMER_WITH_ENCODERS, SWIN], ids=["resnet", "maskformer", "swin"])
def test_every_parameter_starts_as_published(changes: dict[str, object]) -> None:
    model = small_model(**{**WIDER, **changes})
    wrong, used = [], set()
    for name, value in model.named_parameters():
        if name.startswith("backbone.layers") and re.fullmatch(r".*(qkv|proj|fc\d)\.bias|.*patch_embed.*bias", name):
            weight = model.get_parameter(name.removesuffix("bias") + "weight")
            rule = pytorch_bias(fans(weight)[0])
        elif name == "backbone.patch_embed.proj.bias":
            rule = pytorch_bias(3 * 4 * 4)
        else:
            rule = next((rule for pattern, rule in RULES if re.fullmatch(pattern, name)), lambda _: False)
        used.add(rule)
        if not rule(value.detach()):
            wrong.append(f"{name} {tuple(value.shape)}")
    assert wrong == []
    assert len(used) >= 9
