import numpy as np
import pytest
import torch

from mask2former.d2.structures import Instances
from mask2former.modeling.packed_masks import PackedMasks, pack_bits


def masks(count: int = 4, height: int = 5, width: int = 13) -> torch.Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(count)) > 0.5


def test_bits_are_numpys() -> None:
    wanted = masks(width=24)
    assert np.array_equal(pack_bits(wanted).numpy(), np.packbits(wanted.numpy(), axis=-1))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16])
def test_unpacking_gives_the_masks_back(width: int) -> None:
    wanted = masks(width=width)
    packed = PackedMasks.from_masks(wanted)
    assert (len(packed), packed.shape) == (4, (4, 5, width))
    assert packed.tensor.dtype == torch.bool
    assert torch.equal(packed.tensor, wanted)
    assert torch.equal(torch.stack(list(packed)), wanted)
    assert np.array_equal(np.asarray(packed), wanted.numpy())
    assert torch.equal(packed[2], wanted[2])
    assert torch.equal(packed[-1], wanted[-1])
    assert torch.equal(packed.to("cpu").cpu().tensor, wanted)
    assert "num_masks=4" in repr(packed)


def test_masks_are_a_field_of_instances() -> None:
    wanted = masks()
    instances = Instances((5, 13), pred_masks=PackedMasks.from_masks(wanted), scores=torch.arange(4.0))
    for item in (torch.tensor([3, 1]), instances.scores > 0, slice(1, 3), [0, 0]):
        chosen = instances[item]
        assert torch.equal(chosen.pred_masks.tensor, wanted[item])
        assert len(chosen) == len(chosen.pred_masks)
    assert len(instances[:0].pred_masks.tensor) == 0
    both = Instances.cat([instances[:1], instances.to("cpu")])
    assert torch.equal(both.pred_masks.tensor, wanted[[0, 0, 1, 2, 3]])


def test_errors() -> None:
    with pytest.raises(IndexError):
        PackedMasks.from_masks(masks())[4]
    with pytest.raises(ValueError, match=r"differ in size: \[\(5, 12\), \(5, 13\)\]"):
        PackedMasks.cat([PackedMasks.from_masks(masks()), PackedMasks.from_masks(masks(width=12))])
