"""Random augmentations of training, as configs describe them. They draw from numpy's global generator."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mask2former.d2 import transforms as T
from mask2former.d2.config import CfgNode
from mask2former.data.targets import unpack_labels


def build_lsj_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Large-scale jitter (Ghiasi et al., CVPR 2021): flip, scale, crop or pad to INPUT.IMAGE_SIZE squared."""
    side = cfg.INPUT.IMAGE_SIZE
    return [
        *_build_flip(cfg),
        _ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side),
        T.FixedSizeCrop((side, side)),
    ]


def build_resize_crop_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Shortest-edge resize, random crop, colour jitter and flip, each as its keys of INPUT ask for it."""
    keys = cfg.INPUT
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if keys.CROP.ENABLED:
        crop = T.RandomCrop(keys.CROP.TYPE, keys.CROP.SIZE)
        limit = keys.CROP.SINGLE_CATEGORY_MAX_AREA
        augmentations.append(crop if limit >= 1 else CategoryAreaCrop(crop, limit))
    if keys.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSD(keys.FORMAT))
    return augmentations + _build_flip(cfg)


def build_test_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Shortest-edge resize to INPUT.MIN_SIZE_TEST."""
    return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]


def _build_flip(cfg: CfgNode) -> list[T.Augmentation]:
    direction = cfg.INPUT.RANDOM_FLIP
    if direction == "none":
        return []
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP must be none, horizontal or vertical, not {direction!r}")
    return [T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")]


class _ResizeScale(T.ResizeScale):
    """Detectron2's, except that a long and narrow image keeps at least one pixel on its short side."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        return T.ResizeTransform(resize.h, resize.w, max(resize.new_h, 1), max(resize.new_w, 1), resize.interp)


class CategoryAreaCrop(T.Augmentation):
    """A random crop, drawn again up to ten times until no category fills too much of it.

    Asks for `sem_seg`, the (H, W) category map, possibly packed by `pack_labels`. Pixels without a category
    (-1) count neither as a category nor as area.
    """

    def __init__(self, crop: T.RandomCrop, max_area: float) -> None:
        """
        Args:
            max_area: the largest share of the crop for one category, within 0..1.
        """
        super().__init__()
        self.crop = crop
        self.max_area = max_area

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        categories = unpack_labels(sem_seg)
        for _ in range(10):
            transform = self.crop.get_transform(image)
            window = transform.apply_segmentation(categories)
            areas = np.bincount(window[window >= 0])
            if np.count_nonzero(areas) > 1 and areas.max() < areas.sum() * self.max_area:
                break
        return transform


class ColorAugSSD(T.Augmentation):
    """Photometric distortion of SSD (Liu et al., ECCV 2016): each of its four steps with chance 1/2."""

    def __init__(
        self,
        image_format: str,
        *,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        """
        Args:
            image_format: "RGB" or "BGR".
            brightness: largest shift, of 0..255.
            contrast: range of the factor.
            saturation: range of the factor.
            hue: largest turn, in OpenCV's units of 2 degrees.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT must be RGB or BGR, not {image_format!r}")
        self.image_format = image_format
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def get_transform(self, image: np.ndarray) -> "ColorAugSSDTransform":
        def chance() -> bool:
            return np.random.rand() < 0.5

        return ColorAugSSDTransform(
            image_format=self.image_format,
            brightness=np.random.uniform(-self.brightness, self.brightness) if chance() else 0.0,
            contrast=np.random.uniform(*self.contrast) if chance() else 1.0,
            saturation=np.random.uniform(*self.saturation) if chance() else 1.0,
            hue=int(np.random.randint(-self.hue, self.hue + 1)) if chance() else 0,
            contrast_first=chance(),
        )


@dataclass
class ColorAugSSDTransform(T.Transform):
    """A drawn distortion of uint8 images; it leaves coordinates and labels alone.

    The order is brightness, contrast if `contrast_first`, saturation, hue, contrast otherwise. Values are
    clipped to 0..255 after each step.
    """

    image_format: str
    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: int = 0
    contrast_first: bool = True

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        img = _scale(img, 1.0, self.brightness)
        if self.contrast_first:
            img = _scale(img, self.contrast)
        if self.saturation != 1 or self.hue != 0:
            img = self._distort_hsv(img)
        return img if self.contrast_first else _scale(img, self.contrast)

    def _distort_hsv(self, img: np.ndarray) -> np.ndarray:
        rgb = self.image_format == "RGB"
        hsv = cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_RGB2HSV if rgb else cv2.COLOR_BGR2HSV)
        hues = (np.arange(256) + self.hue) % 180
        table = np.stack([hues, _ramp(self.saturation, 0.0), np.arange(256)], axis=-1).astype(np.uint8)
        return cv2.cvtColor(cv2.LUT(hsv, table[None]), cv2.COLOR_HSV2RGB if rgb else cv2.COLOR_HSV2BGR)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> T.Transform:
        """Nothing: a distortion moves no pixel, and colours once clipped cannot be restored."""
        return T.NoOpTransform()


def _ramp(factor: float, shift: float) -> np.ndarray:
    """(256,) float table value → factor * value + shift, clipped."""
    return np.clip(factor * np.arange(256) + shift, 0, 255)


def _scale(img: np.ndarray, factor: float, shift: float = 0.0) -> Any:
    if factor == 1 and shift == 0:
        return img
    return cv2.LUT(np.ascontiguousarray(img), _ramp(factor, shift).astype(np.uint8))
