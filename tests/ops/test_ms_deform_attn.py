from __future__ import annotations

import pytest
import torch

from mask2former.ops import ms_deform_attn
from tests.helpers import golden

SHAPES = [(6, 4), (3, 2), (2, 1)]


def inputs(dtype: torch.dtype = torch.float64, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    positions = sum(h * w for h, w in SHAPES)
    return [
        torch.randn(batch, positions, 4, 8, dtype=dtype),
        torch.rand(batch, 5, 4, 3, 2, 2, dtype=dtype) * 1.4 - 0.2,  # some points lie outside
        torch.rand(batch, 5, 4, 3, 2, dtype=dtype),
    ]


def test_values_and_gradients_equal_the_published_ones() -> None:
    figures = golden.load("ms_deform_attn")
    shapes = [(h, w) for h, w in figures["spatial_shapes"].tolist()]
    value, locations, weights = (
        figures[name].requires_grad_() for name in ("value", "sampling_locations", "attention_weights")
    )
    output = ms_deform_attn(value, shapes, locations, weights)
    output.backward(figures["grad_output"])
    for ours, name in (
        (output, "output"),
        (value.grad, "grad_value"),
        (locations.grad, "grad_sampling_locations"),
        (weights.grad, "grad_attention_weights"),
    ):
        torch.testing.assert_close(ours, figures[name], rtol=1e-6, atol=1e-6)


def test_equals_a_loop_over_the_definition() -> None:
    value, locations, weights = inputs(batch=1)
    output = ms_deform_attn(value, SHAPES, locations, weights).view(5, 4, 8)
    starts = [0, 24, 30]
    for query in range(5):
        for head in range(4):
            expected = torch.zeros(8, dtype=torch.float64)
            for level, (height, width) in enumerate(SHAPES):
                for point in range(2):
                    x, y = (locations[0, query, head, level, point] * torch.tensor([width, height]) - 0.5).tolist()
                    for row in range(height):
                        for column in range(width):
                            share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                            pixel = value[0, starts[level] + row * width + column, head]
                            expected += weights[0, query, head, level, point] * share * pixel
            torch.testing.assert_close(output[query, head], expected)


def test_gradients_are_those_of_the_function() -> None:
    value, locations, weights = (x[:, :, :2].requires_grad_() if x.ndim == 4 else x for x in inputs(batch=1))
    locations, weights = (x[:, :2, :2].clone().requires_grad_() for x in (locations, weights))
    value = value.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: ms_deform_attn(x[0], SHAPES, x[1], x[2]), (value, locations, weights))


def test_bfloat16_values_keep_precise_locations() -> None:
    value, locations, weights = inputs(torch.float32)
    exact = ms_deform_attn(value.bfloat16().float(), SHAPES, locations, weights.bfloat16().float())
    output = ms_deform_attn(value.bfloat16(), SHAPES, locations, weights.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=1e-2, atol=1e-2)


def test_non_contiguous_input_and_empty_batch() -> None:
    value, locations, weights = inputs()
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(ms_deform_attn(strided, SHAPES, locations, weights), expected)
    assert ms_deform_attn(value[:0], SHAPES, locations[:0], weights[:0]).shape == (0, 5, 32)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda v, x, w: (v[:, :-1], x, w), "32 positions, but value has 31"),
        (lambda v, x, w: (v, x[..., :1], w), "expected sampling_locations of shape"),
        (lambda v, x, w: (v, x, w[:, :, :2]), "attention_weights of shape"),
        (lambda v, x, w: (v[0], x, w), "takes value"),
    ],
)
def test_shapes_that_do_not_fit_are_named(broken, message: str) -> None:
    value, locations, weights = broken(*inputs())
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(value, SHAPES, locations, weights)
