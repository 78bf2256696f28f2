import numpy as np
import pytest
from pycocotools import mask as mask_api

from mask2former.data.segmentation import find_wrong_code


def codes(count: int) -> list[dict]:
    """Run lengths of noise and of boxes, of many sizes."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        height, width = rng.integers(1, 60, 2)
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8, order="F")
        if i % 3 == 0:
            mask = np.zeros((height * 7, width * 9), np.uint8, order="F")
            mask[height : 3 * height, width : 5 * width] = 1
        result.append(mask_api.encode(mask))
    return result


def runs(text: bytes) -> list[int]:
    """The numbers of a code, one by one."""
    result: list[int] = []
    number = place = 0
    for character in text:
        number |= (character - 48 & 31) << 5 * place
        place += 1
        if not character - 48 & 32:
            number -= (character - 48 & 16) << 5 * place - 4
            result.append(number + (result[-2] if len(result) > 2 else 0))
            number = place = 0
    return result


def test_honest_run_lengths_are_right() -> None:
    honest = codes(2000)
    assert sum(len(code["counts"]) for code in honest) > 1 << 16, "more than one batch"
    assert find_wrong_code(honest) is None
    assert find_wrong_code([]) is None


def test_changed_run_lengths_are_found_one_by_one() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for code in codes(1000):
        text = bytearray(code["counts"])
        text[rng.integers(len(text))] = rng.integers(48, 112)
        area = code["size"][0] * code["size"][1]
        whole = not text[-1] - 48 & 32
        right = whole and min(runs(text)) >= 0 and sum(runs(text)) == area
        assert (find_wrong_code([{**code, "counts": bytes(text)}]) is None) == right
        found += not right
    assert found > 500


@pytest.mark.parametrize("place", [0, 1, 1500, 1999])
def test_the_first_wrong_one_is_named(place: int) -> None:
    many = codes(2000)
    for i in {place, 1999}:
        many[i] = {"size": many[i]["size"], "counts": many[i]["counts"].decode() + "0`"}
    assert find_wrong_code(many) == place
