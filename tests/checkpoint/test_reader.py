import io
import pickle
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from mask2former.checkpoint import CheckpointError, read_checkpoint

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Runs:
    """What a malicious pickle does: it names a function to call."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_published_pickles_of_every_protocol(tmp_path, protocol):
    content = {
        "model": OrderedDict(w=ARRAY, fortran=np.asfortranarray(ARRAY), n=np.int64(7), half=ARRAY.astype("f2")),
        "__author__": "somebody",
        "matching_heuristics": True,
        "misc": [1, 2.5, None, True, ("a", {"b": 3}), b"bytes", b"", 1 << 70],
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_checkpoint(path)
    assert torch.equal(checkpoint["model"]["w"], torch.from_numpy(ARRAY))
    assert torch.equal(checkpoint["model"]["fortran"], torch.from_numpy(ARRAY))
    assert checkpoint["model"]["half"].dtype == torch.float16
    assert checkpoint["model"]["n"] == 7
    assert {key: checkpoint[key] for key in content if key != "model"} == {
        key: value for key, value in content.items() if key != "model"
    }


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_both_spellings_of_numpy(tmp_path, core):
    data = pickle.dumps({"w": ARRAY}, protocol=2)
    assert b"numpy._core.multiarray" in data or b"numpy.core.multiarray" in data
    path = tmp_path / "model.pkl"
    path.write_bytes(data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core))
    assert torch.equal(read_checkpoint(path)["model"]["w"], torch.from_numpy(ARRAY))


def test_python_2_pickle(tmp_path):
    # Python 2 writes array bytes as a str ("U"), here those of one float32.
    data = (
        b"\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87Rq\x04(K\x01K\x01\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\x80\xbftbs."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(data)
    assert read_checkpoint(path)["model"]["w"].tolist() == [-1.0]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"model": {"w": ARRAY}, "extra": Runs()}, r"builtins\.exec"),
        (Counter(a=1), r"collections\.Counter"),
        ({"model": {"w": torch.zeros(1)}}, r"torch\._utils"),
        ({"model": {"w": ARRAY}, "n": 1j}, r"builtins\.complex"),
    ],
)
def test_pickles_that_name_anything_else_are_refused(tmp_path, content, name):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=rf"evil\.pkl asks for {name}"):
        read_checkpoint(path)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
@pytest.mark.parametrize("attack", ["families", "mutants"])
def test_no_pickle_does_more_than_raise(tmp_path, attack):
    argument = str(tmp_path) if attack == "families" else "100000"
    command = [sys.executable, "-m", "tests.helpers.pickle_attacks", attack, argument]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    assert {"families": "refused", "mutants": "100000 mutants"}[attack] in child.stdout


def test_tied_arrays_are_read_once(tmp_path):
    path = tmp_path / "tied.pkl"
    path.write_bytes(pickle.dumps({"a": ARRAY, "b": ARRAY}))
    weights = read_checkpoint(path)["model"]
    assert weights["a"].data_ptr() == weights["b"].data_ptr()
    weights["a"] += 1  # may be written to
    assert torch.equal(weights["b"], torch.from_numpy(ARRAY + 1))


def test_pth_that_unpacks_to_more_is_refused(tmp_path):
    torch.save({"model": {"w": torch.zeros(1 << 20)}}, tmp_path / "whole.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(tmp_path / "whole.pth") as source, zipfile.ZipFile(packed, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    assert torch.load(packed)["model"]["w"].numel() == 1 << 20  # PyTorch itself unpacks it
    with pytest.raises(CheckpointError, match=r"packed\.pth unpacks to 419\d{4} bytes, more than it has"):
        read_checkpoint(packed)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(1 << 40), "more than the file holds"),
        (torch.eye(3).to_sparse(), "sparse, nested or quantised"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "sparse, nested or quantised"),
    ],
)
def test_pth_whose_tensors_reach_elsewhere_is_refused(tmp_path, value, message):
    path = tmp_path / "evil.pth"
    torch.save({"model": {"w": torch.zeros(1)}, "other": [{"x": value}]}, path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_pth_of_containers_in_containers_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    value = []
    for _ in range(60):
        value = [value, value]
    torch.save({"model": {"w": torch.zeros(1)}, "other": value}, path)
    with pytest.raises(CheckpointError, match="one another over and over"):
        read_checkpoint(path)


def test_pth_with_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Runs()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth holds more than tensors and plain data"):
        read_checkpoint(path)


def test_other_codecs_are_refused(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.")
    with pytest.raises(CheckpointError, match="encoded as 'zlib'"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("wrap", ["model", "state_dict", None])
def test_other_formats(tmp_path, name, wrap):
    path = tmp_path / name
    weights = {"w": torch.from_numpy(ARRAY)}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({wrap: weights} if wrap else weights, path)
    assert read_checkpoint(str(path)).keys() == {"model"}
    assert torch.equal(read_checkpoint(path)["model"]["w"], weights["w"])


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.safetensors"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    weights = {"w": torch.randn(100)}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    whole = {
        ".pkl": pickle.dumps({"w": np.zeros(100)}),
        ".pth": buffer.getvalue(),
        ".safetensors": safetensors.torch.save(weights),
    }[path.suffix]
    for data in (whole[: len(whole) // 2], whole[:7], b"<html>Not found</html>"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read; it is truncated"):
            read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name} is empty"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no weights"),
        ({"model": 3}, "holds no weights"),
        ({"model": {"w": "text"}}, "entry 'w' is a str"),
        ({"model": {"w": [1.0]}}, "entry 'w' is a list"),
        ({"model": {"w": np.array([1j])}}, "entry 'w' is a ndarray"),
        ({"model": {"w": np.array([None])}}, "dtype 'O8', which is no plain number"),
        ({"model": {"w": np.array(["a"])}}, "dtype 'U1', which is no plain number"),
        ({"model": {"w": np.zeros(1, "f4,f4")}}, "dtype 'V8', which is no plain number"),
        ({"model": {1: ARRAY}}, "entry 1 is"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_missing_file_says_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file .*R-50\.pkl.*put it there, or set MODEL"):
        read_checkpoint(tmp_path / "R-50.pkl")


def test_unknown_suffix(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"must end in one of \.pkl, \.pth"):
        read_checkpoint(path)


def transformers_folder(path, config='{"model_type": "mask2former", "num_queries": 5}'):
    path.mkdir()
    (path / "config.json").write_text(config)
    safetensors.torch.save_file({"w": torch.from_numpy(ARRAY)}, path / "model.safetensors")
    return path


def test_folder_of_transformers(tmp_path):
    folder = transformers_folder(tmp_path / "model")
    checkpoint = read_checkpoint(folder)
    assert torch.equal(checkpoint["model"]["w"], torch.from_numpy(ARRAY))
    assert checkpoint["config"]["num_queries"] == 5
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_checkpoint(folder)
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    assert read_checkpoint(folder)["model"]["w"].tolist() == [1, 1]


def test_folder_without_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without config\.json.*MODEL\.WEIGHTS must be"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "maskformer"}', r"config\.json describes a model of type 'maskformer', not 'mask2former'"),
        ("{}", "a model of type None"),
        ("[1]", "a model of type None"),
        ('{"model_type": "mask2f', r"config\.json is not JSON"),
        ("", r"config\.json is not JSON"),
        ("[" * 100_000, r"config\.json is not JSON"),
    ],
)
def test_folder_of_something_else(tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(transformers_folder(tmp_path / "model", config))


def test_folder_with_truncated_weights(tmp_path):
    folder = transformers_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read; it is truncated"):
        read_checkpoint(folder)
