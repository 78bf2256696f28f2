"""Parameters, FLOPs, activations and forward time of a model.

One FLOP is one multiply-add, as fvcore counts and papers of this field report. All of a forward pass counts, from
the normalisation of the image to the segmentations. No count depends on the weights.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mean, median, pstdev
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from mask2former.d2.config import CfgNode
from mask2former.d2.structures import Instances
from mask2former.data import build_test_loader

DEPTH = 2  # of the modules that tables list
Handle = Callable[[Sequence[Any], Sequence[Any]], float]
Inputs = dict[str, Any]  # of one image


def random_inputs(size: tuple[int, int]) -> Inputs:
    """What a model is given for noise of that height and width."""
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)}


def dataset_inputs(cfg: CfgNode, name: str, count: int) -> Iterator[Inputs]:
    """What a model is given for the first `count` images of a registered data set, resized as the config says."""
    for _, (inputs,) in zip(range(count), build_test_loader(cfg, name), strict=False):
        yield inputs


def report_parameters(model: nn.Module) -> str:
    """A table of the number of parameters of the model and its parts."""
    from fvcore.nn import parameter_count

    counts = parameter_count(model)
    rows = [(name or "all", count, f"{count / 1e6:.2f} M") for name, count in counts.items() if _is_shown(name)]
    return tabulate(rows, headers=["module", "parameters", ""], intfmt=",")


def report_flops(model: nn.Module, images: Iterable[Inputs]) -> str:
    """A table of the FLOPs of the model and its parts, by kind of operation, averaged over the images."""
    from fvcore.nn import FlopCountAnalysis

    return _report(model, images, FlopCountAnalysis, _FLOP_HANDLES, "GFLOPs", 1e9)


@torch.no_grad()
def count_flops(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """FLOPs of the modules of a model for one image, by name; those of the whole are under ""."""
    from fvcore.nn import FlopCountAnalysis

    return _by_module(_analyse(model, inputs, FlopCountAnalysis, _FLOP_HANDLES))


def report_activations(model: nn.Module, images: Iterable[Inputs]) -> str:
    """A table of the outputs of convolutions and products of matrices, averaged over the images."""
    from fvcore.nn import ActivationCountAnalysis

    handles: dict[str, Handle] = {"aten::scaled_dot_product_attention": output_elements}
    return _report(model, images, ActivationCountAnalysis, handles, "M activations", 1e6)


@torch.no_grad()
def report_time(model: nn.Module, images: Iterable[Inputs]) -> str:
    """Median and largest time of a forward pass, after one that does not count."""
    seconds: list[float] = []
    for inputs in images:
        repeats = 1 if seconds else 2
        for _ in range(repeats):
            start = time.perf_counter()
            model([inputs])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - start
        seconds.append(elapsed)
    device = next(model.parameters()).device
    return f"forward time on {device}: median {median(seconds):.3f} s, largest {max(seconds):.3f} s, {_count(seconds)}"


def attention_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Multiply-adds of `scaled_dot_product_attention`: queries times keys, and weights times values."""
    query, value = inputs[0].type().sizes(), inputs[2].type().sizes()  # (B, heads, Q, D), (B, heads, K, D')
    batch, heads, num_queries, width = query
    return float(batch * heads * num_queries * value[2] * (width + value[3]))


def product_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Multiply-adds of a product of two matrices, also where a third input takes its result."""
    (rows, inner), (_, columns) = (matrix.type().sizes() for matrix in inputs[:2])
    return float(rows * inner * columns)


_FLOP_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": attention_flops,
    "aten::mm": product_flops,
}


def output_elements(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Number of elements of an operation's output."""
    return float(torch.Size(outputs[0].type().sizes()).numel())


class _Traceable(nn.Module):
    """A model as a function from an image to tensors, as tracing needs it."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.inputs = {key: inputs[key] for key in ("height", "width") if key in inputs}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (result,) = self.model([{"image": image, **self.inputs}])
        return tuple(_tensors(result.values()))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Instances):
            yield from _tensors(value.get_fields().values())
        elif isinstance(value, tuple):
            yield from _tensors(value)


@torch.no_grad()
def _report(
    model: nn.Module,
    images: Iterable[Inputs],
    analysis_type: Callable[..., Any],
    handles: dict[str, Handle],
    unit: str,
    scale: float,
) -> str:
    """Trace the model with each image, and tabulate the mean of what `analysis_type` of fvcore counts."""
    totals: list[float] = []
    modules: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for inputs in images:
        analysis = _analyse(model, inputs, analysis_type, handles)
        totals.append(analysis.total() / scale)
        modules.update(_by_module(analysis))
        operators.update(analysis.by_operator())
        uncounted = uncounted or analysis.unsupported_ops()
    if not totals:
        raise ValueError("no images to analyse")
    divisor = scale * len(totals)
    rows = [(name or "all", n / divisor) for name, n in modules.items() if n and _is_shown(name)]
    rows += [(f"  {name}", n / divisor) for name, n in operators.most_common() if n]
    return "\n".join(
        [
            tabulate(rows, headers=["module or kind of operation", unit], floatfmt=".3f"),
            f"{unit}: {mean(totals):.2f} ± {pstdev(totals):.2f}, {_count(totals)}",
            f"not counted: {', '.join(f'{name} x{n}' for name, n in sorted(uncounted.items())) or 'nothing'}",
        ]
    )


def _analyse(model: nn.Module, inputs: Inputs, analysis_type: Callable[..., Any], handles: dict[str, Handle]) -> Any:
    """An analysis of fvcore, of the model with one image."""
    analysis = analysis_type(_Traceable(model, inputs), (inputs["image"],))
    analysis.set_op_handle(**handles).tracer_warnings("none")
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def _by_module(analysis: Any) -> dict[str, float]:
    return {name.removeprefix("model").lstrip("."): n for name, n in analysis.by_module().items()}


def _is_shown(module: str) -> bool:
    return module.count(".") < DEPTH


def _count(values: Sequence[float]) -> str:
    return f"{len(values)} image{'' if len(values) == 1 else 's'}"
