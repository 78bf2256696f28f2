import torch

from mask2former.checkpoint.convert import convert_names
from mask2former.modeling.backbone import ResNet, SwinTransformer


def names_of(model, prefix="backbone."):
    return [prefix + name for name in model.state_dict()]


def convert(names, model_names):
    converted = convert_names({name: torch.tensor(i) for i, name in enumerate(names)}, model_names)
    assert [converted.renamed.get(name, name) for name in names] == list(converted.weights)
    assert [int(value) for value in converted.weights.values()] == list(range(len(names)))
    return list(converted.weights)


def to_torchvision(name):
    """Spell a name of our ResNet as torchvision does."""
    name = name.replace("stem.conv1.norm", "bn1").replace("stem.conv1", "conv1")
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for i in (1, 2, 3):
        name = name.replace(f".conv{i}.norm", f".bn{i}")
    for i in (1, 2, 3, 4):
        name = name.replace(f"res{i + 1}.", f"layer{i}.")
    return name


def test_own_names_stay():
    names = [*names_of(ResNet(depth=18)), "sem_seg_head.a.weight"]
    assert convert(names, names) == names


def test_wrappers_are_stripped_also_when_nested():
    names = ["a.weight", "b.module.weight"]
    for wrapper in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        assert convert([wrapper + name for name in names], names) == names
    assert convert(["module.a.weight", "c"], names) == ["module.a.weight", "c"]


def test_torchvision_resnet():
    for depth in (18, 50):
        ours = list(ResNet(depth=depth).state_dict())
        theirs = [to_torchvision(name) for name in ours]
        assert "layer2.0.downsample.1.running_mean" in theirs
        model_names = ["backbone." + name for name in ours] + ["head.conv1.weight"]
        assert convert([*theirs, "fc.weight"], model_names) == [*model_names[:-1], "backbone.fc.weight"]


def test_original_swin():
    swin = SwinTransformer(embed_dim=8, num_heads=(1, 1, 1, 1))
    file = [name for name in swin.state_dict() if not name.startswith("norm")]
    file += ["norm.weight", "norm.bias", "head.weight", "layers.0.blocks.1.attn_mask"]
    model_names = [*names_of(swin), "sem_seg_head.pixel_decoder.layer_1.norm.weight", "sem_seg_head.layers.0.weight"]
    assert convert(file, model_names) == ["backbone." + name for name in file]


def test_names_of_version_1():
    ours = ["head.pixel_decoder.adapter_1.weight", "head.predictor.x", "head.x"]
    assert convert(["head.adapter_1.weight", "head.predictor.x", "head.x"], ours) == ours
    assert convert(["p.static_query.weight"], ["p.query_feat.weight"]) == ["p.query_feat.weight"]
    assert convert(["p.static_query.weight"], ["p.static_query.weight"]) == ["p.static_query.weight"]
    part = convert(["static_query.weight", "norm.weight"], ["p.query_feat.weight", "p.norm.weight"])
    assert part == ["p.query_feat.weight", "p.norm.weight"]


def test_foreign_names_stay():
    assert convert(["x.y", "z"], ["a.b"]) == ["x.y", "z"]
    assert convert(["x"], []) == ["x"]
