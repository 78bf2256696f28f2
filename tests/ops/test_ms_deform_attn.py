from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mask2former.ops import dispatch, ms_deform_attn, reference
from tests.helpers import golden

SHAPES = [(6, 4), (3, 2), (2, 1)]
ROOT = Path(__file__).resolve().parents[2]


def inputs(
    dtype: torch.dtype = torch.float64,
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 4,
    width: int = 8,
    points: int = 2,
    shapes: list[tuple[int, int]] = SHAPES,
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    levels = len(shapes)
    return [
        torch.randn(batch, sum(h * w for h, w in shapes), heads, width).to(dtype),
        torch.rand(batch, queries, heads, levels, points, 2, dtype=exact) * 1.4 - 0.2,  # some points lie outside
        torch.rand(batch, queries, heads, levels, points).to(dtype),
    ]


def with_gradients(function, arguments: list[torch.Tensor], shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    value, locations, weights = (x.detach().clone().requires_grad_() for x in arguments)
    output = function(value, shapes, locations, weights)
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape).to(output.dtype))
    return [output.detach(), value.grad, locations.grad, weights.grad]


def assert_equals_the_reference(arguments, shapes=SHAPES, *, tolerance: float = 1e-5) -> None:
    """Output and gradients, of which the largest differences are compared with the largest elements."""
    ours, expected = (with_gradients(f, arguments, shapes) for f in (ms_deform_attn, reference.ms_deform_attn))
    for x, y in zip(ours, expected, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        scale = float(y.abs().max()) if y.numel() else 1
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * scale)


def test_values_and_gradients_equal_the_published_ones(backend: str) -> None:
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


def test_equals_a_loop_over_the_definition(backend: str) -> None:
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


def test_gradients_are_those_of_the_function(backend: str) -> None:
    arguments = [x.requires_grad_() for x in inputs(batch=1, queries=2, heads=2, width=3)]
    assert torch.autograd.gradcheck(lambda *x: ms_deform_attn(x[0], SHAPES, x[1], x[2]), arguments)


