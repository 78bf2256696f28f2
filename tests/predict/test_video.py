from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mask2former.predict.video import CODECS, TITLE, Video, predict_video


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve frames of 64 x 48, which grow brighter, red on the left."""
    path = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(12):
        frame = np.full((48, 64, 3), 20 * number, np.uint8)
        frame[:, :32, :2] = 0
        writer.write(frame)
    writer.release()
    return path


class Darken:
    """Finds in a frame its half brightness, and notes how far it is ahead of what was drawn."""

    def __init__(
        self, size: tuple[int, int] = (48, 64), fails_at: int = 10**9, error: type = KeyboardInterrupt
    ) -> None:
        self.size, self.fails_at, self.error = size, fails_at, error
        self.read = self.drawn = self.ahead = 0
        self.batch_sizes: set[int] = set()

    def stream(self, images: Iterator[np.ndarray], *, batch_size: int) -> Iterator[Any]:
        self.batch_sizes.add(batch_size)
        for image in images:
            self.read += 1
            self.ahead = max(self.ahead, self.read - self.drawn)
            if self.read > self.fails_at:
                raise self.error
            yield _Found(self, image // 2)


class _Found:
    def __init__(self, owner: Darken, image: np.ndarray) -> None:
        self.owner, self.image = owner, image

    def draw(self) -> np.ndarray:
        self.owner.drawn += 1
        return self.image[: self.owner.size[0], : self.owner.size[1]]


def frames_of(path: Path) -> np.ndarray:
    video = Video(path)
    frames = np.array(list(video))
    video.close()
    return frames


def check(frames: np.ndarray, count: int = 12) -> None:
    assert frames.shape == (count, 48, 64, 3)
    for number, frame in enumerate(frames):
        assert frame[:, 36:].mean() == pytest.approx(10 * number, abs=4)
        red, green, blue = frame[:, :28].mean(axis=(0, 1))
        assert red == pytest.approx(10 * number, abs=8)
        assert max(green, blue) < 12


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_becomes_a_video(source: Path, tmp_path: Path, suffix: str) -> None:
    predictor, output = Darken(), tmp_path / "new" / f"out{suffix}"
    assert predict_video(predictor, source, output=output, batch_size=3) == 12
    check(frames_of(output))
    video = Video(output)
    assert (video.frame_rate, video.length) == (12.5, 12)
    video.close()
    assert predictor.batch_sizes == {3}
    assert predictor.ahead == 1  # frames are streamed
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_no_row_or_column_of_an_odd_picture_is_lost(source: Path, tmp_path: Path) -> None:
    predict_video(Darken(size=(47, 63)), source, output=tmp_path / "out.mp4")
    check(frames_of(tmp_path / "out.mp4"))


def test_ctrl_c_keeps_the_frames_until_then(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_video(Darken(fails_at=7), source, output=tmp_path / "out.mp4")
    check(frames_of(tmp_path / "out.mp4"), count=7)


def test_an_error_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")
    for fails_at in (0, 7):
        with pytest.raises(RuntimeError):
            predict_video(Darken(fails_at=fails_at, error=RuntimeError), source, output=output)
    with pytest.raises(KeyboardInterrupt):
        predict_video(Darken(fails_at=0), source, output=output)
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.avi", "out.mp4"]


def test_what_is_no_video(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    output = tmp_path / "out.mp4"
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing\.mp4"):
        predict_video(Darken(), tmp_path / "missing.mp4", output=output)
    with pytest.raises(OSError, match=r"text\.mp4: is it a video"):
        predict_video(Darken(), tmp_path / "text.mp4", output=output)
    with pytest.raises(OSError, match="camera 977: is there one"):
        predict_video(Darken(), 977, output=output)
    with pytest.raises(ValueError, match=r"out\.jpg is no video .* \.mp4"):
        predict_video(Darken(), source, output=tmp_path / "out.jpg")
    assert not output.exists()


def capture_that_says(monkeypatch: pytest.MonkeyPatch, path: Path, **properties: float) -> list[Any]:
    """Let OpenCV open `path` in place of whatever is asked for, which is noted, with other properties."""
    capture, opened = cv2.VideoCapture, []

    class Capture:
        def __init__(self, source: Any) -> None:
            opened.append(source)
            self.file = capture(str(path))

        def get(self, key: int) -> float:
            return {getattr(cv2, name): value for name, value in properties.items()}.get(key, self.file.get(key))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    return opened


def test_a_video_that_ends_early_is_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict_video(Darken(), source, output=tmp_path / "out.mp4") == 12
    assert "could be read" not in capfd.readouterr().err
    capture_that_says(monkeypatch, source, CAP_PROP_FRAME_COUNT=15)
    assert predict_video(Darken(), source, output=tmp_path / "out.mp4") == 12
    assert "in.avi says that it has 15 frames, but 12 could be read" in capfd.readouterr().err


def test_no_window_without_a_display(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match=r"no display .* --output FILE\.mp4"):
        predict_video(Darken(), source, show=True)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "", raising=False)
    with pytest.raises(OSError, match="install opencv-python"):
        predict_video(Darken(), source, show=True)
    monkeypatch.delattr(cv2, "currentUIFramework")
    with pytest.raises(OSError, match="install opencv-python"):
        predict_video(Darken(), source, show=True)


@pytest.mark.parametrize(("key", "visible", "count"), [(-1, 1, 12), (ord("q"), 1, 1), (27, 1, 1), (-1, 0, 1)])
def test_a_window_shows_frames_until_it_is_closed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: int, visible: int, count: int
) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "WIN32", raising=False)
    monkeypatch.setattr(cv2, "namedWindow", lambda title, flags: None, raising=False)
    monkeypatch.setattr(cv2, "destroyWindow", lambda title: shown.append(np.array(title == TITLE)), raising=False)
    monkeypatch.setattr(cv2, "imshow", lambda title, frame: shown.append(frame.copy()), raising=False)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: key, raising=False)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda title, which: visible, raising=False)
    assert predict_video(Darken(), source, show=True, output=tmp_path / "out.mp4") == count
    assert shown.pop() == np.array(True)
    check(np.array(shown)[..., ::-1], count)
    check(frames_of(tmp_path / "out.mp4"), count)


def test_frames_of_a_camera(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = capture_that_says(monkeypatch, source, CAP_PROP_FPS=0, CAP_PROP_FRAME_COUNT=-1)
    assert predict_video(Darken(), 2, output=tmp_path / "out.mp4") == 12
    assert opened == [2]
    monkeypatch.undo()
    video = Video(tmp_path / "out.mp4")
    assert video.frame_rate == 25
    video.close()
