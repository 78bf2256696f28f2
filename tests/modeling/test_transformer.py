from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.position_encoding import sine_tokens
from mask2former.modeling.transformer import TransformerDecoder, TransformerEncoder, flatten_map

SETTINGS = {"embed_dim": 16, "num_heads": 2, "dim_feedforward": 24, "num_layers": 2}


def randomise(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.eval()


def torch_settings(pre_norm: bool) -> dict[str, object]:
    return {"nhead": 2, "dim_feedforward": 24, "dropout": 0.0, "batch_first": True, "norm_first": pre_norm}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_without_positions_is_pytorchs(pre_norm: bool) -> None:
    ours = randomise(TransformerEncoder(**SETTINGS, dropout=0.0, pre_norm=pre_norm))
    layer = nn.TransformerEncoderLayer(16, **torch_settings(pre_norm))
    theirs = nn.TransformerEncoder(
        layer, 2, norm=nn.LayerNorm(16) if pre_norm else None, enable_nested_tensor=False
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(x, torch.zeros(1, 6, 16)), theirs(x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_without_positions_is_pytorchs(pre_norm: bool) -> None:
    ours = randomise(TransformerDecoder(**SETTINGS, dropout=0.0, pre_norm=pre_norm))
    theirs = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(16, **torch_settings(pre_norm)), 2, norm=nn.LayerNorm(16)
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    results = ours(x, torch.zeros(1, 5, 16), memory, memory)
    assert len(results) == 2
    torch.testing.assert_close(results[-1], theirs(x, memory))
    assert not torch.allclose(results[0], results[1])


def test_positions_are_added_to_queries_and_keys_alone() -> None:
    encoder = randomise(TransformerEncoder(**{**SETTINGS, "num_layers": 1}, dropout=0.0, pre_norm=False))
    calls: list[tuple[Tensor, ...]] = []
    encoder.layers[0].self_attn.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs))
    x, position = torch.randn(2, 6, 16), torch.randn(1, 6, 16)
    encoder(x, position)
    query, key, value = calls[0]
    assert torch.equal(query, x + position)
    assert torch.equal(key, x + position)
    assert torch.equal(value, x)


def test_queries_keep_their_positions_where_they_look() -> None:
    decoder = randomise(TransformerDecoder(**{**SETTINGS, "num_layers": 1}, dropout=0.0, pre_norm=True))
    calls: list[tuple[Tensor, ...]] = []
    decoder.layers[0].multihead_attn.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs))
    decoder.layers[0].norm2.register_forward_hook(lambda _module, _inputs, output: calls.append((output,)))
    x, position, key, value = (torch.randn(2, n, 16) for n in (5, 5, 6, 6))
    decoder(x, position, key, value)
    normalised, (query, *memory) = calls[0][0], calls[1]
    assert torch.equal(query, normalised + position)
    assert memory[0] is key
    assert memory[1] is value


def test_dropout_is_for_training() -> None:
    encoder = TransformerEncoder(**SETTINGS, dropout=0.5, pre_norm=False)
    x, position = torch.randn(2, 6, 16), torch.zeros(1, 6, 16)
    assert not torch.equal(encoder(x, position), encoder(x, position))
    encoder.eval()
    assert torch.equal(encoder(x, position), encoder(x, position))


def test_a_map_is_flattened_row_by_row_with_its_positions() -> None:
    feature = torch.randn(2, 8, 3, 4)
    values, position = flatten_map(feature)
    assert torch.equal(values[:, 5], feature[:, :, 1, 1])
    assert position.shape == (1, 12, 8)
    assert torch.equal(position, sine_tokens(3, 4, 8))


@pytest.mark.parametrize("stack", [TransformerEncoder, TransformerDecoder])
def test_the_feed_forward_network_drops_hidden_units(stack: type[nn.Module]) -> None:
    layer = stack(**SETTINGS, dropout=0.5, pre_norm=False).layers[0]
    nn.init.constant_(layer.linear1.bias, 100.0)  # so that ReLU makes no zero
    hidden: list[Tensor] = []
    layer.linear2.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0]))
    x = torch.randn(50, 6, 16)
    torch.manual_seed(0)
    layer.feed_forward(x)
    layer.eval().feed_forward(x)
    dropped, kept = (float((units == 0).float().mean()) for units in hidden)
    assert 0.45 < dropped < 0.55
    assert kept == 0