@pytest.mark.parametrize("width", [1, 7, 16, 32, 40, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_reference(backend: str, dtype: torch.dtype, width: int) -> None:
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    shapes = [(17, 5), (1, 1), (1, 3), (4, 1)]
    arguments = inputs(dtype, heads=3, width=width, points=3, queries=37, shapes=shapes)
    assert_equals_the_reference(arguments, shapes, tolerance=tolerance)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_dtypes_may_differ(backend: str, dtypes: tuple[torch.dtype, ...]) -> None:
    arguments = [x.to(dtype) for x, dtype in zip(inputs(torch.float32), dtypes, strict=True)]
    exact = [x.double() for x in arguments]
    ours = with_gradients(ms_deform_attn, arguments, SHAPES)
    expected = with_gradients(reference.ms_deform_attn, exact, SHAPES)
    assert [x.dtype for x in ours] == [dtypes[0], *dtypes]
    # The gradient that comes in is rounded as the output is.
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=2e-2 * float(y.abs().max()))


def test_bfloat16_values_keep_precise_locations(backend: str) -> None:
    value, locations, weights = inputs(torch.float32)
    exact = ms_deform_attn(value.bfloat16().float(), SHAPES, locations, weights.bfloat16().float())
    output = ms_deform_attn(value.bfloat16(), SHAPES, locations, weights.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=1e-2, atol=1e-2)


def test_non_contiguous_input(backend: str) -> None:
    value, locations, weights = inputs()
    strided = [
        value.transpose(1, 2).contiguous().transpose(1, 2),
        locations.flip(0).transpose(0, 3).contiguous().transpose(0, 3).flip(0),
        weights.repeat_interleave(2, dim=-1)[..., ::2],
    ]
    assert not any(x.is_contiguous() for x in strided[::2])
    expected = with_gradients(reference.ms_deform_attn, [value, locations, weights], SHAPES)
    value, locations, weights = (x.requires_grad_() for x in strided)
    output = ms_deform_attn(value, SHAPES, locations, weights)
    torch.manual_seed(1)
    grad = torch.randn(output.shape).to(output.dtype)
    output.backward(grad.transpose(1, 2).contiguous().transpose(1, 2))
    for x, y in zip((output, value.grad, locations.grad, weights.grad), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
def test_empty_batch_and_no_queries(backend: str, batch: int, queries: int) -> None:
    output, *gradients = with_gradients(ms_deform_attn, inputs(batch=batch, queries=queries), SHAPES)
    assert output.shape == (batch, queries, 32)
    assert gradients[0].shape == (batch, 32, 4, 8)
    assert not gradients[0].any()


@pytest.mark.parametrize("place", [-1e30, -3.0, -0.6, 1.6, 1e30])
def test_points_far_outside_are_zero(backend: str, place: float) -> None:
    value, locations, weights = inputs(torch.float32)
    shapes = [(1, 1), (1, 31)]
    locations, weights = locations[:, :, :, :2].clone(), weights[:, :, :, :2]
    locations[..., 0] = place
    for x in with_gradients(ms_deform_attn, [value, locations, weights], shapes):
        assert not x.any()


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf")])
def test_locations_that_are_no_numbers_read_nothing_out_of_bounds(
    place: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "auto")
    value, locations, weights = inputs(torch.float32)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    locations[0, 0, 0, 1, 1, 1] = place
    output = ms_deform_attn(value, SHAPES, locations, weights)
    torch.testing.assert_close(output[:, 1:], expected[:, 1:])  # other queries are untouched


def test_result_does_not_depend_on_threads(backend: str) -> None:
    if backend == "reference":
        pytest.skip("its sums are PyTorch's own")
    shapes = [(33, 17), (9, 7)]
    arguments = inputs(torch.float32, queries=300, heads=3, width=24, points=4, shapes=shapes)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(with_gradients(ms_deform_attn, arguments, shapes))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(capability: str) -> None:
    known = ["default", "avx2", "avx512"]
    if torch.backends.cpu.get_cpu_capability().lower() not in known[known.index(capability) :]:
        pytest.skip(f"this machine knows no {capability}")  # older versions of PyTorch would take it on trust
    code = f"""
import torch
# Older versions of PyTorch call the default otherwise.
assert torch.backends.cpu.get_cpu_capability().lower().replace("no avx", "default") == {capability!r}
from tests.ops.test_ms_deform_attn import SHAPES, assert_equals_the_reference, inputs
for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)):
    for width in (5, 32, 72):
        assert_equals_the_reference(inputs(dtype, width=width), tolerance=tolerance)
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


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


def test_empty_levels_are_refused(backend: str) -> None:
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="1 to 16777216 pixels a side"):
        ms_deform_attn(value, [*SHAPES[:2], (0, 7)], locations, weights)


def arguments(B=1, S=6, M=2, D=4, Q=3, L=1, P=2, shapes=(2, 3)):
    """What the op is registered to take."""
    return [torch.rand(B, S, M, D), list(shapes), torch.rand(B, Q, M, L, P, 2), torch.rand(B, Q, M, L, P)]


def replaced(place: int, value: object) -> list:
    changed = arguments()
    changed[place] = value
    return changed


BAD = {
    "no points": arguments(P=0),
    "no levels": arguments(L=0, S=0, shapes=()),
    "no heads": arguments(M=0),
    "no channels": arguments(D=0),
    "a wide level": [
        torch.zeros(1, 1, 1, 1).expand(1, (1 << 24) + 1, 1, 1),
        [1, (1 << 24) + 1],
        *arguments(M=1)[2:],
    ],
    "sizes whose product is 2**64 + 6": arguments(shapes=(2**32, 2**32)),
    "sizes whose sum wraps": arguments(L=3, shapes=(2**31, 2**32, 2**31, 2**32, 2, 3)),
    "negative sizes": arguments(shapes=(-2, -3)),
    "half a size": arguments(shapes=(2, 3, 1)),
    "other levels": arguments(shapes=(2, 2)),
    "value of integers": replaced(0, torch.ones(1, 6, 2, 4, dtype=torch.int64)),
    "complex value": replaced(0, torch.ones(1, 6, 2, 4, dtype=torch.complex64)),
    "locations of integers": replaced(2, torch.ones(1, 3, 2, 1, 2, 2, dtype=torch.int64)),
    "boolean weights": replaced(3, torch.ones(1, 3, 2, 1, 2, dtype=torch.bool)),
    "locations of 3": replaced(2, torch.rand(1, 3, 2, 1, 2, 3)),
    "flat value": replaced(0, torch.rand(48)),
    "weights of other queries": replaced(3, torch.rand(1, 4, 2, 1, 2)),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_do_not_fit_are_errors_of_the_op_itself(name: str) -> None:
    if dispatch.backend("cpu") != "compiled":
        pytest.skip("no compiled op")
    value, _, locations, _ = BAD[name]
    with pytest.raises(RuntimeError):
        torch.ops.mask2former.ms_deform_attn_forward(*BAD[name])
    grad = torch.rand(value.shape[0], locations.shape[1], value.shape[-1] * (value.shape[2] if value.ndim == 4 else 1))
    with pytest.raises(RuntimeError):
        torch.ops.mask2former.ms_deform_attn_backward(grad, *BAD[name])


@pytest.mark.parametrize("grad", [torch.rand(1, 3, 9), torch.rand(3, 8), torch.ones(1, 3, 8, dtype=torch.int64)])
def test_gradients_that_do_not_fit_are_errors(grad: torch.Tensor) -> None:
    if dispatch.backend("cpu") != "compiled":
        pytest.skip("no compiled op")
    with pytest.raises(RuntimeError):
        torch.ops.mask2former.ms_deform_attn_backward(grad, *arguments())


@pytest.mark.parametrize("name", sorted(set(BAD) - {"half a size"}))
def test_arguments_that_do_not_fit_are_errors_of_every_implementation(name: str) -> None:
    value, sizes, locations, weights = BAD[name]
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own message
        ms_deform_attn(value, list(zip(sizes[::2], sizes[1::2], strict=True)), locations, weights)


def test_slices_and_transposes_are_as_their_copies() -> None:
    value, sizes, locations, weights = arguments()
    strided = [
        value.transpose(1, 2).contiguous().transpose(1, 2),
        locations.flip(4).flip(4).transpose(0, 1).contiguous().transpose(0, 1),
        weights.repeat(1, 1, 1, 1, 2)[..., :2],
    ]
    shapes = [(sizes[0], sizes[1])]
    expected = ms_deform_attn(value, shapes, locations, weights)
    assert torch.equal(ms_deform_attn(strided[0], shapes, strided[1], strided[2]), expected)
