import logging
import pickle

import pytest
import torch
from torch import nn

from mask2former.checkpoint import CheckpointError, load_weights
from mask2former.modeling.backbone import ResNet, SwinTransformer


class Predictor(nn.Module):
    def __init__(self, classes, queries, query_name):
        super().__init__()
        self.add_module(query_name, nn.Embedding(queries, 8))
        self.query_embed = nn.Embedding(queries, 8)
        self.class_embed = nn.Linear(8, classes + 1)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))


class Model(nn.Module):
    """A model with the names that matter, and little else."""

    def __init__(self, backbone=None, *, classes=5, queries=4, query_name="query_feat", no_object=0.1):
        super().__init__()
        self.backbone = backbone or ResNet(depth=18, out_features=["res2"])
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = Predictor(classes, queries, query_name)
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.full((classes + 1,), no_object))
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def swin(**settings):
    return SwinTransformer(**({"embed_dim": 8, "num_heads": (1, 1, 2, 2), "window_size": 4} | settings))


def save(path, state):
    if path.suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    else:
        torch.save({"model": dict(state)}, path)
    return path


@pytest.mark.parametrize("name", ["m.pkl", "m.pth"])
def test_same_model(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    source, target = Model(), Model(no_object=0.7)
    report = load_weights(target, save(tmp_path / name, source.state_dict()), strict=True)
    for key, value in source.state_dict().items():
        if key != "criterion.empty_weight":
            assert torch.equal(target.state_dict()[key], value), key
    assert target.criterion.empty_weight.tolist() == pytest.approx([0.7] * 6)
    assert len(report.loaded) == len(source.state_dict()) - 1
    assert not report.renamed
    assert not report.missing
    assert not report.skipped
    assert report.complete
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.messages == [f"Weights from {tmp_path / name}: all {len(report.loaded)} tensors loaded"]


def test_other_number_of_classes(tmp_path, caplog):
    source, target = Model(classes=5), Model(classes=3)
    initial = target.sem_seg_head.predictor.class_embed.weight.clone()
    report = load_weights(target, save(tmp_path / "m.pkl", source.state_dict()))
    names = ("sem_seg_head.predictor.class_embed.bias", "sem_seg_head.predictor.class_embed.weight")
    assert report.reinitialised == names
    assert not set(names) & set(report.loaded)
    assert torch.equal(target.sem_seg_head.predictor.class_embed.weight, initial)
    assert torch.equal(target.sem_seg_head.predictor.query_feat.weight, source.sem_seg_head.predictor.query_feat.weight)
    assert "re-initialised (classes differ)" in caplog.text
    assert names[0] in caplog.text


@pytest.mark.parametrize(("stored", "own"), [(4, 6), (6, 4)])
def test_other_number_of_queries_keeps_the_common_ones(tmp_path, stored, own):
    source, target = Model(queries=stored), Model(queries=own)
    initial = target.sem_seg_head.predictor.query_feat.weight.clone()
    report = load_weights(target, save(tmp_path / "m.pkl", source.state_dict()))
    assert report.resized == (
        "sem_seg_head.predictor.query_embed.weight",
        "sem_seg_head.predictor.query_feat.weight",
    )
    loaded = target.sem_seg_head.predictor.query_feat.weight
    assert torch.equal(loaded[:4], source.sem_seg_head.predictor.query_feat.weight[:4])
    assert torch.equal(loaded[4:], initial[4:])


def test_old_name_of_query_features_and_wrapper(tmp_path):
    source, target = Model(query_name="static_query"), Model()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    report = load_weights(target, save(tmp_path / "m.pth", state), strict=True)
    old = "module.sem_seg_head.predictor.static_query.weight"
    assert report.renamed[old] == "sem_seg_head.predictor.query_feat.weight"
    assert torch.equal(target.sem_seg_head.predictor.query_feat.weight, state[old])


def test_backbone_file(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    backbone, target = ResNet(depth=18), Model(ResNet(depth=18, norm="SyncBN"))
    state = dict(backbone.state_dict()) | {"stem.fc.weight": torch.zeros(10, 512)}
    report = load_weights(target, save(tmp_path / "R-18.pkl", state))
    for name, value in backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[name], value), name
    assert all(name.startswith("sem_seg_head.") for name in report.missing)
    assert report.skipped == ("backbone.stem.fc.weight",)
    assert "sem_seg_head.predictor" in report.table()
    assert report.backbone_only
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.messages[0].endswith(
        f"backbone loaded ({len(report.loaded)} tensors); sem_seg_head trained from scratch"
    )


def test_backbone_file_with_other_differences_is_a_warning(tmp_path, caplog):
    state = dict(ResNet(depth=18).state_dict())
    for name, change in (("stem.extra", torch.zeros(1)), ("stem.conv1.norm.bias", None)):
        changed = {**state, name: change}
        changed = {key: value for key, value in changed.items() if value is not None}
        caplog.clear()
        report = load_weights(Model(ResNet(depth=18)), save(tmp_path / "R-18.pkl", changed))
        assert not report.backbone_only
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert report.table() in caplog.text


def test_original_swin_file_is_a_backbone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = {name: value for name, value in swin().state_dict().items() if not name.startswith("norm")}
    state |= {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64), "head.weight": torch.zeros(10, 64)}
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    report = load_weights(Model(swin()), save(tmp_path / "swin.pth", state))
    assert report.backbone_only
    assert "backbone.norm0.weight" in report.missing
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_backbone_alone(tmp_path):
    source, target = ResNet(depth=18), ResNet(depth=18)
    load_weights(target, save(tmp_path / "R-18.pkl", source.state_dict()), strict=True)
    assert torch.equal(target.res5[1].conv2.weight, source.res5[1].conv2.weight)


