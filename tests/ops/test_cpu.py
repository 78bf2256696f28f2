from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mask2former.modeling.layers import Linear
from mask2former.ops import cpu
from mask2former.ops.cpu import LINEAR_VARIABLE, linear, softmax_of_few


@pytest.fixture(autouse=True)
def _every_size_may_be_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_LARGEST_SLOW_CONVOLUTION", 0)
    monkeypatch.setattr(cpu, "convolution_is_faster", None)


@pytest.fixture
def convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINEAR_VARIABLE, "convolution")


def count_convolutions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: (calls.append(1), original(*args))[1])
    return calls


@pytest.mark.parametrize("kernel", ["convolution", "linear"])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6), (0, 3, 6)])
def test_linear_and_its_gradients_equal_those_of_torch(
    shape: tuple[int, ...], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LINEAR_VARIABLE, kernel)
    calls = count_convolutions(monkeypatch)
    torch.manual_seed(0)
    theirs, x = nn.Linear(6, 7), torch.randn(shape)
    ours = Linear(6, 7)
    ours.load_state_dict(theirs.state_dict())

    def run(layer: nn.Module) -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        output = layer(inputs)
        return [output, *torch.autograd.grad(output.square().sum(), [inputs, *layer.parameters()])]

    torch.testing.assert_close(run(ours), run(theirs))
    torch.testing.assert_close(linear(x, ours.weight), F.linear(x, ours.weight))
    assert len(calls) == (2 if kernel == "convolution" and x.numel() else 0)


@pytest.mark.usefixtures("convolution")
def test_linear_takes_other_layouts_and_types() -> None:
    torch.manual_seed(0)
    layer, x = Linear(6, 7), torch.randn(6, 5, 3).transpose(0, 2)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.usefixtures("convolution")
def test_graphs_hold_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_convolutions(monkeypatch)
    layer, x = Linear(6, 7), torch.randn(5, 6)
    exported = torch.export.export(layer, (x,)).graph
    traced = str(torch.jit.trace(layer, x, check_trace=False).inlined_graph)
    assert any("linear" in str(node.target) for node in exported.nodes)
    assert "aten::linear" in traced
    assert calls == []
    layer(x)
    assert calls == [1]


@pytest.mark.usefixtures("convolution")
def test_compiled_graphs_hold_plain_operators() -> None:
    graphs: list[str] = []

    def keep(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(str(module.graph))
        return module.forward

    layer, x = Linear(6, 7), torch.randn(5, 6)
    compiled = torch.compile(lambda y: softmax_of_few(layer(y)), backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(x), softmax_of_few(layer(x)))
    (graph,) = graphs
    assert "linear" in graph
    assert "conv2d" not in graph
    assert "contiguous" not in graph


def test_small_inputs_are_left_to_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINEAR_VARIABLE, "convolution")
    monkeypatch.setattr(cpu, "_LARGEST_SLOW_CONVOLUTION", 30)
    calls = count_convolutions(monkeypatch)
    layer = Linear(6, 7)
    layer(torch.randn(5, 6))
    assert calls == []
    layer(torch.randn(6, 6))
    assert calls == [1]


@pytest.mark.parametrize(("seconds", "faster"), [([1.0, 0.5], True), ([1.0, 0.9], False), ([1.0, 2.0], False)])
def test_a_convolution_must_be_clearly_faster(
    seconds: list[float], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LINEAR_VARIABLE, "auto")
    measured: list[int] = []
    monkeypatch.setattr(cpu, "_measure", lambda: (measured.append(1), seconds)[1])
    calls = count_convolutions(monkeypatch)
    for width in (6, 8):
        linear(torch.randn(4, width), torch.randn(7, width))
    assert len(calls) == (2 if faster else 0)
    assert measured == [1], "once for all widths"


def test_measuring_leaves_no_trace_in_what_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINEAR_VARIABLE, "auto")
    measured: list[list[float]] = []
    original = cpu._measure
    monkeypatch.setattr(cpu, "_measure", lambda: measured.append(original()) or measured[-1])
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        linear(torch.ones(4, 6), torch.ones(7, 6))
    assert torch.equal(torch.randn(3), expected)
    assert counter.get_total_flops() == 2 * 4 * 6 * 7
    assert len(measured) == 1
    assert all(0 < seconds < 60 for seconds in measured[0])
    with FakeTensorMode():
        linear(torch.ones(4, 5), torch.ones(7, 5))
    assert len(measured) == 1


def test_an_unknown_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINEAR_VARIABLE, "mkl")
    with pytest.raises(ValueError, match=r"MASK2FORMER_CPU_LINEAR is 'mkl'; it must be one of \['auto'"):
        linear(torch.ones(4, 6), torch.ones(7, 6))


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 8, 12)])
def test_softmax_of_few_is_softmax(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    expected = x.softmax(dim=-1)
    torch.testing.assert_close(softmax_of_few(x), expected)
    weight = torch.randn(shape)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (softmax_of_few(x), expected))
    torch.testing.assert_close(ours, theirs)
