import pytest
import torch
import torch.nn.functional as F

from mask2former.d2.bundled.modeling import sem_seg_postprocess
from mask2former.modeling.mask_rows import OutputMasks, working_memory

SIZES = [  # masks, padded image, image, output
    ((8, 12), (32, 48), (32, 48), (32, 48)),
    ((8, 12), (32, 48), (27, 45), (27, 45)),
    ((8, 12), (32, 48), (27, 45), (61, 97)),
    ((8, 12), (32, 48), (30, 41), (13, 17)),
    ((7, 5), (21, 20), (21, 19), (21, 50)),
    ((1, 1), (4, 4), (3, 2), (1, 1)),
    ((9, 7), (9, 7), (9, 7), (9, 7)),
]


def masks_of(sizes: tuple[tuple[int, int], ...], count: int = 3) -> tuple[torch.Tensor, OutputMasks]:
    own, padded, image, output = sizes
    logits = 5 * torch.randn(count, *own, generator=torch.Generator().manual_seed(0))
    return logits, OutputMasks(logits, padded_size=padded, image_size=image, output_size=output)


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_are_those_of_two_interpolations(sizes: tuple[tuple[int, int], ...]) -> None:
    logits, masks = masks_of(sizes)
    padded = F.interpolate(logits[None], size=sizes[1], mode="bilinear", align_corners=False)[0]
    expected = sem_seg_postprocess(padded, sizes[2], *sizes[3])
    height, width = masks.size
    assert (len(masks), height, width) == expected.shape
    whole = masks.rows(slice(0, height))
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-5)
    for step in (1, 3, 10):
        parts = [masks.rows(slice(y, min(y + step, height))) for y in range(0, height, step)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-5)  # of logits up to 20
    chosen = masks.select(torch.tensor([2, 0]))
    torch.testing.assert_close(chosen.rows(slice(0, height)), whole[[2, 0]], rtol=1e-6, atol=1e-5)


def test_maps_can_be_changed_before_they_get_the_size_of_the_output() -> None:
    logits, masks = masks_of(SIZES[2])
    padded = F.interpolate(logits[None], size=SIZES[2][1], mode="bilinear", align_corners=False)[0]
    expected = sem_seg_postprocess(padded[:2].square(), SIZES[2][2], *SIZES[2][3])
    for rows in (slice(0, 61), slice(17, 40)):
        found = masks.rows(rows, before_output=lambda maps: maps[:2].square())
        torch.testing.assert_close(found, expected[:, rows], rtol=1e-6, atol=1e-4)  # of squares up to 400


def test_bands_cover_the_output_within_their_budget() -> None:
    masks = OutputMasks(torch.zeros(10, 25, 20), output_size=(100, 50))
    for max_bytes in (1, 10**5, 10**9):
        bands = list(masks.bands(max_bytes, num_maps=7))
        assert [y for band in bands for y in range(band.start, band.stop)] == list(range(100))
        rows = bands[0].stop
        assert rows == 1 or 10 * rows * 50 * 4 < max_bytes
    assert list(masks.bands(10**9)) == [slice(0, 100)]
    assert len(list(masks.bands(10**5, num_maps=100))) > len(list(masks.bands(10**5)))


def test_bands_of_a_smaller_output_count_the_rows_of_the_image_that_they_are_made_of() -> None:
    masks = OutputMasks(torch.zeros(10, 100, 50), output_size=(10, 5))
    two_rows = 2 * 10 * (5 * 10) * 50 * 4  # rows of the image to each, arrays of all masks, columns, bytes
    assert [band.stop - band.start for band in masks.bands(two_rows)] == [2] * 5


def test_the_budget_is_the_devices_own_unless_given() -> None:
    assert working_memory(torch.device("cpu")) == 32 * 2**20
    assert working_memory(torch.device("cuda", 1)) == 2**30
    masks = OutputMasks(torch.zeros(10, 4, 4), output_size=(2000, 500))
    assert list(masks.bands()) == list(masks.bands(32 * 2**20))
    assert len(list(masks.bands())) == 6
    assert list(masks.bands(2**30)) == [slice(0, 2000)]
