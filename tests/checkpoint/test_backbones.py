import pytest
import timm
import torch
import torchvision
from torch import nn

from mask2former.checkpoint import CheckpointError, load_weights
from mask2former.checkpoint.backbones import convert_backbone
from mask2former.modeling.backbone import ResNet, SwinTransformer


def randomised(model, seed=0):
    """Give every tensor, statistics included, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.dim() > 1:
            value.copy_(noise * value[0].numel() ** -0.5)
        elif name.endswith(("weight", "running_var")):
            value.copy_(1 + 0.1 * noise.abs())
        else:
            value.copy_(0.1 * noise)
    return model.eval()


def features_of(model, image):
    with torch.no_grad():
        return model.eval()(image)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_resnet(tmp_path, depth):
    theirs = randomised(getattr(torchvision.models, f"resnet{depth}")())
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = ResNet(depth=depth)
    report = load_weights(ours, tmp_path / "resnet.pth")
    assert not report.missing
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    stages = [f"layer{i}" for i in (1, 2, 3, 4)]
    wanted = features_of(torchvision.models.feature_extraction.create_feature_extractor(theirs, stages), image)
    found = features_of(ours, image)
    for stage, name in zip(stages, found, strict=True):
        torch.testing.assert_close(found[name], wanted[stage], rtol=1e-4, atol=1e-4)


def small_swin(**settings):
    size = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}
    return SwinTransformer(**size, drop_path_rate=0.0, **settings)


def small_timm_swin(**settings):
    size = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4, "img_size": 256}
    return timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, **size, **settings)


def swin_features_match(ours, theirs, image, tolerance=1e-4):
    """Compare what the stages give, before the norms that detection adds.

    Every map must be larger than a window: timm does not shift windows within a map of their size, detection does.
    """
    for i in range(4):
        setattr(ours, f"norm{i}", nn.Identity())
    wanted = features_of(theirs, image)
    found = features_of(ours, image)
    for ours_stage, theirs_stage in zip(found.values(), wanted, strict=True):
        theirs_first = theirs_stage.permute(0, 3, 1, 2)  # timm's are channels last
        torch.testing.assert_close(ours_stage, theirs_first, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("spelling", ["features", "classifier", "older"])
def test_timm_swin(tmp_path, spelling):
    theirs = randomised(small_timm_swin(features_only=True))
    state = theirs.state_dict()
    if spelling == "classifier":
        state = {name.replace("layers_", "layers."): value for name, value in state.items()}
        state |= {"norm.weight": torch.ones(128), "head.fc.weight": torch.zeros(10, 128)}
        assert set(state) <= set(small_timm_swin().state_dict())
    elif spelling == "older":  # before 0.9 the step followed the stage, as in the original
        state = {name.replace("layers_", "layers."): value for name, value in state.items()}
        for i in (1, 2, 3):
            step = [name for name in state if name.startswith(f"layers.{i}.downsample.")]
            state |= {name.replace(f"s.{i}.", f"s.{i - 1}.", 1) + "'": state.pop(name) for name in step}
        state = {name.removesuffix("'"): value for name, value in state.items()}
    torch.save(state, tmp_path / "swin.pth")
    ours = small_swin()
    report = load_weights(ours, tmp_path / "swin.pth")
    assert all(name.startswith("norm") for name in report.missing)
    assert all(name.startswith(("norm.", "head.")) for name in report.skipped)
    swin_features_match(ours, theirs, torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)))


def test_timm_swin_tiny(tmp_path):
    theirs = randomised(
        timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=448, features_only=True)
    )
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    ours = SwinTransformer(drop_path_rate=0.0)
    load_weights(ours, tmp_path / "swin.pth")
    swin_features_match(ours, theirs, torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(1)))


def caffe2_name(name):
    """Spell a name of our ResNet as Caffe2 does."""
    if name.startswith("stem.conv1.norm"):
        name = name.replace("stem.conv1.norm", "res_conv1_bn")
    name = name.replace("stem.conv1", "conv1").replace("shortcut", "branch1").replace(".norm", "_bn")
    for i, letter in enumerate("abc"):
        name = name.replace(f"conv{i + 1}", f"branch2{letter}") if name.startswith("res") else name
    name = name.replace("res_branch2a_bn", "res_conv1_bn").replace(".", "_")
    for ours, theirs in (("running_mean", "rm"), ("running_var", "riv"), ("bn_weight", "bn_s"), ("bias", "b")):
        name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
    return name.removesuffix("weight") + "w" if name.endswith("weight") else name


def test_caffe2_names():
    state = ResNet(depth=50).state_dict()
    file = {caffe2_name(name): value for name, value in state.items()}
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res5_2_branch2c_bn_riv"} <= set(file)
    file |= {"fc1000_w": torch.zeros(1), "pred_b": torch.zeros(1)}
    converted = convert_backbone(file)
    assert converted.kind == "caffe2"
    assert converted.left_out == ("fc1000_w", "pred_b")
    assert list(converted.weights) == list(state)
    assert all(converted.weights[name] is value for name, value in state.items())


@pytest.mark.parametrize("torchvision_like", [False, True])
def test_stem_of_r103(tmp_path, torchvision_like):
    source = randomised(ResNet(depth=50, stem="deeplab", stem_channels=16, res2_channels=32, width_per_group=8))
    state = dict(source.state_dict())
    if torchvision_like:
        for i in (1, 2, 3):
            for name in [name for name in state if name.startswith(f"stem.conv{i}.")]:
                plain = name.replace(f"stem.conv{i}.norm", f"bn{i}").replace(f"stem.conv{i}", f"conv{i}")
                state[plain] = state.pop(name)
        state = {
            name.replace("res2", "layer1")
            .replace("res3", "layer2")
            .replace("res4", "layer3")
            .replace("res5", "layer4")
            .replace("shortcut.norm", "downsample.1")
            .replace("shortcut", "downsample.0")
            .replace("conv1.norm", "bn1")
            .replace("conv2.norm", "bn2")
            .replace("conv3.norm", "bn3"): value
            for name, value in state.items()
        }
    torch.save(state, tmp_path / "R-103.pth")
    target = ResNet(depth=50, stem="deeplab", stem_channels=16, res2_channels=32, width_per_group=8)
    load_weights(target, tmp_path / "R-103.pth", strict=True)
    image = torch.randn(1, 3, 64, 64)
    for wanted, found in zip(features_of(source, image).values(), features_of(target, image).values(), strict=True):
        assert torch.equal(wanted, found)


def test_original_swin_keeps_its_names():
    swin = small_swin(ape=True)
    file = {name: value for name, value in swin.state_dict().items() if not name.startswith("norm")}
    file |= {"norm.weight": torch.ones(1), "head.bias": torch.ones(1), "layers.0.blocks.1.attn_mask": torch.ones(1)}
    converted = convert_backbone(file, "swin")
    assert not converted.renamed
    assert set(file) - set(converted.weights) == set(converted.left_out)
    assert "absolute_pos_embed" in converted.weights
    assert not any("relative_position_index" in name for name in converted.weights)


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["a.b", "c"], "auto", "no weights of any known kind; known are torchvision, .*begin with a.b, c"),
        (["layer1.0.conv1.weight"], "swin", "no weights of kind 'swin', but of 'torchvision'"),
        (["patch_embed.proj.weight"], "torchvision", "no weights of kind 'torchvision', but of 'swin'"),
    ],
)
def test_other_kinds(names, kind, message):
    with pytest.raises(CheckpointError, match=message):
        convert_backbone(dict.fromkeys(names, torch.zeros(1)), kind)
