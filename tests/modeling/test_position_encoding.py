import pytest
import torch

from mask2former.modeling.position_encoding import sine_position_encoding
from tests.helpers import golden


def test_equals_the_published_encoding() -> None:
    torch.testing.assert_close(
        sine_position_encoding(5, 7, 16), golden.load("position_encoding")["output"], rtol=1e-6, atol=1e-6
    )


def test_halves_encode_rows_and_columns() -> None:
    encoding = sine_position_encoding(4, 6, 8)[0]
    assert (encoding[:4] == encoding[:4, :, :1]).all()
    assert (encoding[4:] == encoding[4:, :1, :]).all()
    assert not (encoding[:4] == encoding[:4, :1]).all()


def test_channels_that_cannot_be_split_are_an_error() -> None:
    with pytest.raises(ValueError, match="multiple of 4 channels, not 10"):
        sine_position_encoding(4, 4, 10)
