"""Transforms and the augmentations that draw them."""

import numpy as np
import pytest
from PIL import Image

from mask2former.d2 import transforms as T


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_resize_of_uint8_is_pillows_bilinear(image: np.ndarray) -> None:
    transform = T.ResizeTransform(37, 53, 20, 71)
    expected = np.asarray(Image.fromarray(image).resize((71, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(transform.apply_image(image), expected)
    assert np.array_equal(transform.apply_image(image[:, ::-1])[:, ::-1], expected)
    gray = transform.apply_image(image[:, :, :1])
    assert gray.shape == (20, 71, 1)
    assert np.array_equal(gray[..., 0], transform.apply_image(image[..., 0]))


def test_resize_of_labels_takes_the_nearest(image: np.ndarray) -> None:
    labels = (image[..., 0] // 64 * 50).astype(np.uint8)
    transform = T.ResizeTransform(37, 53, 74, 106)
    resized = transform.apply_segmentation(labels)
    assert np.array_equal(resized, labels.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(transform.apply_segmentation(labels.astype(np.float64)), resized)


def test_resize_of_floats_and_points(image: np.ndarray) -> None:
    transform = T.ResizeTransform(37, 53, 74, 106)
    ramp = np.arange(37, dtype=np.float32)[:, None] * np.ones((1, 53), dtype=np.float32)
    resized = transform.apply_image(ramp)
    assert resized.dtype == np.float32
    assert np.allclose(resized[1:-1, 0], np.arange(74)[1:-1] / 2 - 0.25)
    assert transform.apply_image(image.astype(np.float32)).shape == (74, 106, 3)
    assert transform.apply_coords(np.array([[53.0, 37.0]])).tolist() == [[106, 74]]
    assert transform.apply_box(np.array([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[2, 4, 6, 8]]
    inverse = transform.inverse()
    assert (inverse.h, inverse.w, inverse.new_h, inverse.new_w) == (74, 106, 37, 53)
    with pytest.raises(AssertionError):
        inverse.apply_image(image)


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True)])
def test_random_flip(image: np.ndarray, horizontal: bool, vertical: bool) -> None:
    flip = T.RandomFlip(prob=1.0, horizontal=horizontal, vertical=vertical).get_transform(image)
    expected = image[:, ::-1] if horizontal else image[::-1]
    assert np.array_equal(flip.apply_image(image), expected)
    never = T.RandomFlip(prob=0.0, horizontal=horizontal, vertical=vertical).get_transform(image)
    assert isinstance(never, T.NoOpTransform)
    with pytest.raises(ValueError, match=r"."):
        T.RandomFlip(horizontal=horizontal, vertical=not vertical)


@pytest.mark.parametrize(
    ("size", "length", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((333, 1000), 800, 1333, (444, 1333)),
        ((500, 500), 512, 2048, (512, 512)),
        ((3, 1000), 800, 1333, (4, 1333)),
    ],
)
def test_shortest_edge_shapes(size: tuple[int, int], length: int, max_size: int, expected: tuple[int, int]) -> None:
    assert T.ResizeShortestEdge.get_output_shape(*size, length, max_size) == expected


def test_shortest_edge_sampling(image: np.ndarray) -> None:
    np.random.seed(0)
    choice = T.ResizeShortestEdge([10, 20], 100, "choice")
    assert {choice.get_transform(image).new_h for _ in range(40)} == {10, 20}
    between = T.ResizeShortestEdge([10, 13], 100, "range")
    assert {between.get_transform(image).new_h for _ in range(80)} == {10, 11, 12, 13}
    assert T.ResizeShortestEdge(12).get_transform(image).new_h == 12
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    for wrong in ({"sample_style": "any"}, {"short_edge_length": [1, 2, 3]}):
        with pytest.raises(AssertionError):
            T.ResizeShortestEdge(**{"short_edge_length": [1, 2], **wrong})


def test_resize_scale_fits_the_scaled_target(image: np.ndarray) -> None:
    fixed = T.ResizeScale(2.0, 2.0, 100, 100).get_transform(image)
    assert (fixed.new_h, fixed.new_w) == (140, 200)
    np.random.seed(0)
    widths = {T.ResizeScale(0.1, 2.0, 100, 100).get_transform(image).new_w for _ in range(60)}
    assert 10 <= min(widths) < 40
    assert 160 < max(widths) <= 200


def test_fixed_size_crop_pads_what_is_smaller(image: np.ndarray) -> None:
    np.random.seed(0)
    transform = T.FixedSizeCrop((50, 30)).get_transform(image)
    out = transform.apply_image(image)
    assert out.shape == (50, 30, 3)
    assert (out[37:] == 128).all()
    assert (transform.apply_segmentation(image[..., 0])[37:] == 255).all()
    x0 = transform[0].x0
    assert np.array_equal(out[:37], image[:, x0 : x0 + 30])
    assert transform.apply_coords(np.array([[x0 + 2.0, 3.0]])).tolist() == [[2, 3]]
    assert T.FixedSizeCrop((50, 30), pad=False).get_transform(image).apply_image(image).shape == (37, 30, 3)
    padded = T.FixedSizeCrop((37, 60), pad_value=7, seg_pad_value=9).get_transform(image)
    assert (padded.apply_image(image)[:, 53:] == 7).all()
    assert (padded.apply_segmentation(image[..., 0])[:, 53:] == 9).all()
    positions = {T.FixedSizeCrop((10, 10)).get_transform(image)[0].y0 for _ in range(200)}
    assert positions >= {1, 13, 26}
    assert max(positions) <= 27


@pytest.mark.parametrize(
    ("kind", "size", "low", "high"),
    [
        ("relative", (0.5, 0.4), (19, 21), (19, 21)),
        ("relative_range", (0.5, 0.4), (18, 21), (37, 53)),
        ("absolute", (20, 99), (20, 53), (20, 53)),
        ("absolute_range", (10, 45), (10, 10), (37, 45)),
    ],
)
def test_random_crop(
    image: np.ndarray, kind: str, size: tuple[float, float], low: tuple[int, int], high: tuple[int, int]
) -> None:
    np.random.seed(0)
    shapes = []
    for _ in range(60):
        transform = T.RandomCrop(kind, size).get_transform(image)
        out = transform.apply_image(image)
        assert np.array_equal(
            out, image[transform.y0 : transform.y0 + transform.h, transform.x0 : transform.x0 + transform.w]
        )
        shapes.append(out.shape[:2])
    shapes = np.array(shapes)
    assert (shapes.min(0) >= low).all()
    assert (shapes.max(0) <= high).all()
    assert ("range" in kind) == bool(np.ptp(shapes, axis=0).any())


def test_random_crop_refuses_unknown_kinds() -> None:
    with pytest.raises(AssertionError):
        T.RandomCrop("half", (1, 1))


class LabelShift(T.Augmentation):
    """Moves by the label of the first pixel: looks at the image and the labels."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        shift = int(sem_seg[0, 0]) + self.offset + int(self._rand_range(0, 1))
        return T.CropTransform(shift, 0, image.shape[1] - shift, image.shape[0])


class OneArgument(T.Augmentation):
    def get_transform(self, img: np.ndarray) -> T.Transform:
        return T.HFlipTransform(img.shape[1])


def test_augmentations_are_given_what_they_name(image: np.ndarray) -> None:
    labels = np.full((37, 53), 3, dtype=np.uint8)
    aug_input = T.AugInput(image, sem_seg=labels, boxes=np.array([[10.0, 0.0, 20.0, 5.0]]))
    transform = LabelShift(offset=2)(aug_input)
    assert aug_input.image.shape == (37, 48, 3)
    assert aug_input.sem_seg.shape == (37, 48)
    assert aug_input.boxes.tolist() == [[5, 0, 15, 5]]
    assert np.array_equal(transform.apply_image(image), aug_input.image)
    single = T.AugInput(image)
    OneArgument()(single)
    assert np.array_equal(single.image, image[:, ::-1]), "a single argument is the image, whatever its name"
    assert "LabelShift" in repr(LabelShift(offset=2))


def test_augmentation_lists_apply_in_order(image: np.ndarray) -> None:
    augs = T.AugmentationList([T.ResizeShortestEdge(10), T.HFlipTransform(14), T.RandomFlip(prob=1.0)])
    aug_input = T.AugInput(image)
    transforms = augs(aug_input)
    assert isinstance(transforms, T.TransformList)
    assert aug_input.image.shape == (10, 14, 3)
    assert np.array_equal(aug_input.image, T.ResizeTransform(37, 53, 10, 14).apply_image(image))
    assert np.array_equal(transforms.apply_image(image), aug_input.image)
    nested = T.AugmentationList([augs, T.NoOpTransform()])
    assert len(nested(T.AugInput(image))) == 4
    flipped = T.AugInput(image)
    assert len(T.AugmentationList([T.RandomFlip(prob=1.0)])(flipped)) == 1
    assert np.array_equal(flipped.image, image[:, ::-1])


def test_wrong_augmentations_are_refused(image: np.ndarray) -> None:
    class Needy(T.Augmentation):
        def get_transform(self, image: np.ndarray, depth: np.ndarray) -> T.Transform: ...

    class Variable(T.Augmentation):
        def get_transform(self, image: np.ndarray, *more: np.ndarray) -> T.Transform: ...

    class Nothing(T.Augmentation):
        def get_transform(self, image: np.ndarray) -> T.Transform: ...

    with pytest.raises(AttributeError, match="depth"):
        Needy()(T.AugInput(image))
    with pytest.raises(TypeError, match="variable"):
        Variable()(T.AugInput(image))
    with pytest.raises((TypeError, AssertionError), match="Transform"):
        Nothing()(T.AugInput(image))
    with pytest.raises(AssertionError):
        T.AugmentationList([3])
    with pytest.raises(AssertionError):
        T.AugInput([[1]])
