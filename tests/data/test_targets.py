import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from mask2former.d2.transforms import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ResizeTransform,
    TransformList,
)
from mask2former.data.images import DataError
from mask2former.data.targets import (
    instance_targets,
    pack_labels,
    panoptic_targets,
    semantic_targets,
    unpack_labels,
)

IDS = np.array([[5, 5, 0, 9], [5, 7, 7, 9]], dtype=np.int32)


def segment(segment_id: int, category: int, iscrowd: int = 0) -> dict[str, int]:
    return {"id": segment_id, "category_id": category, "iscrowd": iscrowd}


SEGMENTS = [segment(9, 2), segment(5, 0), segment(7, 0)]


def test_panoptic_segments_become_masks() -> None:
    classes, masks = panoptic_targets(IDS, SEGMENTS, "x.png").transformed(NoOpTransform(), (2, 4))
    assert classes.dtype == torch.int64
    assert masks.planes.dtype == torch.uint8
    assert classes.tolist() == [2, 0, 0]
    for mask, segment_id in zip(masks.tensor, (9, 5, 7), strict=True):
        assert np.array_equal(mask.numpy(), segment_id == IDS)


def test_panoptic_agrees_with_a_comparison_per_segment() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.choice(256**3 - 1, 300, replace=False) + 1
    ids = np.append(numbers, 0)[rng.integers(0, 301, (90, 70))].astype(np.int32)
    ids.ravel()[:300] = numbers
    segments = [segment(int(number), int(rng.integers(0, 9))) for number in numbers]
    targets = panoptic_targets(ids, segments, "x.png")
    classes, masks = targets.transformed(NoOpTransform(), (90, 70))
    assert classes.tolist() == [item["category_id"] for item in segments]
    assert np.array_equal(masks.tensor.numpy(), ids == numbers[:, None, None])


def test_crowd_and_void_are_no_targets() -> None:
    segments = [segment(9, 2), segment(5, 0, iscrowd=1), segment(7, 0)]
    targets = panoptic_targets(IDS, segments, "x.png")
    classes, masks = targets.transformed(NoOpTransform(), (2, 4))
    assert classes.tolist() == [2, 0]
    assert not masks.tensor[:, IDS == 5].any()
    assert not masks.tensor[:, IDS == 0].any()
    assert np.array_equal(unpack_labels(targets.category_map()), [[-1, -1, -1, 2], [-1, 0, 0, 2]])


def test_segment_missing_from_the_png_is_a_class_without_pixels() -> None:
    targets = panoptic_targets(IDS, [*SEGMENTS, segment(8, 1), segment(4, 1, iscrowd=1)], "x.png")
    classes, masks = targets.transformed(NoOpTransform(), (2, 4))
    assert classes.tolist() == [2, 0, 0, 1]
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [2, 3, 2, 0]


def test_png_with_an_undescribed_segment() -> None:
    with pytest.raises(DataError, match=r"x\.png.*lacks.*\[7\]"):
        panoptic_targets(IDS, SEGMENTS[:2], "x.png")


def test_all_void_image() -> None:
    targets = panoptic_targets(np.zeros((3, 4), dtype=np.int32), [], "x.png")
    classes, masks = targets.transformed(HFlipTransform(4), (3, 4))
    assert classes.shape == (0,)
    assert classes.dtype == torch.int64
    assert masks.tensor.shape == (0, 3, 4)


def test_segments_cropped_away_are_kept_and_classes_and_instances_dropped() -> None:
    crop = CropTransform(0, 0, 2, 2)
    classes, masks = panoptic_targets(IDS, SEGMENTS, "x.png").transformed(crop, (2, 2))
    assert classes.tolist() == [2, 0, 0]
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [0, 3, 1]
    classes, _ = semantic_targets(IDS, "x.png", num_classes=10).transformed(crop, (2, 2))
    assert classes.tolist() == [5, 7]
    annotations = [{"segmentation": code(item["id"] == IDS), "category_id": item["category_id"]} for item in SEGMENTS]
    classes, _ = instance_targets(annotations, IDS.shape).transformed(crop, (2, 2))
    assert classes.tolist() == [0, 0]


