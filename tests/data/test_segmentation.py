import numpy as np
import pytest
from pycocotools import mask as mask_api

from mask2former.data.segmentation import check_segmentation, find_wrong_code


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


SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]
MASK = np.zeros((6, 8), np.uint8, order="F")
MASK[1:4, 1:5] = 1
CODE = mask_api.encode(MASK)
COUNTS = [7, 3, 3, 3, 3, 3, 3, 3, 20]


def test_segmentations_become_what_pycocotools_takes() -> None:
    assert check_segmentation([SQUARE, [0, 0, 1, 1]], 6, 8) == [SQUARE]
    for code in (CODE, {**CODE, "counts": CODE["counts"].decode()}):
        assert check_segmentation(code, 6, 8) == {"size": [6, 8], "counts": code["counts"]}
    np.testing.assert_array_equal(mask_api.decode(check_segmentation({"size": [6, 8], "counts": COUNTS}, 6, 8)), MASK)
    empty = check_segmentation({"size": [6, 8], "counts": [48, 0]}, 6, 8)
    assert mask_api.area(empty) == 0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({**CODE, "size": [8, 6]}, "run lengths of size"),
        ({"size": [6, 8], "counts": [*COUNTS[:-1], 19]}, "do not add up"),
        ({"size": [6, 8], "counts": [50, -2]}, "do not add up"),
        ({"size": [6, 8], "counts": [47.0, 1]}, "do not add up"),
        ({"size": [6, 8], "counts": 48}, "run lengths that are a int"),
        ({"size": [6, 8], "counts": (48,)}, "run lengths that are a tuple"),
        ([[0, 0, 1]], "a polygon of 3 numbers"),
        (["abcdef"], "a polygon that is a str"),
        ([[*SQUARE[:-1], float("nan")]], "no numbers, or beyond"),
        ([[*SQUARE[:-1], 801]], "no numbers, or beyond"),
        ([[*SQUARE[:-1], -801]], "no numbers, or beyond"),
        ([], "no mask"),
        ("abc", "no mask"),
        ({"counts": COUNTS}, "no mask"),
    ],
)
def test_what_is_no_segmentation(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_segmentation(segmentation, 6, 8)
