from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from mask2former.modeling.inference import InstanceTask, run_tasks
from mask2former.modeling.mask_rows import OutputMasks
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.run_lengths import RLE, RunLengthMasks, RunLengths, encode_logits
from tests.helpers import inference_memory


def random_masks(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.6


def of_pycocotools(masks: torch.Tensor) -> list[RLE]:
    return [mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]


SPECIAL = {
    "empty": torch.zeros(2, 5, 4, dtype=torch.bool),
    "full": torch.ones(2, 5, 4, dtype=torch.bool),
    "columns": (torch.arange(4) % 2 == 0).expand(2, 5, 4),
    "rows": (torch.arange(5) % 2 == 0)[:, None].expand(2, 5, 4),
    "one column": random_masks(3, 9, 1),
    "one row": random_masks(3, 1, 9),
    "none": torch.zeros(0, 5, 4, dtype=torch.bool),
    "any": random_masks(11, 23, 17),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("step", [1, 3, 100])
def test_rows_in_any_portions_give_pycocotools_own_run_lengths(name: str, step: int) -> None:
    masks = SPECIAL[name]
    runs = RunLengths(len(masks), (masks.shape[1], masks.shape[2]))
    for part in masks.split(step, dim=1):
        runs.add(part)
    assert runs.result() == of_pycocotools(masks)


@pytest.mark.parametrize("corner", [(0, 0), (2, 1), (3, 0), (0, 2), (7, 5)])
def test_a_part_of_an_image_lies_where_its_corner_is(corner: tuple[int, int]) -> None:
    part = random_masks(3, 5, 4)
    image = torch.zeros(3, 12, 9, dtype=torch.bool)
    image[:, corner[0] : corner[0] + 5, corner[1] : corner[1] + 4] = part
    encoded = RunLengthMasks.encode(part, corner=corner, image=(12, 9))
    assert encoded.rles == of_pycocotools(image)
    assert encoded.image_size == (12, 9)
    assert RunLengthMasks.encode(PackedMasks.pack(part), corner=corner, image=(12, 9)).rles == encoded.rles


def test_forgotten_rows_are_noticed() -> None:
    runs = RunLengths(1, (5, 4))
    runs.add(SPECIAL["full"][:1, :4])
    with pytest.raises(RuntimeError, match="4 of 5 rows"):
        runs.result()


def test_logits_are_encoded_as_their_masks_are() -> None:
    logits = 5 * torch.randn(9, 8, 12, generator=torch.Generator().manual_seed(0))
    masks = OutputMasks(logits, padded_size=(32, 48), image_size=(27, 45), output_size=(61, 97))
    for max_bytes in (1, 10**5, 10**9):
        dense = torch.cat([masks.rows(rows) > 0 for rows in masks.bands(max_bytes)], dim=1)
        assert encode_logits(masks, max_bytes=max_bytes).rles == of_pycocotools(dense)
    assert encode_logits(masks.select(torch.tensor([], dtype=torch.int64))).rles == []


@pytest.mark.skipif(not inference_memory.STATUS.exists(), reason="asks Linux for the peak of memory")
def test_memory_does_not_hold_the_masks() -> None:
    """100 masks of 1500 x 2000 pixels are 286 MiB."""
    _, masks = inference_memory.predictions(1500, 2000)
    assert inference_memory.peak(lambda: encode_logits(masks.select(torch.arange(3)))) < 60  # what a process takes once
    assert inference_memory.peak(lambda: encode_logits(masks)) < 60


@pytest.mark.parametrize("max_bytes", [1, 10**9])
def test_instances_as_run_lengths_are_those_as_masks(max_bytes: int) -> None:
    random = torch.Generator().manual_seed(1)
    classes, logits = torch.randn(6, 4, generator=random), 5 * torch.randn(6, 8, 12, generator=random)
    masks = OutputMasks(logits, padded_size=(32, 48))
    dense, encoded = (
        run_tasks([InstanceTask(classes, masks.size, topk=9, run_lengths=kind)], masks, max_bytes=max_bytes)[0]
        for kind in (False, True)
    )
    assert isinstance(encoded.pred_masks, RunLengthMasks)
    assert encoded.pred_masks.rles == of_pycocotools(dense.pred_masks)
    assert torch.equal(encoded.pred_boxes.tensor, dense.pred_boxes.tensor)
    assert torch.equal(encoded.scores, dense.scores)
    assert torch.equal(encoded.pred_classes, dense.pred_classes)
    best = encoded[encoded.scores >= encoded.scores[2]]
    assert torch.equal(best.pred_masks.tensor, dense.pred_masks[:3])


def test_run_length_masks_are_read_as_masks_are() -> None:
    masks = random_masks(5, 9, 7)
    masks[3] = False
    encoded = RunLengthMasks.encode(masks)
    assert (len(encoded), encoded.shape, encoded.image_size) == (5, (5, 9, 7), (9, 7))
    assert torch.equal(encoded.tensor, masks)
    assert np.array_equal(np.asarray(encoded), masks.numpy())
    assert torch.equal(encoded[-2], masks[-2])
    assert all(torch.equal(one, mask) for one, mask in zip(encoded, masks, strict=True))
    chosen = torch.tensor([True, False, False, True, True])
    for item in (slice(1, 4), [4, 0], torch.tensor([2, 2]), chosen, [], torch.zeros(5, dtype=torch.bool)):
        assert torch.equal(encoded[item].tensor, masks[item])
    assert torch.equal(encoded.get_bounding_boxes().tensor, PackedMasks.pack(masks).get_bounding_boxes().tensor)
    assert encoded.areas().tolist() == masks.sum(dim=(1, 2)).tolist()
    assert encoded.cpu() is encoded.to("cpu") is encoded
    assert len(RunLengthMasks([], (9, 7)).get_bounding_boxes()) == 0