@pytest.mark.parametrize("side", [7, 23, 40, 64, 81])
@pytest.mark.parametrize("highest", [18, 846])
def test_label_maps_are_resized_as_the_published_mapper_resizes_them(side: int, highest: int) -> None:
    labels = np.random.default_rng(0).integers(0, highest + 1, (40, 50))
    resize = TransformList([HFlipTransform(50), ResizeTransform(40, 50, side, side + 9), CropTransform(1, 2, 6, 5)])
    published = resize.apply_segmentation(labels.astype("double"))
    classes, masks = semantic_targets(labels, "x.png", num_classes=highest + 1).transformed(resize, (5, 6))
    assert np.array_equal(masks.tensor.numpy(), published == classes.numpy()[:, None, None])
    assert set(classes.tolist()) == set(published.ravel().tolist())


def test_labels_are_resized_to_the_nearest_centre() -> None:
    targets = panoptic_targets(IDS, SEGMENTS, "x.png")
    _, masks = targets.transformed(ResizeTransform(2, 4, 6, 12), (6, 12))
    assert np.array_equal(masks.tensor[1].numpy(), np.kron(IDS == 5, np.ones((3, 3), dtype=bool)))


@pytest.mark.parametrize("highest", [-1, 0, 254, 255, 846, 70000])
def test_packing_is_lossless(highest: int) -> None:
    labels = np.array([[-1, highest], [min(highest, 3), -1]])
    packed = pack_labels(labels)
    assert packed.dtype == np.uint8
    assert packed.ndim == (2 if highest < 255 else 3)
    assert np.array_equal(unpack_labels(packed), labels)


def test_padding_of_packed_labels_is_none() -> None:
    for packed in (pack_labels(np.array([[3]])), pack_labels(np.array([[300]]))):
        assert unpack_labels(np.full_like(packed, 255)).tolist() == [[-1]]


@pytest.mark.parametrize(("ignore", "dtype"), [(255, np.uint8), (65535, np.uint16)])
def test_semantic_one_mask_per_class_present(ignore: int, dtype: type) -> None:
    labels = np.array([[3, 3, ignore], [0, 3, 0]], dtype=dtype).astype(np.int32)
    targets = semantic_targets(labels, "x.png", ignore_label=ignore, num_classes=4)
    classes, masks = targets.transformed(NoOpTransform(), (2, 3))
    assert classes.tolist() == [0, 3]
    assert np.array_equal(masks.tensor.numpy(), np.stack([labels == 0, labels == 3]))


def test_semantic_labels_above_255() -> None:
    labels = np.array([[846, 0], [65535, 300]], dtype=np.int32)
    targets = semantic_targets(labels, "x.tif", ignore_label=65535, num_classes=847)
    classes, masks = targets.transformed(HFlipTransform(2), (2, 2))
    assert classes.tolist() == [0, 300, 846]
    assert np.array_equal(masks.tensor[2].numpy(), [[False, True], [False, False]])


@pytest.mark.parametrize("label", [4, 254, -1, -7])
def test_semantic_label_out_of_range_names_file_and_value(label: int) -> None:
    with pytest.raises(DataError, match=rf"x\.png: labels \[{label}\].*4 classes.*ignore label 255"):
        semantic_targets(np.array([[0, label, 255]]), "x.png", num_classes=4)


def test_semantic_low_labels_of_many_classes() -> None:
    targets = semantic_targets(np.array([[3, 65535], [254, 3]]), "x.tif", ignore_label=65535, num_classes=847)
    classes, masks = targets.transformed(NoOpTransform(), (2, 2))
    assert classes.tolist() == [3, 254]
    assert masks.tensor.tolist() == [[[True, False], [False, True]], [[False, False], [True, False]]]


def test_semantic_without_any_label() -> None:
    targets = semantic_targets(np.full((2, 2), 255), "x.png", num_classes=4)
    classes, masks = targets.transformed(NoOpTransform(), (2, 2))
    assert classes.shape == (0,)
    assert masks.tensor.shape == (0, 2, 2)


