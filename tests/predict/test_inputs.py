"""Images from arrays, Pillow, paths, folders, patterns, addresses and iterators."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.predict.inputs import read_picture, read_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a.png, b.jpg and sub/c.png, whose red channel says which they are, a broken one and a text."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name, red in {"a.png": 10, "b.png": 20, "sub/c.png": 30}.items():
        Image.fromarray(picture(red)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("none")
    return tmp_path / "images"


def picture(red: int) -> np.ndarray:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = red
    return image


def reds(images: object, **options: object) -> list[int]:
    return [int(found.pixels[0, 0, 0]) for found in read_pictures(images, **options)]


def test_what_images_may_be(folder: Path) -> None:
    assert reds(picture(7)) == [7]
    assert reds(np.stack([picture(7), picture(8)])) == [7, 8]
    assert reds(Image.fromarray(picture(9))) == [9]
    assert reds(folder / "a.png") == reds(str(folder / "a.png")) == [10]
    assert reds(folder) == [10, 20]
    assert reds(str(folder / "**" / "*.png")) == [10, 20, 30]
    assert reds([picture(1), folder, Image.open(folder / "sub" / "c.png"), (picture(2),)]) == [1, 10, 20, 30, 2]
    assert [found.name for found in read_pictures([folder / "a.png", Image.open(folder / "b.png"), picture(1)])] == [
        (folder / "a.png").as_posix(),
        str(folder / "b.png"),
        "",
    ]


def test_channels_of_arrays_alone_are_told(folder: Path) -> None:
    assert reds([picture(7)[..., ::-1], folder / "a.png"], input_format="BGR") == [7, 10]
    assert reds([Image.new("L", (3, 3), 50), Image.fromarray(np.full((3, 3), 65535, np.uint16))]) == [50, 255]


def test_iterators_are_asked_for_no_more_than_the_next() -> None:
    asked = []

    def frames() -> Iterator[np.ndarray]:
        buffer = picture(0)
        for red in range(1000):
            asked.append(red)
            buffer[..., 0] = red % 256  # as cameras do
            yield buffer

    read = read_pictures(frames())
    first, second = next(read), next(read)
    assert asked == [0, 1]
    assert (first.pixels[0, 0, 0], second.pixels[0, 0, 0]) == (0, 1)


def test_addresses_are_downloaded_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    served = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            served.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        (found,) = read_pictures(f"{address}a.png")
        assert (found.name, found.pixels[0, 0, 0]) == (f"{address}a.png", 10)
        assert reds([f"{address}a.png", f"{address}sub/c.png"]) == [10, 30]
        with pytest.raises(FileNotFoundError, match="cannot download"):
            reds(f"{address}gone.png")
        server.shutdown()
    assert served.count("/a.png") == 1


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"aa\.png: cannot be read"):
        reds(folder)
    errors: dict[str, Exception] = {}
    assert reds([folder, folder / "gone.png"], on_error=errors.__setitem__) == [10, 20]
    assert list(errors) == [(folder / "aa.png").as_posix(), (folder / "gone.png").as_posix()]
    with pytest.raises(ValueError, match="expected an image uint8"):
        reds([picture(1)[..., 0]], on_error=errors.__setitem__)
    with pytest.raises(ValueError, match=r"no images in .*\*\.gif"):
        reds(str(folder / "*.gif"))
    for wrong in (3, b"bytes", [None], {"image": picture(1)}):
        with pytest.raises(TypeError, match="holds no images"):
            reds(wrong)


def test_one_image(folder: Path) -> None:
    assert read_picture(str(folder / "a.png")).name == (folder / "a.png").as_posix()
    for several in (folder, folder / "*.png", [picture(1)], np.stack([picture(1)]), iter([picture(1)])):
        with pytest.raises(ValueError, match="`stream` any number"):
            read_picture(several)
