from __future__ import annotations

from itertools import chain

import pytest
import torch

from mask2former.ops import extension, ms_deform_attn, reference

SHAPES = [(5, 4), (2, 3)]


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    if problem := extension.problem("cpu"):
        pytest.skip(problem)
    monkeypatch.setenv("MASK2FORMER_OPS", "compiled")
    torch.compiler.reset()


def inputs(shapes: list[tuple[int, int]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    levels = len(shapes)
    return [
        torch.randn(2, sum(h * w for h, w in shapes), 3, 8).to(dtype).requires_grad_(),
        torch.rand(2, 4, 3, levels, 2, 2, requires_grad=True),
        torch.rand(2, 4, 3, levels, 2, requires_grad=True),
    ]


class Sampler(torch.nn.Module):
    """Takes the sizes of its levels from maps, as a pixel decoder does."""

    def forward(self, maps: list[torch.Tensor], locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        value = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1).unflatten(-1, (3, 8))
        return ms_deform_attn(value * 2, shapes, locations, weights) + 1


def sampler_inputs(shapes: list[tuple[int, int]] = SHAPES) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    _, locations, weights = inputs(shapes)
    return [torch.randn(2, 24, *shape) for shape in shapes], locations, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ops_are_registered_well(dtype: torch.dtype) -> None:
    value, locations, weights = inputs(dtype=dtype)
    sizes = list(chain(*SHAPES))
    torch.library.opcheck(torch.ops.mask2former.ms_deform_attn_forward.default, (value, sizes, locations, weights))
    arguments = (torch.randn(2, 4, 24).to(dtype), value.detach(), sizes, locations.detach(), weights.detach())
    torch.library.opcheck(torch.ops.mask2former.ms_deform_attn_backward.default, arguments)


def check_compiled(compiled, model: Sampler) -> None:
    for shapes in ([(11, 10), (7, 6)], [(7, 5), (4, 3)], [(9, 6), (3, 5)]):  # first, sizes unlike any other
        arguments = sampler_inputs(shapes)
        expected, output = model(*arguments), compiled(*arguments)
        torch.testing.assert_close(output, expected)
        grads = [torch.autograd.grad(x.square().sum(), arguments[1:]) for x in (output, expected)]
        torch.testing.assert_close(*grads)


def test_a_compiled_model_is_one_graph_for_all_sizes() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    check_compiled(torch.compile(Sampler(), fullgraph=True, dynamic=True, backend=count), Sampler())
    assert len(graphs) == 1
    assert "ms_deform_attn_forward" in graphs[0].code


def test_gradients_are_compiled() -> None:
    check_compiled(torch.compile(Sampler(), fullgraph=True, dynamic=True, backend="aot_eager"), Sampler())


def test_an_exported_model_holds_the_op() -> None:
    arguments = sampler_inputs()
    program = torch.export.export(Sampler(), arguments)
    assert "mask2former.ms_deform_attn_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), Sampler()(*arguments))


def test_the_reference_is_exported_as_ops_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "reference")
    arguments = sampler_inputs()
    program = torch.export.export(Sampler(), arguments)
    assert "mask2former" not in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), Sampler()(*arguments))


def test_a_traced_model_consists_of_ops_of_pytorch() -> None:
    arguments = sampler_inputs()
    with torch.no_grad():
        traced = torch.jit.trace(Sampler(), arguments, check_trace=False)
        torch.testing.assert_close(traced(*arguments), Sampler()(*arguments))
    assert "mask2former::" not in str(traced.inlined_graph)


def test_no_gradient_where_none_is_wanted() -> None:
    value, locations, weights = inputs()
    output = ms_deform_attn(value.detach(), SHAPES, locations, weights.detach())
    output.sum().backward()
    expected = locations.grad.clone()
    locations.grad = None
    reference.ms_deform_attn(value, SHAPES, locations, weights).sum().backward()
    torch.testing.assert_close(expected, locations.grad)


def test_the_op_itself_checks_its_arguments() -> None:
    value, locations, weights = (x.detach() for x in inputs())
    forward = torch.ops.mask2former.ms_deform_attn_forward
    for sizes, message in (([5, 4, 2, 2], "24 positions, but value has 26"), ([5, 4, 2], "height and width")):
        with pytest.raises(RuntimeError, match=message):
            forward(value, sizes, locations, weights)
    with pytest.raises(RuntimeError, match="do not fit"):
        forward(value, [5, 4, 2, 3], locations[:, :, :2], weights)
    with pytest.raises(RuntimeError, match="floating point"):
        forward(value.int(), [5, 4, 2, 3], locations, weights)
