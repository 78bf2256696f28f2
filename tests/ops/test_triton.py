"""The Triton kernels: interpreted on the CPU, compiled without a GPU, and run on one where there is one.

Whether kernels are interpreted is settled when they are imported, so each part runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

REPOSITORY = Path(__file__).resolve().parents[2]

CASES = """
import torch
import mask2former.ops.triton as kernels
from tests.helpers.deform_attn import Inputs, Results, assert_results_close, make_inputs

def run(value, shapes, locations, weights, grad_output):
    sizes = [size for shape in shapes for size in shape]
    output = kernels.forward(value, sizes, locations, weights)
    gradients = kernels.backward(grad_output, value, sizes, locations, weights)
    return Results(*(x.cpu() for x in (output, *gradients)))

def check(inputs):
    assert_results_close(run(*inputs.to(DEVICE)), inputs)

f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
for width, value, weights, locations in (
    (7, f32, f32, f32), (32, bf16, bf16, f32), (40, f16, f32, f32), (1, bf16, f32, f16), (8, f64, f64, f64)
):
    check(make_inputs(width=width, dtype=value, weights_dtype=weights, locations_dtype=locations))
check(make_inputs(width=300, queries=2))
check(make_inputs(queries=70))
check(make_inputs(spatial_shapes=((1, 1),) * 8))
check(make_inputs(batch=0))
check(make_inputs(queries=0))

inputs = make_inputs()
strided = inputs.to(DEVICE)._replace(
    value=inputs.value.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2),
    sampling_locations=torch.stack([inputs.sampling_locations.to(DEVICE)] * 2, dim=-1)[..., 0],
    grad_output=torch.stack([inputs.grad_output.to(DEVICE)] * 2, dim=-1)[..., 0],
)
assert not any(x.is_contiguous() for x in (strided.value, strided.sampling_locations, strided.grad_output))
assert_results_close(run(*strided), inputs)

inputs.value.fill_(torch.inf)
for far in (-9.0, 1e30, torch.inf, torch.nan):
    inputs.sampling_locations[..., 0] = far
    assert all((x == 0).all() for x in run(*inputs.to(DEVICE)))

try:
    check(make_inputs(spatial_shapes=((1, 1),) * 9))
except ValueError as error:
    assert "at most 8 levels, not 9" in str(error)
else:
    raise AssertionError("nine levels were taken")

torch.use_deterministic_algorithms(True)
try:
    check(make_inputs())
except RuntimeError as error:
    assert "does not have a deterministic implementation" in str(error)
else:
    raise AssertionError("gradients that differ from run to run were called deterministic")
"""

COMPILATION = """
import triton.language as tl
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import mask2former.ops.triton as kernels

def source(kernel, value, weights, accumulate):
    pointers = {"value": value, "output": value, "grad_output": value, "weights": weights, "grad_weights": weights}
    pointers |= dict.fromkeys(("locations", "grad_locations", "grad_value"), accumulate)
    constants = dict(M=8, D=32, L=3, P=4, BLOCK_ROWS=32, BLOCK_D=32)
    constants["ACC"] = {"fp32": tl.float32, "fp64": tl.float64}[accumulate]
    signature = {}
    for name in kernel.arg_names:
        number = "i64" if name.startswith("level") else "i32"
        signature[name] = "constexpr" if name in constants else "*" + pointers[name] if name in pointers else number
    return ASTSource(fn=kernel, signature=signature, constexprs=constants)

for architecture in (80, 90):
    for types in (("bf16", "fp32", "fp32"), ("fp16", "fp16", "fp32"), ("fp64", "fp64", "fp64")):
        for kernel in (kernels._forward_kernel, kernels._backward_kernel):
            compiled = triton.compile(source(kernel, *types), target=GPUTarget("cuda", architecture, 32))
            assert f".target sm_{architecture}" in compiled.asm["ptx"] and compiled.asm["cubin"]
"""

DISPATCH = """
import torch
import mask2former.ops
from tests.helpers.deform_attn import Results, assert_results_close, make_inputs

assert mask2former.ops.backend("cuda") == "triton"
inputs = make_inputs(width=32, dtype=torch.bfloat16)
value, shapes, locations, weights, grad_output = inputs.to("cuda")
tensors = [x.requires_grad_() for x in (value, locations, weights)]

def run():
    output = mask2former.ops.ms_deform_attn(value, shapes, locations, weights)
    return output, *torch.autograd.grad(output, tensors, grad_output)

run()  # compiles
stream = torch.cuda.Stream()
torch.cuda.synchronize()
torch.cuda.set_sync_debug_mode("error")
with torch.cuda.stream(stream):
    results = run()
torch.cuda.set_sync_debug_mode("default")
stream.synchronize()
assert_results_close(Results(*(x.detach().cpu() for x in results)), inputs)
"""


def run(code: str, cache: Path, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-5000:]


def test_interpreted_kernels_equal_the_reference(tmp_path: Path) -> None:
    run('DEVICE = "cpu"\n' + CASES, tmp_path, TRITON_INTERPRET="1")


def test_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    run(COMPILATION, tmp_path, TRITON_INTERPRET="0")


def test_the_package_does_not_import_triton(tmp_path: Path) -> None:
    run('import sys, mask2former.ops; assert "mask2former.ops.triton" not in sys.modules', tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_equal_the_reference(tmp_path: Path) -> None:
    run('DEVICE = "cuda"\n' + CASES, tmp_path, TRITON_INTERPRET="0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dispatch_on_a_side_stream_without_waiting(tmp_path: Path) -> None:
    run(DISPATCH, tmp_path, TRITON_INTERPRET="0", MASK2FORMER_OPS="triton")
