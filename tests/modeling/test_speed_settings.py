"""The settings that trade time, memory and precision, and may change nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mask2former import d2
from mask2former.modeling.backbone import ResNet, SwinTransformer
from mask2former.modeling.pixel_decoder.deformable_encoder import DeformableEncoderLayer
from tests.helpers.models import example, small_model, total

SWIN = {
    "MODEL__BACKBONE__NAME": "D2SwinTransformer",
    "MODEL__SWIN__EMBED_DIM": 16,
    "MODEL__SWIN__DEPTHS": [1, 1, 2, 1],
    "MODEL__SWIN__NUM_HEADS": [1, 1, 2, 2],
    "MODEL__SWIN__WINDOW_SIZE": 4,
}


def train_step(model: nn.Module, height: int, width: int) -> dict[str, torch.Tensor]:
    """Return the losses and, by parameter name, the gradients of one step."""
    model.train().zero_grad()
    torch.manual_seed(0)
    losses = model([example(height, width)])
    total(losses).backward()
    return {**losses, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("backbone", [{}, SWIN], ids=["resnet", "swin"])
def test_checkpointing_changes_no_gradient(backbone: dict[str, Any]) -> None:
    plain = train_step(small_model(**backbone), 64, 96)
    model = small_model(MODEL__ACTIVATION_CHECKPOINTING=True, **backbone)
    runs = []
    for module in model.modules():
        if isinstance(module, DeformableEncoderLayer):
            module.register_forward_pre_hook(lambda *_: runs.append("encoder"))
    recomputed = train_step(model, 64, 96)
    assert runs == ["encoder"] * 2  # forward, and again in the backward pass
    if backbone or d2.SOURCE == "bundled":  # Detectron2's own ResNet cannot
        assert any(getattr(module, "use_checkpoint", False) for module in model.backbone.modules())
    assert plain.keys() == recomputed.keys()
    assert len(plain) > 100
    torch.testing.assert_close(recomputed, plain)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make `Module.compile` quick and strict: Python runs the graph, and there must be only one. Lists the modules."""
    names: list[str] = []
    original = nn.Module.compile

    def whole_graph(self: nn.Module) -> None:
        names.append(type(self).__name__)
        original(self, fullgraph=True, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", whole_graph)
    torch.compiler.reset()
    return names


def test_compiled_models_take_images_of_any_size_and_keep_their_names(compiled: list[str]) -> None:
    small = {"MODEL__MASK_FORMER__DEC_LAYERS": 2}
    plain, model = small_model(**small).eval(), small_model(MODEL__COMPILE=True, **small).eval()
    assert compiled == ["ResNet", "MaskFormerHead"]
    assert list(model.state_dict()) == list(plain.state_dict())
    for height, width in ((64, 96), (96, 64)):
        image = [{"image": example(height, width)["image"]}]
        with torch.no_grad():
            torch.testing.assert_close(model(image)[0]["sem_seg"], plain(image)[0]["sem_seg"])


def test_a_compiled_backbone_may_recompute_its_activations() -> None:
    torch.manual_seed(0)
    plain = ResNet(depth=18, norm="BN", out_features=["res2"])
    model = ResNet(depth=18, norm="BN", out_features=["res2"], use_checkpoint=True)
    model.load_state_dict(plain.state_dict())
    model.compile(fullgraph=True, backend="aot_eager")
    image, found = torch.randn(2, 3, 32, 32), []
    for backbone in (plain, model):
        backbone(image)["res2"].square().sum().backward()
        found.append({name: p.grad for name, p in backbone.named_parameters()} | dict(backbone.named_buffers()))
    if torch.__version__.startswith("2.6."):  # where compiled checkpoints count batches of BatchNorm twice
        found = [
            {name: value for name, value in each.items() if "running" not in name and "tracked" not in name}
            for each in found
        ]
    torch.testing.assert_close(*found)  # statistics, too, are counted once


def test_swin_is_compiled_stage_by_stage(compiled: list[str]) -> None:
    torch.manual_seed(0)
    plain = SwinTransformer(embed_dim=12, depths=(2, 1, 1, 1), window_size=4, out_features=["res2"], num_heads=(2,) * 4)
    model = copy.deepcopy(plain)
    model.compile()
    assert compiled == ["SwinStage"]
    assert list(model.state_dict()) == list(plain.state_dict())
    for height, width in ((64, 96), (90, 70)):
        image = torch.randn(1, 3, height, width)
        torch.testing.assert_close(model.eval()(image), plain.eval()(image))


def test_evaluation_has_the_precision_asked_for_and_training_has_not() -> None:
    norm = {"MODEL__RESNETS__NORM": "FrozenBN"}  # without statistics, which training would change
    model = small_model(MODEL__MASK_FORMER__TEST__PRECISION="bfloat16", **norm)
    dtypes = []
    model.sem_seg_head.pixel_decoder.mask_features.register_forward_hook(
        lambda _module, _inputs, output: dtypes.append(output.dtype)
    )
    model([example()])
    with torch.no_grad():
        close = model.eval()([{"image": example()["image"]}])[0]["sem_seg"]
        exact = small_model(**norm).eval()([{"image": example()["image"]}])[0]["sem_seg"]
    assert dtypes == [torch.float32, torch.bfloat16]
    assert close.dtype == torch.float32
    assert 0 < (close - exact).abs().max() < 0.1 * exact.abs().max()


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match=r"TEST.PRECISION is 'half'.*\['float32', 'bfloat16', 'float16'\]"):
        small_model(MODEL__MASK_FORMER__TEST__PRECISION="half")
