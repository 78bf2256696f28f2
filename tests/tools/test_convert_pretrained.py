import pickle

import pytest
import torch
import torchvision

from mask2former.checkpoint import CheckpointError, load_weights, read_checkpoint
from mask2former.modeling.backbone import ResNet
from tools.convert_pretrained import main


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("convert") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["R-18.pkl", "R-18.pth", "R-18.safetensors"])
def test_every_format(resnet, tmp_path, capsys, name):
    main([str(resnet), str(tmp_path / "new" / name), "--kind", "torchvision"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    printed = capsys.readouterr().out
    assert "fc" in printed
    assert "100 tensors, 11.2 M numbers" in printed
    model = ResNet(depth=18)
    load_weights(model, tmp_path / "new" / name, strict=True)
    assert torch.equal(model.stem.conv1.weight, torch.load(resnet)["conv1.weight"])


def test_pickle_is_detectron2s(resnet, tmp_path):
    main([str(resnet), str(tmp_path / "R-18.pkl")])
    content = pickle.loads((tmp_path / "R-18.pkl").read_bytes())
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "torchvision"
    assert content["model"]["res2.0.conv1.norm.running_var"].shape == (64,)
    assert read_checkpoint(tmp_path / "R-18.pkl")["model"].keys() == content["model"].keys()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("a.onnx", "auto", "end in one of"), ("a.pkl", "swin", "but of 'torchvision'")],
)
def test_errors_write_nothing(resnet, tmp_path, name, kind, message):
    with pytest.raises((CheckpointError, OSError, ValueError), match=message):
        main([str(resnet), str(tmp_path / name), "--kind", kind])
    assert not list(tmp_path.iterdir())


def test_missing_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        main([str(tmp_path / "none.pth"), str(tmp_path / "a.pkl")])
