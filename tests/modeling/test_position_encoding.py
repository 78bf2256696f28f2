import pytest
import torch
from torch import Tensor

from mask2former.modeling.position_encoding import sine_tokens
from tests.helpers import golden


def encoding(height: int, width: int, channels: int) -> Tensor:
    """As a map (channels, height, width)."""
    return sine_tokens(height, width, channels)[0].T.unflatten(1, (height, width))


def test_equals_the_published_encoding() -> None:
    torch.testing.assert_close(encoding(5, 7, 16), golden.load("position_encoding")["output"][0], rtol=1e-6, atol=1e-6)


def test_halves_encode_rows_and_columns() -> None:
    maps = encoding(4, 6, 8)
    assert (maps[:4] == maps[:4, :, :1]).all()
    assert (maps[4:] == maps[4:, :1, :]).all()
    assert not (maps[:4] == maps[:4, :1]).all()


def test_channels_that_cannot_be_split_are_an_error() -> None:
    with pytest.raises(ValueError, match="multiple of 4 channels, not 10"):
        sine_tokens(4, 4, 10)
