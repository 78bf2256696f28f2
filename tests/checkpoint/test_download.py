import hashlib
import http.server
import logging
import pickle
import threading

import numpy as np
import pytest

from mask2former.checkpoint import CheckpointError, local_path, read_checkpoint
from mask2former.checkpoint.download import _cache_file
from mask2former.checkpoint.published import get_checkpoint_url, published_models

DATA = pickle.dumps({"w": np.arange(6, dtype=np.float32)})


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `DATA` under every name; `/cut/` breaks off, `/absent/` is not there."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/absent/"):
            self.send_error(404)
            return
        self.send_response(200)
        if not self.path.startswith("/unknown-length/"):
            self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[:10] if self.path.startswith("/cut/") else DATA)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server on this machine, and an empty cache."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def place_of(server, cache):
    return cache / "hosts" / server.address.removeprefix("http://").replace(":", "_")


@pytest.mark.parametrize("folder", ["x/y", "unknown-length"])
def test_downloads_once(server, tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    address = f"{server.address}/{folder}/model.pkl"
    for _ in range(2):
        assert read_checkpoint(address)["model"]["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert server.requests == [f"/{folder}/model.pkl"]
    place = place_of(server, tmp_path) / folder / "model.pkl"
    assert local_path(address) == place
    assert caplog.messages == [f"Downloading {address} to {place}"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"model_final_{hashlib.md5(DATA).hexdigest()[:6]}.pkl", "md5"),
        (f"resnet50-{hashlib.sha256(DATA).hexdigest()[:8]}.pth", "sha256"),
    ],
)
def test_checksum_in_the_name(server, tmp_path, name, kind):
    assert local_path(f"{server.address}/{name}").read_bytes() == DATA
    start = 6 if kind == "md5" else 8
    stem, suffix = name[: -4 - start], name[-4:]
    wrong = f"{stem}{'0' * start}{suffix}"
    with pytest.raises(CheckpointError, match=rf"its {kind} begins with {name[-4 - start : -4]}, not 0+\."):
        local_path(f"{server.address}/{wrong}")
    assert not (tmp_path / wrong).exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["model_0004999.pth", "swin_base_patch4_window12_384_22k.pth", "model_final.pkl"])
def test_other_names_have_no_checksum(server, name):
    assert local_path(f"{server.address}/{name}").read_bytes() == DATA


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent/a/model.pkl", "404"), ("cut/a/model.pkl", f"ended after 10 of {len(DATA)} bytes")],
)
def test_failed_downloads_say_where_to_put_the_file(server, tmp_path, path, reason):
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        read_checkpoint(f"{server.address}/{path}")
    assert str(caught.value).endswith(f"get it by other means and put it at {place_of(server, tmp_path) / path}")
    assert not (tmp_path / path).exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("address", "url", "place"),
    [
        (
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
            "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl",
            "detectron2/ImageNetPretrained/torchvision/R-50.pkl",
        ),
        (
            "zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep",
            "https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/panoptic/maskformer2_R50_bs16_50ep/"
            "model_final_94dc52.pkl",
            "maskformer/mask2former/coco/panoptic/maskformer2_R50_bs16_50ep/model_final_94dc52.pkl",
        ),
        (
            "https://example.org/a/../b/model%2B.pkl?download=1",
            "https://example.org",
            "hosts/example.org/a/b/27c97122cc140687/model+.pkl",
        ),
    ],
)
def test_without_a_network(tmp_path, monkeypatch, address, url, place):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def fail(url, **_):
        raise OSError(f"no route to {url}")

    monkeypatch.setattr("mask2former.checkpoint.download.urlopen", fail)
    with pytest.raises(FileNotFoundError) as caught:
        read_checkpoint(address)
    assert f"cannot download {url}" in str(caught.value)
    assert str(caught.value).endswith(f"put it at {tmp_path / place}")
    (tmp_path / place).write_bytes(DATA)
    assert read_checkpoint(address)["model"].keys() == {"w"}


def test_hosts_and_queries_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    addresses = [
        f"http{s}://{place}" for s in ("", "s") for place in ("a.org/m.pkl?id=1", "a.org/m.pkl?id=2", "a.org/m.pkl",
        "a.org:81/m.pkl", "user:word@b.org/m.pkl", "../m.pkl", "[::1]/m.pkl", "dl.fbaipublicfiles.com/m.pkl")
    ]  # fmt: skip
    files = [_cache_file(address) for address in addresses]
    assert files[:8] == files[8:]
    assert len(set(files)) == 8
    assert files[7] == tmp_path / "m.pkl", "as iopath keeps it"
    assert all(file.is_relative_to(tmp_path) and ".." not in file.parts and file.name == "m.pkl" for file in files)
    assert not any("word" in str(file) for file in files)


def test_unknown_published_model():
    with pytest.raises(CheckpointError, match=r"zoo://coco/R50: no published model is named 'coco/R50'"):
        local_path("zoo://coco/R50")


def test_published_names_carry_checksums():
    for name in published_models():
        assert get_checkpoint_url(name).rpartition("_")[2].removesuffix(".pkl").isalnum()
        assert len(get_checkpoint_url(name).rpartition("_")[2]) == len("94dc52.pkl")


def test_several_processes_download_once(server):
    address = f"{server.address}/model.pkl"
    threads = [threading.Thread(target=local_path, args=(address,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == ["/model.pkl"]
