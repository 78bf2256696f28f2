import pytest
import torch

from mask2former.checkpoint import read_checkpoint, write_weights

WEIGHTS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}


@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "w.safetensors"])
def test_written_weights_are_read(tmp_path, name):
    path = tmp_path / "new" / name
    write_weights(path, {"old": torch.zeros(1)})
    write_weights(path, WEIGHTS)
    found = read_checkpoint(path)["model"]
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key].float(), value.float()) for key, value in WEIGHTS.items())
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r"w\.onnx: weights are written to files that end in one of \.pkl"):
        write_weights(tmp_path / "w.onnx", WEIGHTS)
    assert not list(tmp_path.iterdir())
