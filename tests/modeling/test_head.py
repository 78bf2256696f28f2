from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY
from mask2former.modeling import MaskFormerHead
from mask2former.modeling.build import build_pixel_decoder
from tests.helpers.models import example, small_cfg, small_model, total
from tests.modeling.test_per_pixel import BASELINE
from tests.modeling.test_speed_settings import SWIN
from tests.modeling.transformer_decoder.test_standard import MASKFORMER


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


def version_1(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of `model` under the names of the published modules' first version."""
    return {
        name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value
        for name, value in model.state_dict().items()
    }


def test_any_checkpointer_loads_version_1(tmp_path: Path) -> None:
    source, target = small_model(), small_model(seed=1)
    torch.save({"model": version_1(source)}, tmp_path / "old.pth")
    incompatible = Checkpointer(target).load(str(tmp_path / "old.pth"))
    assert incompatible == {}
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    predictor = source.sem_seg_head.predictor
    old = {name.replace("query_feat", "static_query"): value for name, value in predictor.state_dict().items()}
    target.sem_seg_head.predictor.load_state_dict(old)


def test_what_states_version_2_is_taken_at_its_word() -> None:
    source = small_model()
    state = source.state_dict()
    assert state._metadata["sem_seg_head"]["version"] == state._metadata["sem_seg_head.predictor"]["version"] == 2
    state["sem_seg_head.predictor.static_query.weight"] = state.pop("sem_seg_head.predictor.query_feat.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*query_feat.*Unexpected.*static_query"):
        source.load_state_dict(state)


@pytest.mark.parametrize("float32", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_pixel_decoder_runs_in_float32_if_asked_to(float32: bool, per_pixel: bool) -> None:
    changes: dict[str, object] = {"MODEL__SEM_SEG_HEAD__PIXEL_DECODER_FLOAT32": float32}
    if per_pixel:
        changes |= BASELINE
    model = small_model(**changes, MODEL__RESNETS__NORM="FrozenBN")
    decoder, dtypes = model.sem_seg_head.pixel_decoder, []
    decoder.mask_features.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        features = {name: feature.bfloat16() for name, feature in model.backbone(torch.rand(1, 3, 64, 64)).items()}
        outputs = model.sem_seg_head.eval()(features)
        if not per_pixel:
            assert outputs["pred_masks"].dtype == outputs["mask_features"].dtype == torch.bfloat16
            losses = model.train()([example()])
            total(losses).backward()
            assert total(losses).isfinite()
    assert set(dtypes) == {torch.float32 if float32 else torch.bfloat16}


class LoRA(nn.Module):
    """A low-rank addition to a linear layer, which it hides."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("changes", [{}, SWIN, MASKFORMER], ids=["resnet", "swin", "maskformer"])
def test_every_layer_is_called_and_may_be_replaced(changes: dict[str, object]) -> None:
    model = small_model(**changes).eval()
    called: set[nn.Module] = set()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: called.add(module))
    with torch.no_grad():
        model([{"image": example()["image"]}])
    assert called == set(layers)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRA(child))
    total(model.train()([example()])).backward()
    added = [module for module in model.modules() if isinstance(module, LoRA)]
    assert len(added) > 10
    assert all(lora.up.weight.grad is not None for lora in added)


def test_tools_that_follow_shapes_leave_no_trace() -> None:
    model = small_model().eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(torch.zeros(1, 3, 64, 64)))
    assert isinstance(outputs["pred_masks"], FakeTensor)
    with torch.no_grad():
        assert type(model([{"image": torch.zeros(3, 64, 64)}])[0]["sem_seg"]) is Tensor


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