def test_swin_of_another_window_size(tmp_path):
    source, target = Model(swin()), Model(swin(window_size=6))
    report = load_weights(target, save(tmp_path / "m.pkl", source.state_dict()))
    assert len(report.resized) == 12
    assert not report.missing
    assert not report.skipped
    index = target.backbone.layers[0].blocks[0].attn.relative_position_index
    assert index.shape == (36, 36)
    table = target.backbone.layers[0].blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(table[60], source.backbone.layers[0].blocks[0].attn.relative_position_bias_table[24])


@pytest.mark.parametrize("whole", [True, False])
def test_another_architecture_names_both_sides(tmp_path, whole):
    source = Model(swin())
    state = source.state_dict() if whole else source.backbone.state_dict()
    with pytest.raises(CheckpointError, match="belongs to another architecture") as caught:
        load_weights(Model(), save(tmp_path / "m.pkl", state))
    assert "the model has backbone." in str(caught.value)
    in_file = str(caught.value).partition("the file has ")[2]
    assert in_file.count(", ") == 5
    assert "layers.0.blocks.0." in in_file


def test_nothing_in_common(tmp_path):
    with pytest.raises(CheckpointError, match=r"m\.pkl belongs to another architecture.*the file has lstm\.w"):
        load_weights(Model(), save(tmp_path / "m.pkl", {"lstm.w": torch.zeros(1)}))


def test_another_shape_names_the_tensor_and_changes_nothing(tmp_path):
    state = dict(Model().state_dict())
    state["backbone.res2.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    target = Model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    message = r"res2\.0\.conv1\.weight is \(64, 64, 1, 1\) in the file and \(64, 64, 3, 3\) in the model"
    with pytest.raises(CheckpointError, match=message):
        load_weights(target, save(tmp_path / "m.pkl", state))
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_position_table_with_other_heads_is_an_error(tmp_path):
    path = save(tmp_path / "m.pkl", Model(swin()).state_dict())
    with pytest.raises(CheckpointError, match="relative_position_bias_table"):
        load_weights(Model(swin(num_heads=(2, 1, 2, 2))), path)


@pytest.mark.parametrize("change", ["missing", "unexpected", "classes"])
def test_strict_allows_no_difference(tmp_path, change):
    state = dict(Model(classes=3 if change == "classes" else 5).state_dict())
    if change == "missing":
        del state["sem_seg_head.predictor.norms.0.weight"]
    elif change == "unexpected":
        state["sem_seg_head.extra"] = torch.zeros(1)
    path = save(tmp_path / "m.pkl", state)
    load_weights(Model(), path)
    with pytest.raises(CheckpointError, match="does not fit the model exactly"):
        load_weights(Model(), path, strict=True)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pkl"):
        load_weights(Model(), tmp_path / "absent.pkl")


def test_resized_or_renamed_alone_is_no_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    report = load_weights(Model(queries=6), save(tmp_path / "m.pkl", Model(queries=4).state_dict()))
    assert not report.complete
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert report.table() in caplog.text
    assert "of these resized" in caplog.text
