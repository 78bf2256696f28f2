"""The demo tool, from the command line to the overlays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.predict.files import find_images, output_names
from tests.helpers.brightness_model import brightness_config
from tools.demo import build_parser, configure, main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, weights, and a folder of images with two good ones, a broken one and a text file."""
    cfg = brightness_config()
    cfg.DATASETS.TEST = ()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"threshold": torch.tensor(100.0)}, tmp_path / "weights.pth")
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, 30:] = 200
    Image.fromarray(picture).save(images / "a.png")
    Image.fromarray(picture).save(images / "B.JPG")
    Image.fromarray(picture).save(images / "deeper" / "a.png")
    (images / "notes.txt").write_text("not an image")
    return tmp_path


def arguments(folder: Path, *inputs: str) -> list[str]:
    paths = [str(folder / name) for name in inputs]
    return [
        *("--config-file", str(folder / "config.yaml"), "--weights", str(folder / "weights.pth")),
        *("--input", *paths, "--output", str(folder / "out")),
    ]


@pytest.mark.parametrize("task", ["auto", "panoptic", "instance", "semantic"])
def test_writes_an_overlay_for_each_image(folder: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(folder, "images"), "--task", task]) == 0
    assert sorted(path.name for path in (folder / "out").glob("*.png")) == ["B.png", "a.png"]
    overlay = np.asarray(Image.open(folder / "out" / "a.png").convert("RGB")).astype(int)
    height, width = overlay.shape[:2]
    assert max(height, width) >= 640
    dark, bright = overlay[10, 10], overlay[10, width - 10]
    assert np.ptp(bright) > 30  # coloured, where the image was grey
    assert bright.max() > dark.max()
    assert "2 predictions" in capsys.readouterr().out


def test_broken_and_missing_images_are_reported_and_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "b_broken.png").write_bytes((folder / "images" / "a.png").read_bytes()[:60])
    assert main(arguments(folder, "images", "missing.jpg")) == 1
    assert sorted(path.name for path in (folder / "out").glob("*.png")) == ["B.png", "a.png"]
    output = capsys.readouterr()
    assert "b_broken.png" in output.err
    assert "missing.jpg" in output.err
    assert "2 predictions" in output.out
    assert "2 images skipped" in output.out


def test_needs_images_and_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments(folder, "images/*.gif"))
    assert "no images in" in capsys.readouterr().err
    without_weights = arguments(folder, "images")
    del without_weights[2:4]
    with pytest.raises(SystemExit, match="2"):
        main(without_weights)
    assert "give --weights" in capsys.readouterr().err


def test_pairs_reach_the_config(folder: Path) -> None:
    options = [*arguments(folder, "images"), "INPUT.MIN_SIZE_TEST", "64"]
    cfg = configure(build_parser().parse_args(options))
    assert cfg.INPUT.MIN_SIZE_TEST == 64


def test_inputs(folder: Path) -> None:
    images = folder / "images"
    found = find_images([str(images), str(images / "**" / "a.png"), str(images / "a.png"), "gone.png"])
    assert found == [images / "B.JPG", images / "a.png", images / "deeper" / "a.png", Path("gone.png")]
    assert output_names(found) == ["B", "a", "a_2", "gone"]
    address = "https://example.org/deep/a%20b.jpg?size=3"
    assert find_images([address]) == [address]
    assert output_names([address, Path("a b.png")]) == ["a b", "a b_2"]
    assert output_names([Path("x/a.png"), Path("y/a.png")], {"y/a.png": "a"}) == ["a_2", "a"]
