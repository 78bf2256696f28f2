import pytest
import torch

from mask2former import get_cfg
from mask2former.d2 import SOURCE
from mask2former.d2.layers import FrozenBatchNorm2d, ShapeSpec
from mask2former.d2.modeling import BACKBONE_REGISTRY
from mask2former.modeling.backbone import ResNet
from tests.helpers import golden
from tests.helpers.backbones import assert_published, gradients

RES2 = ["res2"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet50", {}),
        ("resnet50_padded", {}),
        ("resnet101_syncbn", {"depth": 101, "norm": "SyncBN"}),
    ],
)
def test_published_names_and_features(name, settings):
    assert_published(ResNet(**settings), name)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("stem", ["basic", "deeplab"])
def test_shapes_agree_with_output_shape_at_odd_sizes(depth, stem):
    model = ResNet(depth=depth, stem=stem).to("meta").eval()
    features = model(torch.empty(2, 3, 97, 130, device="meta"))
    shapes = model.output_shape()
    assert list(features) == ["res2", "res3", "res4", "res5"] == list(shapes)
    assert [shapes[name].channels for name in shapes] == [(64 if depth < 50 else 256) << i for i in range(4)]
    for name, feature in features.items():
        stride = shapes[name].stride
        assert feature.shape == (2, shapes[name].channels, -(-97 // stride), -(-130 // stride))


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
def test_parameter_count_is_that_of_the_classifier_without_its_head(depth, parameters):
    with torch.device("meta"):
        model = ResNet(depth=depth, norm="BN")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_dilation_stands_in_for_stride():
    with torch.device("meta"):
        model = ResNet(res5_dilation=2, res5_multi_grid=(1, 2, 4))
        both = ResNet(res4_dilation=2, res5_dilation=4)
    assert [m.conv2.dilation[0] for m in model.res5] == [2, 4, 8]
    assert [m.conv2.stride[0] for m in model.res5] == [1, 1, 1]
    assert model.output_shape()["res5"].stride == 16
    assert both.output_shape()["res5"].stride == both.output_shape()["res3"].stride == 8
    assert model(torch.empty(1, 3, 64, 64, device="meta"))["res5"].shape[-2:] == (4, 4)


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_stride_in_1x1(stride_in_1x1):
    with torch.device("meta"):
        block = ResNet(stride_in_1x1=stride_in_1x1).res3[0]
    assert (block.conv1.stride, block.conv2.stride) == (((2, 2), (1, 1)) if stride_in_1x1 else ((1, 1), (2, 2)))


def test_stages_behind_the_last_feature_are_not_built():
    model = ResNet(depth=18, out_features=["stem", "res3"])
    assert not hasattr(model, "res4")
    features = model(torch.zeros(1, 3, 32, 32))
    assert list(features) == ["stem", "res3"] == list(model.output_shape())


@pytest.mark.parametrize("batch", [0, 1])
def test_tiny_and_empty_batches(batch):
    features = ResNet(depth=18)(torch.zeros(batch, 3, 1, 1))
    assert features["res5"].shape == (batch, 512, 1, 1)


@pytest.mark.parametrize("norm", ["BN", "GN", "FrozenBN"])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(norm):
    image = torch.randn(2, 3, 64, 64)
    plain = ResNet(depth=18, norm=norm)
    recomputing = ResNet(depth=18, norm=norm, use_checkpoint=True)
    recomputing.load_state_dict(plain.state_dict())
    expected, actual = gradients(plain, image), gradients(recomputing, image)
    assert expected.keys() == actual.keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(recomputing.state_dict(), plain.state_dict())


def test_sync_bn_is_bn_on_a_cpu():
    image = torch.randn(2, 3, 64, 64)
    plain, synchronised = ResNet(depth=18, norm="BN"), ResNet(depth=18, norm="SyncBN")
    synchronised.load_state_dict(plain.state_dict())
    torch.testing.assert_close(gradients(synchronised, image), gradients(plain, image))


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_freeze_fixes_weights_and_statistics(norm):
    model = ResNet(depth=18, norm=norm, freeze_at=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = gradients(model, torch.randn(2, 3, 64, 64))
    assert {name.split(".")[0] for name in grads} == {"res3", "res4", "res5"}
    frozen = [name for name in before if name.startswith(("stem", "res2"))]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in frozen)
    assert isinstance(model.stem.conv1.norm, FrozenBatchNorm2d)
    assert not torch.equal(
        before["res3.0.conv1.norm.running_mean"], model.state_dict()["res3.0.conv1.norm.running_mean"]
    )


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN"])
def test_norms_folded_in_inference_change_nothing(norm):
    torch.manual_seed(0)
    model = ResNet(depth=18, norm=norm).eval()
    golden.fill_by_name(model)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.eps = 0.3  # large enough to matter
    image = torch.randn(2, 3, 64, 96)
    expected = model(image)
    with torch.no_grad():
        actual = model(image)
        for statistics in model.buffers():
            statistics.mul_(2)
        changed = model(image)
    for name, feature in actual.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)
        assert torch.equal(feature, changed[name]) == (norm == "GN"), "nothing may be kept of older weights"


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_norms_with_hooks_are_called(register):
    """By quantisation, feature extraction and the like, in inference too."""
    model = ResNet(depth=18, norm="BN", out_features=RES2).eval()
    calls = []
    getattr(model.stem.conv1.norm, register)(lambda *_: calls.append(1))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert calls == [1]


def test_bfloat16_autocast_stays_close():
    torch.manual_seed(0)
    model = ResNet(depth=18, norm="GN").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = model(image)
    for name in expected:
        error = (actual[name].float() - expected[name]).norm() / expected[name].norm()
        assert error < 0.03, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 51}, r"DEPTH is 51; it must be one of \[18, 34, 50, 101, 152\]"),
        ({"stem": "tall"}, "STEM_TYPE is 'tall'"),
        ({"out_features": ["res6"]}, r"OUT_FEATURES are \['res6'\]"),
        ({"out_features": []}, r"OUT_FEATURES are \[\]"),
        ({"depth": 18, "res2_channels": 256}, "RES2_OUT_CHANNELS is 256; it must be 64"),
        ({"depth": 18, "groups": 2}, "NUM_GROUPS is 2"),
        ({"depth": 18, "res5_dilation": 2}, "RES5_DILATION is 2"),
        ({"res5_dilation": 3}, "RES4_DILATION and RES5_DILATION are 1 and 3"),
        ({"res5_multi_grid": [1, 2]}, r"RES5_MULTI_GRID is \[1, 2\]"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**settings)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"not \(3, 32, 32\)"):
        ResNet(depth=18, out_features=RES2)(torch.zeros(3, 32, 32))