def test_instances_of_polygons_and_run_lengths() -> None:
    mask = np.zeros((8, 10), dtype=np.uint8)
    mask[2:5, 1:4] = 1
    annotations = [
        {"segmentation": mask_api.encode(np.asfortranarray(mask)), "category_id": 3, "iscrowd": 0},
        {"segmentation": [[1, 2, 4, 2, 4, 5, 1, 5]], "category_id": 1},
        {"segmentation": [[0, 0, 9, 0, 9, 7]], "category_id": 2, "iscrowd": 1},
    ]
    classes, masks = instance_targets(annotations, (8, 10)).transformed(HFlipTransform(10), (8, 10))
    assert classes.tolist() == [3, 1]
    assert np.array_equal(masks.tensor[0].numpy(), mask[:, ::-1].astype(bool))
    assert np.array_equal(masks.tensor[1].numpy(), mask[:, ::-1].astype(bool))


def test_instances_cropped_away_are_dropped() -> None:
    annotations = [
        {"segmentation": [[6, 6, 9, 6, 9, 9]], "category_id": 1},
        {"segmentation": [], "category_id": 1},
    ]
    classes, masks = instance_targets(annotations, (10, 10)).transformed(CropTransform(0, 0, 4, 4), (4, 4))
    assert classes.shape == (0,)
    assert masks.tensor.shape == (0, 4, 4)
    assert len(instance_targets([], (10, 10)).transformed(NoOpTransform(), (4, 4))[0]) == 0


def code(mask: np.ndarray) -> dict:
    return mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize("count", [1, 8, 21])
def test_run_lengths_and_polygons_are_moved_as_each_by_itself(count: int) -> None:
    rng = np.random.default_rng(count)
    masks = rng.random((count, 12, 10)) < 0.3
    corners = np.sort(rng.integers(0, 10, (count, 2, 2)), axis=1)
    polygons = [[[x0, y0, x1 + 2, y0, x1 + 2, y1 + 2, x0, y1 + 2]] for (x0, y0), (x1, y1) in corners.tolist()]
    transform = TransformList(
        [ResizeTransform(12, 10, 6, 5), HFlipTransform(5), PadTransform(0, 0, 3, 2, 5, 6, 128, 255)]
    )
    mixed = [polygons[i] if i % 3 == 1 else code(masks[i]) for i in range(count)]
    annotations = [{"segmentation": item, "category_id": i} for i, item in enumerate(mixed)]
    classes, moved = instance_targets(annotations, (12, 10)).transformed(transform, (8, 8))
    alone = [instance_targets([item], (12, 10)).transformed(transform, (8, 8)) for item in annotations]
    assert classes.tolist() == [c for own, _ in alone for c in own.tolist()]
    assert torch.equal(moved.tensor, torch.cat([own.tensor for _, own in alone]))
    for i, mask in zip(classes.tolist(), moved.tensor, strict=True):
        if i % 3 != 1:
            small = np.array(Image.fromarray(masks[i].astype(np.uint8)).resize((5, 6), Image.Resampling.NEAREST))
            assert np.array_equal(mask[:6, :5].numpy(), small[:, ::-1].astype(bool))


def test_padding_belongs_to_no_instance() -> None:
    pad = PadTransform(0, 0, 4, 3, 10, 8, 128, 255)  # as in large-scale jitter: labels are padded with 255
    _, masks = instance_targets([{"segmentation": code(np.ones((8, 10))), "category_id": 0}], (8, 10)).transformed(
        pad, (11, 14)
    )
    assert masks.tensor[0, :8, :10].all()
    assert masks.tensor.sum() == 80


def test_more_segments_than_a_byte_can_number() -> None:
    ids = np.arange(1, 301, dtype=np.int32).reshape(15, 20)
    segments = [segment(number, number % 7) for number in range(1, 301)]
    classes, masks = panoptic_targets(ids, segments, "x.png").transformed(CropTransform(0, 0, 20, 14), (14, 20))
    assert classes.tolist() == [number % 7 for number in range(1, 301)]
    assert masks.planes.shape == (38, 14, 20)
    assert np.array_equal(masks.tensor.numpy(), ids[:14] == np.arange(1, 301)[:, None, None])
