import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from mask2former.data.rle import encode_mask, to_json


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_run_lengths_are_pycocotools_own(dtype: type) -> None:
    random = np.random.default_rng(0)
    for shape in ((7, 5), (1, 9), (30, 41)):
        mask = random.random(shape) > 0.6
        expected = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert encode_mask(mask.astype(dtype) * dtype(1)) == expected
        assert encode_mask(mask[::-1, ::-1].astype(dtype)[::-1, ::-1]) == expected  # not contiguous
    assert encode_mask(3 * np.eye(4, dtype=np.uint8)) == encode_mask(np.eye(4, dtype=bool))
    assert mask_util.area(encode_mask(np.zeros((4, 6), dtype=dtype))) == 0


def test_counts_become_text() -> None:
    mask = np.eye(3, dtype=bool)
    rle = json.loads(json.dumps(to_json(encode_mask(mask))))
    assert rle["size"] == [3, 3]
    assert np.array_equal(mask_util.decode(rle), mask)
