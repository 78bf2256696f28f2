"""Deformable attention by gathers is the op."""

import pytest
import torch

from mask2former.export.deformable import GatheredDeformAttn
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn, pixel_centres

SHAPES = [(3, 5), (6, 10), (1, 2)]


@pytest.mark.parametrize("spread", [0.5, 30.0], ids=["inside", "far outside"])
def test_equal_to_the_op(spread: float) -> None:
    torch.manual_seed(0)
    attention = MSDeformAttn(embed_dim=16, num_heads=4, num_levels=len(SHAPES), num_points=3)
    for layer in (attention.sampling_offsets, attention.attention_weights, attention.value_proj):
        torch.nn.init.normal_(layer.weight, std=spread if layer is attention.sampling_offsets else 1.0)
    centres = [pixel_centres(*shape) for shape in SHAPES]
    points, sizes = torch.cat(centres), 2 * torch.stack([level[0] for level in centres])
    query, value = torch.randn(2, 2, len(points), 16).unbind(0)
    with torch.no_grad():
        expected = attention(query, points, value, SHAPES, sizes)
        found = GatheredDeformAttn(attention)(query, points, value, SHAPES, sizes)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
