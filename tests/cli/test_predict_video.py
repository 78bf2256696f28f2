"""`mask2former predict` of videos, cameras and in tiles."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.checkpoint.description import describe
from mask2former.cli.commands import main
from mask2former.predict.predictor import Predictor
from mask2former.predict.video import Video
from tests.helpers.brightness_model import brightness_config

CATEGORIES = [
    {"id": 7, "name": "boat", "isthing": 1, "color": [200, 30, 30]},
    {"id": 3, "name": "water", "isthing": 0, "color": [30, 30, 200]},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of a model that finds what is bright."""
    cfg = brightness_config()
    cfg.MODEL.CATEGORIES = CATEGORIES
    torch.save({"model": {"threshold": torch.tensor(100.0)}, **describe(cfg)}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five frames in which a bright part grows from the left."""
    path = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for number in range(5):
        frame = np.zeros((240, 320, 3), np.uint8)
        frame[:, : 64 * number] = (120, 160, 250)
        writer.write(frame)
    writer.release()
    return path


def run(model: Path, *words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", "--weights", str(model), *words])
    assert (end.value.code or 0) == status


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_a_video_becomes_a_video_of_pictures(
    model: Path, video: Path, tmp_path: Path, batch_size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    run(model, "--video", str(video), "--output", str(output), "--batch-size", batch_size)
    assert f"5 frames in {output}" in capsys.readouterr().out
    found, predictor = Video(output), Predictor(model, task="semantic", threshold=0.5)
    frames, given = list(found), Video(video)
    assert len(frames) == 5
    for frame, original in zip(frames, given, strict=True):
        expected = predictor(original).draw()
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 6
    assert np.abs(frames[1].astype(int) - frames[3]).mean() > 12
    found.close()
    given.close()


def test_what_videos_need(
    model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    output = ("--output", str(tmp_path / "out.mp4"))
    for words, status, text in [
        (("--video", str(video)), 2, "a video or camera needs --output FILE.mp4, --show, or both"),
        (("--video", str(video), "--webcam", *output), 2, "not allowed with argument"),
        (output, 2, "one of the arguments --input --video --webcam is required"),
        (("--input", str(tmp_path)), 2, "--input needs --output DIR"),
        (("--input", str(tmp_path), "--show", *output), 2, "--show is for --video and --webcam"),
        (("--webcam", "--no-pictures", *output), 2, "--no-pictures and --overwrite are for --input"),
        (("--webcam", "977", *output), 1, "error: OpenCV cannot open camera 977"),
        (("--webcam", "--show"), 1, "error: there is no display to show a window on"),
        (("--video", str(video), "--output", str(tmp_path)), 1, "is no video that can be written"),
        (("--input", str(tmp_path), *output, "--tile", "64", "--stride", "65"), 1, "must lie in 1..64"),
        (("--input", str(tmp_path), *output, "--stride", "65"), 1, "a stride needs tiles"),
    ]:
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
        run(model, *words, status=status)
        assert text in capsys.readouterr().err


def test_tiles(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.zeros((100, 220, 3), np.uint8)
    picture[30:70, 20:200] = 200
    Image.fromarray(picture).save(tmp_path / "large.png")
    words = ("--input", str(tmp_path / "large.png"), "--output", str(tmp_path / "out"), "--task", "instance")
    run(model, *words, "--tile", "80")
    found = json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"]
    assert [one["score"] for one in found] == pytest.approx([0.9, 0.7, 0.5])
    assert all(one["bbox"] == pytest.approx([20, 30, 180, 40], abs=2) for one in found)
    capsys.readouterr()
    run(model, *words, "--tile", "80", "--stride", "80", status=1)  # other settings than those of the folder
    assert "tiles" in capsys.readouterr().err
