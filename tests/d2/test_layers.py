"""Norms by name, convolution with norm and activation, frozen BatchNorm."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mask2former.d2 import SOURCE
from mask2former.d2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm


def _trained_norm(make: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    norm = make(4)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 2.0)
    return norm


@pytest.mark.parametrize("norm", ["", None])
def test_no_norm(norm: str | None) -> None:
    assert get_norm(norm, 8) is None


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("BN", ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
        ("SyncBN", ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
        ("FrozenBN", ["weight", "bias", "running_mean", "running_var"]),
        ("GN", ["weight", "bias"]),
        ("LN", ["weight", "bias"]),
    ],
)
def test_norm_by_name(name: str, entries: list[str]) -> None:
    norm = get_norm(name, 64)
    assert list(norm.state_dict()) == entries
    x = torch.randn(2, 64, 5, 3)
    assert norm(x).shape == x.shape


def test_norm_by_function_and_unknown_norm() -> None:
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    with pytest.raises(KeyError, match="BatchNorm"):
        get_norm("BatchNorm", 8)


def test_group_norm_has_32_groups() -> None:
    assert get_norm("GN", 64).num_groups == 32


def test_layer_norm_acts_on_channels() -> None:
    x = torch.randn(2, 6, 3, 4)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(get_norm("LN", 6)(x), expected)


def test_sync_bn_is_bn_in_one_process_on_a_cpu() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    sync, plain = get_norm("SyncBN", 4), get_norm("BN", 4)
    for _ in range(2):
        torch.testing.assert_close(sync(x), plain(x), rtol=0, atol=0)
    assert isinstance(sync, nn.SyncBatchNorm)
    for name, value in sync.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=0)
    sync.eval()
    plain.eval()
    torch.testing.assert_close(sync(x), plain(x), rtol=0, atol=0)


def test_frozen_bn_starts_as_the_identity() -> None:
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)
    assert not list(FrozenBatchNorm2d(4).parameters())


@pytest.mark.parametrize("requires_grad", [True, False])
def test_frozen_bn_equals_bn_in_evaluation(requires_grad: bool) -> None:
    norm = _trained_norm().eval()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    x = torch.randn(2, 4, 3, 3, requires_grad=requires_grad)
    torch.testing.assert_close(frozen.train()(x), norm(x))
    assert frozen(x.detach().bfloat16()).dtype == torch.bfloat16


def test_freezing_a_block_converts_its_norms_and_stops_its_gradients() -> None:
    class Block(CNNBlockBase):
        def __init__(self) -> None:
            super().__init__(3, 4, stride=2)
            self.conv = Conv2d(3, 4, 3, stride=2, norm=_trained_norm())
            self.shortcut = nn.Sequential(_trained_norm(), _trained_norm(nn.SyncBatchNorm))

    block = Block()
    running_mean = block.conv.norm.running_mean.clone()
    assert block.freeze() is block
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert all(isinstance(n, FrozenBatchNorm2d) for n in (block.conv.norm, *block.shortcut))
    assert not any(parameter.requires_grad for parameter in block.parameters())
    torch.testing.assert_close(block.conv.norm.running_mean, running_mean)


def test_conv_applies_norm_then_activation() -> None:
    conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=_trained_norm().eval(), activation=nn.functional.relu)
    x = torch.randn(2, 3, 6, 6)
    plain = nn.functional.conv2d(x, conv.weight, padding=1)
    torch.testing.assert_close(conv(x), conv.norm(plain).relu())
    assert list(conv.state_dict())[:2] == ["weight", "norm.weight"]
    bare = Conv2d(3, 4, 1)
    assert (bare.norm, bare.activation) == (None, None)
    assert bare(x[:0]).shape == (0, 4, 6, 6)


def test_shape_spec() -> None:
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None)


def test_bundled_messages_list_the_norms() -> None:
    if SOURCE != "bundled":
        pytest.skip("tests the bundled message")
    with pytest.raises(KeyError, match="BN, SyncBN, FrozenBN, GN, LN"):
        get_norm("BatchNorm", 8)
