from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from mask2former.d2.structures import BitMasks, Instances
from mask2former.modeling import masks as masks_module
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.points import sample_points


def dense(count: int, height: int = 11, width: int = 13) -> Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(count)) < 0.4


@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_packing_is_lossless(count: int) -> None:
    masks = dense(count)
    for same in (masks, masks.float(), masks.to(torch.uint8), 255 * masks.to(torch.uint8), -7 * masks.int()):
        packed = PackedMasks.pack(same)
        assert packed.planes.shape == ((count + 7) // 8, 11, 13)
        assert len(packed) == count
        assert torch.equal(packed.tensor, masks)
    assert PackedMasks.pack(packed) is packed


def test_masks_are_chosen_as_from_bit_masks() -> None:
    masks = dense(19)
    packed = PackedMasks.pack(masks)
    for item in (slice(3, 12), [4, 4, 18], torch.tensor([9, 0]), masks[:, 0, 0]):
        assert torch.equal(packed[item].tensor, masks[item])
        assert packed[item].planes is packed.planes
    assert torch.equal(packed[7], masks[7])
    assert torch.equal(packed[-1], masks[-1])
    assert torch.equal(torch.stack(list(packed)), masks)
    assert np.array_equal(np.asarray(packed), masks.numpy())
    assert torch.equal(torch.ones(11, 13)[packed[2]], torch.ones(11, 13)[masks[2]])
    with pytest.raises(IndexError):
        packed[19]
    assert torch.equal(packed[3:12][[1, 2]].tensor, masks[[4, 5]])


def test_masks_are_a_field_of_instances() -> None:
    wanted = dense(4)
    instances = Instances((11, 13), pred_masks=PackedMasks.pack(wanted), scores=torch.arange(4.0))
    for item in (torch.tensor([3, 1]), instances.scores > 0, slice(1, 3), [0, 0]):
        chosen = instances[item]
        assert torch.equal(chosen.pred_masks.tensor, wanted[item])
        assert len(chosen) == len(chosen.pred_masks)
    assert instances[:0].pred_masks.tensor.shape == instances[:0].pred_masks.shape == (0, 11, 13)
    both = Instances.cat([instances[:1], instances.to("cpu")])
    assert torch.equal(both.pred_masks.tensor, wanted[[0, 0, 1, 2, 3]])


def test_masks_of_different_sizes_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"differ in size: \[\(11, 12\), \(11, 13\)\]"):
        PackedMasks.cat([PackedMasks.pack(dense(4)), PackedMasks.pack(dense(4, width=12))])


def test_padding_is_empty() -> None:
    masks = dense(9)
    padded = PackedMasks.pack(masks).padded(16, 20)
    assert padded.image_size == (16, 20)
    assert torch.equal(padded.tensor[:, :11, :13], masks)
    assert padded.tensor.sum() == masks.sum()


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masks > 0\.5"):
        PackedMasks.pack(torch.full((1, 1, 2), 0.7))
    with pytest.raises(ValueError, match=r"\(T, H, W\), not \(2, 3\)"):
        PackedMasks.pack(torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("size", [(10, 13), (11, 12), (10, 20)])
def test_masks_are_not_cropped_instead_of_padded(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"masks of \(11, 13\) are larger than"):
        PackedMasks.pack(dense(9)).padded(*size)


@pytest.mark.parametrize("decoded_pixels", [1, 3 * 11 * 13, 10**9])
@pytest.mark.parametrize("count", [0, 1, 10])
def test_sampling_equals_that_of_float_masks(monkeypatch: pytest.MonkeyPatch, count: int, decoded_pixels: int) -> None:
    monkeypatch.setattr(masks_module, "values_at_once", lambda device: decoded_pixels)
    masks = dense(count)
    packed = PackedMasks.pack(masks)
    points = torch.rand(count, 50, 2, generator=torch.Generator().manual_seed(5)) * 2.4 - 1.2  # some outside
    assert torch.equal(packed.sample(points), sample_points(masks.float(), points))
    if count:
        shared = packed.sample(points[0])
        assert torch.equal(shared, sample_points(masks.float(), points[:1].expand(count, -1, -1)))


def test_wrong_planes_are_named() -> None:
    for dtype, shape in ((torch.bool, (1, 2, 3)), (torch.uint8, (2, 3))):
        with pytest.raises(ValueError, match=rf"uint8 \(G, H, W\), not {dtype} {re.escape(str(shape))}"):
            PackedMasks(torch.zeros(shape, dtype=dtype))


def test_boxes_are_those_of_bit_masks() -> None:
    masks = torch.rand(19, 12, 17, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[3] = False
    packed = PackedMasks.pack(masks)[list(range(18, -1, -1))]
    assert isinstance(packed, BitMasks)
    assert torch.equal(packed.get_bounding_boxes().tensor, BitMasks(masks.flip(0)).get_bounding_boxes().tensor)
    assert PackedMasks.pack(masks[:0]).get_bounding_boxes().tensor.shape == (0, 4)
