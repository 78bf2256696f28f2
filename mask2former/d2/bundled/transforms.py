"""Resizing, flipping, cropping and padding. Random numbers: NumPy's global ones, in Detectron2's order.

Shapes: H height, W width, C channels.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from mask2former.d2.bundled.augmentation import Augmentation

_TORCH_MODES = {Image.Resampling.NEAREST: "nearest", Image.Resampling.BILINEAR: "bilinear"}


class ResizeTransform(Transform):
    """Resize (h, w) to (new_h, new_w): uint8 by Pillow, other types by PyTorch."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = Image.Resampling.BILINEAR if interp is None else Image.Resampling(interp)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(h, w) or (h, w, C) → (new_h, new_w) or (new_h, new_w, C), same dtype."""
        if img.shape[:2] != (self.h, self.w):
            raise AssertionError(f"Image is {img.shape[:2]}, the transform was made for {(self.h, self.w)}.")
        method = self.interp if interp is None else Image.Resampling(interp)
        if img.dtype == np.uint8:
            channel = img[:, :, 0] if img.ndim == 3 and img.shape[2] == 1 else img
            resized = np.array(Image.fromarray(channel).resize((self.new_w, self.new_h), method))
            return resized.reshape(self.new_h, self.new_w, *img.shape[2:])
        pixels = torch.from_numpy(np.ascontiguousarray(img)).reshape(1, self.h, self.w, -1)
        size, mode = (self.new_h, self.new_w), _TORCH_MODES[method]
        align_corners = None if mode == "nearest" else False
        planes = F.interpolate(pixels.permute(0, 3, 1, 2), size, mode=mode, align_corners=align_corners)
        return planes.permute(0, 2, 3, 1).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y), changed in place."""
        coords[:, 0] *= self.new_w / self.w
        coords[:, 1] *= self.new_h / self.h
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) labels → (new_h, new_w), no label mixed with another."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> "ResizeTransform":
        """Back to the first size."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RandomFlip(Augmentation):
    """Flip with probability `prob`, in one direction."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError("Set exactly one of horizontal and vertical; use two RandomFlip for both.")
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """A flip or nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class ResizeShortestEdge(Augmentation):
    """Resize so that the shorter side has a length drawn from the given ones, the longer at most `max_size`.

    `sample_style` "range" draws from [first, second], "choice" one of the lengths; 0 leaves the image alone.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise AssertionError(f"sample_style must be 'range' or 'choice', not {sample_style!r}.")
        lengths = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else short_edge_length
        if sample_style == "range" and len(lengths) != 2:
            raise AssertionError(f"sample_style 'range' needs two lengths, not {lengths}.")
        self.short_edge_length = lengths
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resizing, or nothing for length 0."""
        if self.sample_style == "range":
            length = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            length = int(np.random.choice(self.short_edge_length))
        if length == 0:
            return NoOpTransform()
        height, width = image.shape[:2]
        new_height, new_width = self.get_output_shape(height, width, length, self.max_size)
        return ResizeTransform(height, width, new_height, new_width, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """(height, width) after resizing, rounded half up."""
        scale = short_edge_length / min(oldh, oldw)
        # The shorter side gets its length exactly, not by way of the scale.
        height = float(short_edge_length) if oldh < oldw else scale * oldh
        width = scale * oldw if oldh < oldw else float(short_edge_length)
        if max(height, width) > max_size:
            shrink = max_size * 1.0 / max(height, width)
            height, width = height * shrink, width * shrink
        return int(height + 0.5), int(width + 0.5)


class ResizeScale(Augmentation):
    """Resize, keeping proportions, to fit inside the target times a factor from [min_scale, max_scale]."""

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_height = target_height
        self.target_width = target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resizing."""
        scale = np.random.uniform(self.min_scale, self.max_scale)
        height, width = image.shape[:2]
        factor = min(self.target_height * scale / height, self.target_width * scale / width)
        # np.round takes halves to even, as Detectron2 does.
        new_height, new_width = int(np.round(height * factor)), int(np.round(width * factor))
        return ResizeTransform(height, width, new_height, new_width, self.interp)


class FixedSizeCrop(Augmentation):
    """Crop at random what exceeds `crop_size` (height, width); pad right and bottom what is smaller."""

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        """The crop, followed by the padding."""
        height, width = image.shape[:2]
        crop_height, crop_width = self.crop_size
        position = np.random.uniform(0.0, 1.0)  # one draw for both directions
        y0 = int(np.round(max(height - crop_height, 0) * position))
        x0 = int(np.round(max(width - crop_width, 0) * position))
        transforms: list[Transform] = [CropTransform(x0, y0, crop_width, crop_height, width, height)]
        if self.pad:
            right, bottom = max(crop_width - width, 0), max(crop_height - height, 0)
            kept = (min(width, crop_width), min(height, crop_height))
            transforms.append(PadTransform(0, 0, right, bottom, *kept, self.pad_value, self.seg_pad_value))
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Crop a window anywhere in the image. `crop_type` says what the two numbers of `crop_size` are:

    - "relative": fractions of height and width;
    - "relative_range": the smallest such fractions, each drawn up to 1;
    - "absolute": height and width in pixels, cut to the image;
    - "absolute_range": smallest and largest length of either side, in pixels, cut to the image.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        if crop_type not in ("relative", "relative_range", "absolute", "absolute_range"):
            raise AssertionError(f"Unknown crop_type {crop_type!r}.")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise AssertionError(f"crop_size of 'absolute_range' is (smallest, largest), not {crop_size}.")
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """The crop."""
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        y0 = np.random.randint(height - crop_height + 1)
        x0 = np.random.randint(width - crop_width + 1)
        return CropTransform(x0, y0, crop_width, crop_height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the window for an image of that (height, width), in pixels."""
        height, width = image_size
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(int(first), height), min(int(second), width)
        if self.crop_type == "absolute_range":
            low, high = int(first), int(second)
            crop_height = np.random.randint(min(height, low), min(height, high) + 1)
            crop_width = np.random.randint(min(width, low), min(width, high) + 1)
            return crop_height, crop_width
        if self.crop_type == "relative_range":
            smallest = np.asarray(self.crop_size, dtype=np.float32)
            first, second = (smallest + np.random.rand(2) * (1 - smallest)).tolist()
        return int(height * first + 0.5), int(width * second + 0.5)
