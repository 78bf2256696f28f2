import io
import pickle
from collections import Counter, OrderedDict
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch

from mask2former.checkpoint import CheckpointError, read_checkpoint, reader

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
        "misc": [1, 2.5, None, ("a", {3}), b"bytes", 1 + 2j],
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
    ],
)
def test_pickles_that_name_anything_else_are_refused(tmp_path, content, name):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=rf"evil\.pkl asks for {name}"):
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


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
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
        ({"model": {"w": np.array([None])}}, "entry 'w' is a ndarray"),
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


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("detectron2://ImageNetPretrained/torchvision/R-50.pkl", "detectron2/ImageNetPretrained/torchvision/R-50.pkl"),
        ("https://example.org/a/b/model.pkl", "a/b/model.pkl"),
    ],
)
def test_addresses_use_the_cache(tmp_path, monkeypatch, address, place):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    cached = tmp_path / place

    def fail(url, *args, **kwargs):
        raise URLError(f"no route to {url}")

    monkeypatch.setattr("iopath.common.file_io.download", fail)
    with pytest.raises(FileNotFoundError) as caught:
        read_checkpoint(address)
    assert "no route to https://" in str(caught.value)
    assert str(caught.value).endswith(f"put it at {cached}")

    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(pickle.dumps({"w": ARRAY}))
    assert read_checkpoint(address)["model"].keys() == {"w"}
    assert reader.local_path(address) == cached


def test_download_goes_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def download(url, folder, *, filename):
        (path := f"{folder}/{filename}")
        with open(path, "wb") as file:
            file.write(pickle.dumps({"w": ARRAY}))
        return path

    monkeypatch.setattr("iopath.common.file_io.download", download)
    assert read_checkpoint("https://example.org/x/model.pkl")["model"].keys() == {"w"}
    assert (tmp_path / "x" / "model.pkl").is_file()
