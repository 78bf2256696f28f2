import pytest
import torch
from torch import nn

from mask2former.modeling.layers import MLP, DropPath, MultiheadAttention, c2_xavier_fill


def test_attention_equals_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.rand(2, 1, 5, 7) < 0.6
    mask[..., 0] = True
    blocked = ~mask.expand(-1, 4, -1, -1).flatten(0, 1)
    expected, _ = theirs(query, key, value, attn_mask=blocked)
    torch.testing.assert_close(ours(query, key, value, mask=mask), expected)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])


def test_attention_drops_weights_in_training_only() -> None:
    attention, x = MultiheadAttention(16, 4, dropout=0.5), torch.randn(1, 8, 16)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    attention.eval()
    torch.testing.assert_close(attention(x, x, x), attention(x, x, x))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="10 is not a multiple of num_heads 4"):
        MultiheadAttention(10, 4)


def test_mlp_has_relu_between_layers_only() -> None:
    mlp = MLP(3, 5, 2, num_layers=3)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(5, 3), (5, 5), (2, 5)]
    x = torch.randn(4, 3)
    hidden = mlp.layers[1](mlp.layers[0](x).relu()).relu()
    torch.testing.assert_close(mlp(x), mlp.layers[2](hidden))


def test_c2_xavier_fill_has_variance_one_over_fan_in() -> None:
    conv = nn.Conv2d(64, 256, 3)
    c2_xavier_fill(conv)
    fan_in = 64 * 9
    assert conv.weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
    assert conv.weight.abs().max().item() <= (3 / fan_in) ** 0.5 + 1e-6
    assert conv.bias is not None
    assert not conv.bias.any()


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = drop(x)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (dropped.flatten(1).amax(dim=1) == dropped.flatten(1).amin(dim=1)).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
