"""Boxes, masks, instances and image batches."""

import copy
import pickle

import numpy as np
import pytest
import torch

from mask2former.d2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, PolygonMasks

SQUARE = np.array([1.0, 1.0, 4.0, 1.0, 4.0, 5.0, 1.0, 5.0])
TRIANGLE = [0.0, 0.0, 6.0, 0.0, 0.0, 6.0]
WRONG = (AssertionError, ValueError)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_box_mode_converts_both_ways_and_keeps_the_type(kind: type) -> None:
    rows = [1.0, 2.0, 4.0, 8.0] if kind in (list, tuple) else [[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]]
    box = kind(rows)
    there = BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert type(there) is type(box)
    assert np.asarray(there).reshape(-1, 4)[0].tolist() == [1.0, 2.0, 3.0, 6.0]
    back = BoxMode.convert(there, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert np.array_equal(np.asarray(back), np.asarray(box))
    assert np.array_equal(np.asarray(box), np.asarray(rows)), "the input stays as it was"
    assert BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYXY_ABS) is box


def test_box_mode_refuses_what_it_cannot_do() -> None:
    with pytest.raises((NotImplementedError, AssertionError)):
        BoxMode.convert([0.0, 0.0, 1.0, 1.0], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
    with pytest.raises(WRONG):
        BoxMode.convert([0.0, 0.0, 1.0], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert BoxMode(1) is BoxMode.XYWH_ABS, "annotation files hold the number"


def test_boxes() -> None:
    boxes = Boxes([[0, 0, 4, 2], [3, 1, 3, 5], [-1, -1, 9, 9]])
    assert boxes.tensor.dtype == torch.float32
    assert boxes.area().tolist() == [8, 0, 100]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=3).tolist() == [False, False, True]
    clone = boxes.clone()
    clone.clip((5, 6))
    assert clone.tensor[2].tolist() == [0, 0, 6, 5]
    assert boxes.tensor[2].tolist() == [-1, -1, 9, 9]
    assert len(boxes[1]) == 1
    assert len(boxes[torch.tensor([True, False, True])]) == 2
    assert [row.shape for row in boxes] == [(4,)] * 3
    assert len(Boxes.cat([boxes, boxes[:1]])) == 4
    assert boxes.to("cpu").device == boxes.device == torch.device("cpu")


def test_no_boxes_and_wrong_boxes() -> None:
    assert Boxes([]).tensor.shape == (0, 4)
    assert Boxes.cat([]).tensor.shape == (0, 4)
    assert Boxes(torch.zeros(0, 4)).area().shape == (0,)
    with pytest.raises(WRONG):
        Boxes(torch.zeros(3, 5))
    with pytest.raises(WRONG, match="NaN"):
        Boxes([[0, 0, float("nan"), 1]]).clip((3, 3))


def test_image_list_pads_right_and_bottom() -> None:
    images = [torch.ones(3, 5, 7), torch.full((3, 6, 4), 2.0)]
    batch = ImageList.from_tensors(images, size_divisibility=4, pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, 8, 8)
    assert batch.image_sizes == [(5, 7), (6, 4)]
    assert (batch.tensor[0, :, 5:] == -1).all()
    assert (batch.tensor[1, :, :, 4:] == -1).all()
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
    assert len(batch) == 2
    assert batch.to(torch.float64).tensor.dtype == torch.float64


@pytest.mark.parametrize(
    ("divisibility", "constraints", "size"),
    [
        (0, None, (5, 7)),
        (1, {}, (5, 7)),
        (0, {"square_size": 16}, (16, 16)),
        (4, {"size_divisibility": 5}, (5, 10)),
    ],
)
def test_image_list_constraints(divisibility: int, constraints: dict | None, size: tuple[int, int]) -> None:
    batch = ImageList.from_tensors([torch.ones(1, 5, 7)], divisibility, padding_constraints=constraints)
    assert batch.tensor.shape[-2:] == size


def test_image_list_of_masks_and_of_nothing_that_fits() -> None:
    assert ImageList.from_tensors([torch.ones(5, 7), torch.ones(6, 4)]).tensor.shape == (2, 6, 7)
    with pytest.raises(WRONG):
        ImageList.from_tensors([])
    with pytest.raises(WRONG):
        ImageList.from_tensors([torch.ones(1, 5, 7), torch.ones(3, 5, 7)])


def _instances() -> Instances:
    instances = Instances((4, 6), gt_classes=torch.tensor([3, 1]))
    instances.gt_boxes = Boxes([[0, 0, 1, 1], [0, 0, 2, 2]])
    instances.names = ["a", "b"]
    return instances


def test_instances_fields() -> None:
    instances = _instances()
    assert instances.image_size == (4, 6)
    assert len(instances) == 2
    assert instances.has("names")
    assert not instances.has("scores")
    assert instances.get("gt_classes") is instances.gt_classes
    assert set(instances.get_fields()) == {"gt_classes", "gt_boxes", "names"}
    instances.remove("names")
    assert not instances.has("names")
    with pytest.raises(AttributeError, match="scores"):
        instances.scores  # noqa: B018
    with pytest.raises(AssertionError):
        instances.scores = torch.zeros(3)
    with pytest.raises(NotImplementedError):
        iter(instances)
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_instances_index_every_field() -> None:
    instances = _instances()
    instances.remove("names")
    assert instances[1].gt_classes.tolist() == [1]
    assert instances[-1].gt_classes.tolist() == [1]
    assert instances[torch.tensor([False, True])].gt_boxes.tensor.tolist() == [[0, 0, 2, 2]]
    assert len(instances[torch.tensor([], dtype=torch.long)]) == 0
    assert instances[:1].image_size == (4, 6)
    with pytest.raises(IndexError):
        instances[2]


def test_instances_join_copy_and_move() -> None:
    instances = _instances()
    joined = Instances.cat([instances, instances])
    assert joined.gt_classes.tolist() == [3, 1, 3, 1]
    assert joined.names == ["a", "b", "a", "b"]
    assert len(joined.gt_boxes) == 4
    assert Instances.cat([instances]) is instances
    with pytest.raises(AssertionError):
        Instances.cat([instances, Instances((5, 5), gt_classes=torch.zeros(1))])
    moved = instances.to(torch.device("meta"))
    assert moved.gt_classes.is_meta
    assert moved.names == ["a", "b"]
    for twin in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert twin.gt_classes.tolist() == [3, 1]
    assert "num_instances=2" in repr(instances)


def test_bit_masks() -> None:
    masks = torch.zeros(3, 5, 6)
    masks[0, 1:3, 2:5] = 1
    masks[2, 4, 5] = 1
    bitmasks = BitMasks(masks)
    assert bitmasks.tensor.dtype == torch.bool
    assert tuple(bitmasks.image_size) == (5, 6)
    assert bitmasks.nonempty().tolist() == [True, False, True]
    assert bitmasks.get_bounding_boxes().tensor.tolist() == [[2, 1, 5, 3], [0, 0, 0, 0], [5, 4, 6, 5]]
    assert len(bitmasks[0]) == 1
    assert len(bitmasks[torch.tensor([0, 2])]) == 2
    assert len(BitMasks.cat([bitmasks, bitmasks])) == 6
    assert [mask.shape for mask in bitmasks] == [(5, 6)] * 3
    with pytest.raises(WRONG):
        BitMasks(masks[0])
    empty = BitMasks(np.zeros((0, 5, 6), dtype=bool))
    assert empty.get_bounding_boxes().tensor.shape == (0, 4)


def test_polygons_are_drawn_as_coco_draws_them() -> None:
    drawn = BitMasks.from_polygon_masks([[SQUARE], [], [SQUARE, np.array(TRIANGLE)]], 8, 8)
    assert drawn.tensor[0].sum() == 12
    assert drawn.tensor[0, 1:5, 1:4].all()
    assert not drawn.tensor[1].any()
    assert (drawn.tensor[2] >= drawn.tensor[0]).all()
    assert drawn.tensor[2, 0, 0]
    assert BitMasks.from_polygon_masks(PolygonMasks([[SQUARE]]), 8, 8).tensor.equal(drawn.tensor[:1])
    assert BitMasks.from_polygon_masks([], 8, 8).tensor.shape == (0, 8, 8)


def test_polygon_masks() -> None:
    polygons = PolygonMasks([[SQUARE], [torch.tensor(TRIANGLE), SQUARE], []])
    assert len(polygons) == 3
    assert polygons.nonempty().tolist() == [True, True, False]
    assert polygons[:2].get_bounding_boxes().tensor.tolist() == [[1, 1, 4, 5], [0, 0, 6, 6]]
    assert len(polygons[torch.tensor([True, False, True])]) == 2
    assert len(polygons[[0]]) == len(polygons[0]) == len(polygons[torch.tensor([1])]) == 1
    assert len(PolygonMasks.cat([polygons, polygons])) == 6
    assert [len(parts) for parts in polygons] == [1, 2, 0]
    assert polygons.to("cpu") is polygons
    for wrong in ([SQUARE], [[SQUARE[:4]]], [[SQUARE[:7]]], SQUARE):
        with pytest.raises(ValueError, match=r"polygon|Polygon"):
            PolygonMasks(wrong)
