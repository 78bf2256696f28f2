from typing import Any

import cv2
import numpy as np
import pytest

from mask2former.d2.config import CfgNode
from mask2former.d2.transforms import AugInput, AugmentationList, RandomCrop, RandomFlip, ResizeScale, Transform
from mask2former.data.augmentation import (
    CategoryAreaCrop,
    ColorAugSSD,
    ColorAugSSDTransform,
    build_lsj_augmentation,
    build_resize_crop_augmentation,
    build_test_augmentation,
)
from mask2former.data.targets import pack_labels, unpack_labels


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(30, 40), (200, 20), (7, 300)])
@pytest.mark.parametrize("scales", [(0.1, 0.1), (0.1, 2.0), (2.0, 2.0)])
def test_lsj_gives_the_square(cfg: CfgNode, shape: tuple[int, int], scales: tuple[float, float]) -> None:
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = scales
    aug_input = AugInput(np.zeros((*shape, 3), np.uint8), sem_seg=np.zeros(shape, np.uint8))
    AugmentationList(build_lsj_augmentation(cfg))(aug_input)
    assert aug_input.image.shape == (64, 64, 3)
    assert aug_input.sem_seg.shape == (64, 64)


def test_lsj_pads_images_with_128_and_labels_with_255(cfg: CfgNode, image: np.ndarray) -> None:
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 0.5
    aug_input = AugInput(image, sem_seg=np.zeros((30, 40), np.uint8))
    AugmentationList(build_lsj_augmentation(cfg))(aug_input)
    assert (aug_input.sem_seg[:24, :32] == 0).all()
    assert (aug_input.sem_seg[24:] == 255).all()
    assert (aug_input.image[24:] == 128).all()
    assert (aug_input.image[:, 32:] == 128).all()


def test_resize_crop_follows_its_keys(cfg: CfgNode, image: np.ndarray) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.RANDOM_FLIP = "none"
    aug_input = AugInput(image)
    AugmentationList(build_resize_crop_augmentation(cfg))(aug_input)
    assert aug_input.image.shape == (60, 80, 3)

    cfg.INPUT.MAX_SIZE_TRAIN = 70
    aug_input = AugInput(image)
    AugmentationList(build_resize_crop_augmentation(cfg))(aug_input)
    assert aug_input.image.shape == (53, 70, 3)

    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [20, 30]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.RANDOM_FLIP = "vertical"
    kinds = [type(item).__name__ for item in build_resize_crop_augmentation(cfg)]
    assert kinds == ["ResizeShortestEdge", "CategoryAreaCrop", "ColorAugSSD", "RandomFlip"]


def test_unknown_flip_is_an_error(cfg: CfgNode) -> None:
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError, match=r"INPUT\.RANDOM_FLIP.*'diagonal'"):
        build_lsj_augmentation(cfg)


def test_test_augmentation_limits_the_longer_side(cfg: CfgNode, image: np.ndarray) -> None:
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 70
    aug_input = AugInput(image)
    AugmentationList(build_test_augmentation(cfg))(aug_input)
    assert aug_input.image.shape == (53, 70, 3)


@pytest.mark.parametrize("offset", [0, 300])
def test_crop_avoids_a_dominant_category(offset: int) -> None:
    categories = np.full((100, 100), offset)
    categories[:, 60:] = offset + 1
    image = np.zeros((100, 100, 3), np.uint8)
    crop = CategoryAreaCrop(RandomCrop("absolute", (20, 20)), 0.75)
    shares = []
    for _ in range(200):
        aug_input = AugInput(image, sem_seg=pack_labels(categories))
        crop(aug_input)
        window = unpack_labels(aug_input.sem_seg)
        assert window.shape == (20, 20)
        shares.append(max((window == offset).mean(), (window == offset + 1).mean()))
    # One draw succeeds with chance 1/9 or so; ten of them with about 2/3.
    assert 0.5 < np.mean(np.array(shares) < 0.75) < 0.95


def test_pixels_without_category_do_not_count() -> None:
    categories = np.full((20, 20), -1)
    categories[0, :5], categories[0, 5:10] = 0, 1
    image = np.zeros((20, 20, 3), np.uint8)
    draws = []

    class Spy(RandomCrop):
        def get_transform(self, image: np.ndarray) -> Transform:
            draws.append(1)
            return super().get_transform(image)

    CategoryAreaCrop(Spy("relative", (1.0, 1.0)), 0.75)(AugInput(image, sem_seg=pack_labels(categories)))
    assert len(draws) == 1
    categories[:] = -1
    CategoryAreaCrop(Spy("relative", (1.0, 1.0)), 0.75)(AugInput(image, sem_seg=pack_labels(categories)))
    assert len(draws) == 1 + 10


