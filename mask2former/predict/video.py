"""Videos and cameras: frames in, frames with what was found in them out, to a file or a window, one after the other."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from tqdm import tqdm

from mask2former.files import replacing

CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
"""Suffixes of videos that can be written, and how they are coded: as OpenCV's packages can everywhere."""
FRAME_RATE = 25.0
"""Frames a second, where a camera does not tell."""
TITLE = "mask2former (q: quit)"


class Drawable(Protocol):
    """What was found in a frame."""

    def draw(self) -> np.ndarray:
        """The frame under it, RGB uint8 (H, W, 3), all of one size."""


class FramePredictor(Protocol):
    """What segments frames: `mask2former.Predictor`, for RGB arrays."""

    def stream(self, images: Iterator[np.ndarray], *, batch_size: int) -> Iterator[Drawable]:
        """What was found in each frame, in their order."""


class Video:
    """An open video file or camera: iteration gives its frames, RGB uint8 (H, W, 3).

    Args:
        source: a file, or the number of a camera, from 0.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        if not isinstance(source, int) and not Path(source).exists():
            raise FileNotFoundError(f"no such file: {self.name}")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else self.name)
        if not self._capture.isOpened():
            missing = "is there one, and may this user read it?" if isinstance(source, int) else "is it a video?"
            raise OSError(f"OpenCV cannot open {self.name}: {missing}")
        self.frame_rate = self._capture.get(cv2.CAP_PROP_FPS) or FRAME_RATE
        """Frames a second."""
        self.length = None if isinstance(source, int) else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        """Frames that the file says it has."""

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            found, frame = self._capture.read()
            if not found:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """Close the file or camera."""
        self._capture.release()


def predict_video(
    predictor: FramePredictor,
    source: str | os.PathLike[str] | int,
    *,
    output: str | os.PathLike[str] | None = None,
    show: bool = False,
    batch_size: int = 1,
) -> int:
    """Draw what is found in each frame of a video or of a camera's; with a progress bar, and without the sound.

    Args:
        source: a file, or the number of a camera.
        output: a video file to write; its suffix is a key of `CODECS`. After Ctrl-C it holds the frames until then.
        show: show the frames in a window, until the key q or Esc is pressed, or it is closed.
        batch_size: frames that run together.

    Returns:
        The number of frames.

    Raises:
        ValueError: the output is not known to be a video, or there are no frames.
        OSError: the source cannot be read, the output not be written, or no window can be shown.
    """
    if output is not None and Path(output).suffix.lower() not in CODECS:
        raise ValueError(f"{os.fspath(output)} is no video that can be written: end its name in {', '.join(CODECS)}")
    if show:
        _check_display()
    video = Video(source)
    try:
        bar = tqdm(video, total=video.length, unit="frame")
        results = predictor.stream(iter(bar), batch_size=batch_size)
        pictures: Iterator[np.ndarray] = (result.draw() for result in results)
        first = next(pictures, None)
        if first is None:
            raise ValueError(f"no frames in {video.name}")
        pictures = chain([first], pictures)
        if show:
            pictures = _shown(pictures)
        count = sum(1 for _ in pictures) if output is None else _write(pictures, Path(output), video.frame_rate)
    finally:
        video.close()
    if video.length and bar.n < video.length and not show:
        tqdm.write(f"{video.name} says that it has {video.length} frames, but {bar.n} could be read", file=sys.stderr)
    return count


def _write(pictures: Iterator[np.ndarray], path: Path, frame_rate: float) -> int:
    """Write RGB pictures of one size to a file; returns how many."""
    count, interruption = 0, None
    with replacing(path, suffix=path.suffix) as temporary, contextlib.ExitStack() as stack:
        writer: cv2.VideoWriter | None = None
        try:
            for picture in pictures:
                frame = _even(picture)
                writer = writer or stack.enter_context(_writer(temporary, path, frame, frame_rate))
                writer.write(frame)
                count += 1
        except KeyboardInterrupt as error:
            if writer is None:
                raise
            interruption = error
    if interruption is not None:
        raise interruption
    return count


def _even(picture: np.ndarray) -> np.ndarray:
    """BGR, with the last row and column twice where their number is odd, which codecs would cut off."""
    height, width = picture.shape[:2]
    frame = np.ascontiguousarray(picture[:, :, ::-1])
    return cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)


@contextmanager
def _writer(temporary: Path, path: Path, frame: np.ndarray, frame_rate: float) -> Iterator[cv2.VideoWriter]:
    codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
    writer = cv2.VideoWriter(str(temporary), codec, frame_rate, (frame.shape[1], frame.shape[0]))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {path}: is its folder writable, and was OpenCV built with video?")
    try:
        yield writer
    finally:
        writer.release()


def _check_display() -> None:
    """Raise OSError where no window can be shown; OpenCV itself may end the process there."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise OSError("there is no display to show a window on: write a video with --output FILE.mp4 instead")
    if not getattr(cv2, "currentUIFramework", str)():  # builds without windows may lack the question too
        raise OSError(
            "this OpenCV was built without windows: in place of opencv-python-headless install opencv-python, or write "
            "a video with --output FILE.mp4"
        )


def _shown(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures as they are shown, until the user ends it."""
    cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
    try:
        for picture in pictures:
            cv2.imshow(TITLE, np.ascontiguousarray(picture[:, :, ::-1]))
            yield picture
            if cv2.waitKey(1) & 0xFF in (ord("q"), 27) or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
                return
    finally:
        cv2.destroyWindow(TITLE)