def test_builders_read_their_keys():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.merge_from_list(["DEPTH", 50, "STEM_TYPE", "deeplab", "STEM_OUT_CHANNELS", 128, "NORM", "SyncBN"])
    cfg.MODEL.RESNETS.merge_from_list(["RES5_MULTI_GRID", [1, 2, 4], "OUT_FEATURES", ["res2", "res5"]])
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    with torch.device("meta"):
        model = BACKBONE_REGISTRY.get("build_resnet_deeplab_backbone")(cfg, ShapeSpec(channels=4))
    assert model.stem.conv1.weight.shape == (64, 4, 3, 3)
    assert model.stem.conv3.weight.shape == (128, 64, 3, 3)
    assert not model.stem.conv3.weight.requires_grad
    assert [block.conv2.dilation[0] for block in model.res5] == [1, 2, 4]
    assert list(model.output_shape()) == ["res2", "res5"]


@pytest.mark.skipif(SOURCE == "official", reason="the standard builder is then Detectron2's own")
def test_standard_builder_says_which_keys_it_ignores(caplog):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STEM_TYPE = "deeplab"
    with torch.device("meta"):
        model = BACKBONE_REGISTRY.get("build_resnet_backbone")(cfg, ShapeSpec(channels=3))
    assert not hasattr(model.stem, "conv2")
    assert model.output_shape().keys() == {"res4"}
    assert "build_resnet_deeplab_backbone reads them" in caplog.text