def test_brightness_and_contrast_clip(image: np.ndarray) -> None:
    transform = ColorAugSSDTransform(image_format="RGB", brightness=20.5, contrast=1.3)
    brighter = np.clip(image.astype(np.float32) + 20.5, 0, 255).astype(np.uint8)
    expected = np.clip(brighter.astype(np.float64) * 1.3, 0, 255).astype(np.uint8)
    assert np.array_equal(transform.apply_image(image), expected)


def test_saturation_and_hue_act_in_hsv(image: np.ndarray) -> None:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float64)
    hsv[..., 0] = (hsv[..., 0] - 18) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.4, 0, 255)
    expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    transform = ColorAugSSDTransform(image_format="RGB", saturation=1.4, hue=-18)
    assert np.array_equal(transform.apply_image(image), expected)


def test_formats_give_the_same_colours(image: np.ndarray) -> None:
    settings = {"brightness": -9.0, "contrast": 0.7, "saturation": 0.6, "hue": 11, "contrast_first": False}
    rgb = ColorAugSSDTransform(image_format="RGB", **settings).apply_image(image)
    bgr = ColorAugSSDTransform(image_format="BGR", **settings).apply_image(image[:, :, ::-1])
    assert np.array_equal(rgb, bgr[:, :, ::-1])


def test_the_order_matters() -> None:
    image = np.full((1, 1, 3), (250, 120, 10), np.uint8)
    settings = {"image_format": "RGB", "contrast": 1.5, "saturation": 0.5}
    first = ColorAugSSDTransform(**settings, contrast_first=True).apply_image(image)
    last = ColorAugSSDTransform(**settings, contrast_first=False).apply_image(image)
    assert not np.array_equal(first, last)


def test_jitter_leaves_labels_and_its_input_alone(image: np.ndarray) -> None:
    before = image.copy()
    labels = np.arange(1200, dtype=np.int32).reshape(30, 40)
    changed = 0
    for _ in range(20):
        aug_input = AugInput(image, sem_seg=labels)
        ColorAugSSD("RGB")(aug_input)
        assert aug_input.image.shape == image.shape
        assert aug_input.image.dtype == np.uint8
        assert np.array_equal(aug_input.sem_seg, labels)
        changed += not np.array_equal(aug_input.image, image)
    assert np.array_equal(image, before)
    assert changed > 10
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        ColorAugSSD("HSV")


@pytest.mark.parametrize("build", [build_lsj_augmentation, build_resize_crop_augmentation])
def test_half_of_the_images_are_flipped(cfg: CfgNode, image: np.ndarray, build: Any) -> None:
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    (flip,) = (item for item in build(cfg) if isinstance(item, RandomFlip))
    flipped = [np.array_equal(flip.get_transform(image).apply_image(image), image[:, ::-1]) for _ in range(1000)]
    assert 430 < sum(flipped) < 570


def test_each_step_of_the_jitter_is_drawn_half_of_the_time_over_all_of_its_range(image: np.ndarray) -> None:
    jitter = ColorAugSSD("RGB")
    drawn = [jitter.get_transform(image) for _ in range(2000)]
    for name, none, low, high in (
        ("brightness", 0.0, -32.0, 32.0),
        ("contrast", 1.0, 0.5, 1.5),
        ("saturation", 1.0, 0.5, 1.5),
        ("hue", 0, -18, 18),
    ):
        values = np.array([getattr(transform, name) for transform in drawn])
        active = values[values != none]
        assert 0.45 < len(active) / len(values) < 0.55
        assert low <= active.min() < low + 0.01 * (high - low)
        assert high >= active.max() > high - 0.01 * (high - low)
    assert 0.45 < np.mean([transform.contrast_first for transform in drawn]) < 0.55


def test_scales_are_drawn_from_the_range_of_the_config(cfg: CfgNode) -> None:
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 100, 0.5, 2.0
    (resize,) = (item for item in build_lsj_augmentation(cfg) if isinstance(item, ResizeScale))
    sides = [resize.get_transform(np.zeros((100, 100, 3), np.uint8)).new_h for _ in range(500)]
    assert 50 <= min(sides) < 54
    assert 196 < max(sides) <= 200
    assert 115 < np.mean(sides) < 135
