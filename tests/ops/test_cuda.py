from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mask2former.ops
from tests.helpers.deform_attn import Inputs, Results, assert_results_close, make_inputs

SOURCES = Path(mask2former.ops.__file__).parent / "csrc" / "cuda"
DTYPES = [
    # value, weights, locations
    (torch.float32, torch.float32, torch.float32),
    (torch.float64, torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float16, torch.float16, torch.float32),
    (torch.float16, torch.float32, torch.float16),
]


def compile_source(compiler: str, *arguments: str | Path) -> None:
    from torch.utils.cpp_extension import include_paths

    includes = [part for path in include_paths() for part in ("-isystem", path)]
    command = [compiler, "-std=c++20", *includes, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]


def nvcc() -> str:
    folders = [str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")), os.environ["PATH"]]
    path = shutil.which("nvcc", path=os.pathsep.join(folders))
    if path is None or not torch.version.cuda:
        pytest.skip("needs nvcc, and a PyTorch with CUDA")
    return path


def test_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    architectures = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90)]
    target = tmp_path / "ms_deform_attn.o"
    flags = ["--expt-relaxed-constexpr", "-Werror", "all-warnings", "-Xcompiler", "-fPIC"]
    compile_source(nvcc(), *flags, *architectures, "-c", SOURCES / "ms_deform_attn.cu", "-o", target)
    assert target.stat().st_size > 100_000


@pytest.mark.parametrize(("version", "vectors"), [((11, 8), False), ((12, 0), False), ((12, 1), True), ((13, 0), True)])
def test_vectors_are_added_only_where_cuda_can(version: tuple[int, int], vectors: bool) -> None:
    """CUDA 11.8 compiles for Hopper too, but has no `atomicAdd` for `float4`."""
    lines = (SOURCES / "ms_deform_attn.cu").read_text(encoding="utf-8").splitlines()
    source = "\n".join(line for line in lines if not line.startswith("#include"))
    defines = ["__CUDA_ARCH__=900", f"__CUDACC_VER_MAJOR__={version[0]}", f"__CUDACC_VER_MINOR__={version[1]}"]
    command = [shutil.which("g++") or pytest.skip("needs g++"), "-E", "-x", "c++", "-", *(f"-D{d}" for d in defines)]
    output = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    assert ("atomicAdd(reinterpret_cast<float4*>" in output) is vectors


# What the kernels do for each query and head, with threads in the place of a warp's lanes.


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("emulation") / "emulation.so"
    source = Path(__file__).parent / "cuda_emulation.cpp"
    compile_source(compiler, "-O1", "-shared", "-fPIC", "-pthread", "-I", SOURCES, source, "-o", library)
    return ctypes.CDLL(str(library))


def emulate(library: ctypes.CDLL, function: str, inputs: Inputs, lanes: int) -> Results:
    value, shapes, locations, weights, grad_output = inputs
    B, _, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    sizes = [B, Q, M, D, L, P, *(size for shape in shapes for size in shape)]
    accumulate = torch.promote_types(value.dtype, torch.float32)
    output = torch.full((B, Q, M * D), torch.nan, dtype=value.dtype)
    gradients = (
        torch.zeros(value.shape, dtype=accumulate),
        torch.full(locations.shape, torch.nan, dtype=accumulate),
        torch.full(weights.shape, torch.nan, dtype=weights.dtype),
    )
    tensors = [value, locations, weights, output, grad_output, *gradients]
    assert all(x.is_contiguous() for x in tensors)
    pointers = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    getattr(library, function)((ctypes.c_int * len(sizes))(*sizes), lanes, pointers)
    return Results(output, gradients[0].to(value.dtype), *gradients[1:])


@pytest.mark.parametrize(
    ("function", "lanes", "options"),
    [
        ("float_1", 1, {"width": 5}),
        ("float_1", 4, {"width": 7}),  # more channels than lanes: a second turn
        ("float_4", 8, {"width": 32, "batch": 1}),
        ("float_4", 4, {"width": 40, "queries": 2}),
        ("double_2", 4, {"width": 8, "dtype": torch.float64, "locations_dtype": torch.float64}),
        ("bfloat16_8", 4, {"width": 32, "dtype": torch.bfloat16}),
        ("bfloat16_8_float", 8, {"width": 40, "dtype": torch.bfloat16, "weights_dtype": torch.float32, "queries": 2}),
    ],
)
def test_emulated_kernels_equal_the_reference(
    emulation: ctypes.CDLL, function: str, lanes: int, options: dict[str, Any]
) -> None:
    inputs = make_inputs(**options)
    assert_results_close(emulate(emulation, function, inputs, lanes), inputs)


def test_emulated_kernels_read_nothing_for_points_outside(emulation: ctypes.CDLL) -> None:
    inputs = make_inputs()
    inputs.value.fill_(torch.inf)
    for far in (-9.0, 1e30, torch.inf, torch.nan):
        inputs.sampling_locations[..., 0] = far
        results = emulate(emulation, "float_1", inputs, 4)
        assert all((x == 0).all() for x in results)


# On a GPU. What is launched is what `MASK2FORMER_OPS=compiled` chooses.


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    nvcc()
    monkeypatch.setenv("MASK2FORMER_OPS", "compiled")
    assert mask2former.ops.backend("cuda") == "compiled"


def run(inputs: Inputs) -> Results:
    """Outputs and gradients of the op, on the CPU."""
    tensors = [x.detach().requires_grad_() for x in (inputs.value, inputs.sampling_locations, inputs.attention_weights)]
    output = mask2former.ops.ms_deform_attn(tensors[0], inputs.spatial_shapes, *tensors[1:])
    gradients = torch.autograd.grad(output, tensors, inputs.grad_output)
    return Results(*(x.detach().cpu() for x in (output, *gradients)))


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("width", [1, 7, 32, 40, 64, 300])
@pytest.mark.parametrize(("dtype", "weights_dtype", "locations_dtype"), DTYPES)
def test_equals_the_reference(
    width: int, dtype: torch.dtype, weights_dtype: torch.dtype, locations_dtype: torch.dtype
) -> None:
    inputs = make_inputs(
        width=width, dtype=dtype, weights_dtype=weights_dtype, locations_dtype=locations_dtype, queries=70
    )
    assert_results_close(run(inputs.to("cuda")), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_strided_and_misaligned_input() -> None:
    inputs = make_inputs(width=32)
    strided = inputs.to("cuda")._replace(
        value=inputs.value.cuda().transpose(1, 2).contiguous().transpose(1, 2),
        sampling_locations=torch.stack([inputs.sampling_locations.cuda()] * 2, dim=-1)[..., 0],
        grad_output=torch.cat([inputs.grad_output.new_zeros(1), inputs.grad_output.flatten()])
        .cuda()[1:]
        .view(inputs.grad_output.shape),
    )
    assert strided.grad_output.data_ptr() % 16 == 4
    assert_results_close(run(strided), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}])
def test_empty_input(empty: dict[str, int]) -> None:
    inputs = make_inputs(**empty)
    assert_results_close(run(inputs.to("cuda")), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_more_images_than_a_grid_has_rows() -> None:
    inputs = make_inputs(width=4, batch=65537, queries=1, spatial_shapes=((1, 2),))
    assert_results_close(run(inputs.to("cuda")), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_runs_on_the_current_stream_without_waiting() -> None:
    inputs = make_inputs(width=32, dtype=torch.bfloat16)
    on_device = inputs.to("cuda")
    run(on_device)  # builds and loads what is needed
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    tensors = [
        x.detach().requires_grad_()
        for x in (on_device.value, on_device.sampling_locations, on_device.attention_weights)
    ]
    with torch.cuda.stream(stream):
        # Longer than the host needs to launch: on another stream the op would read zeros.
        late = torch.zeros_like(on_device.value)
        busy = torch.zeros(8192, 8192, device="cuda")
        for _ in range(20):
            busy = busy @ busy
        late.copy_(on_device.value)
        tensors[0] = late.requires_grad_()
        torch.cuda.set_sync_debug_mode("error")
        try:
            output = mask2former.ops.ms_deform_attn(tensors[0], inputs.spatial_shapes, *tensors[1:])
            gradients = torch.autograd.grad(output, tensors, on_device.grad_output)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert_results_close(Results(*(x.detach().cpu() for x in (output, *gradients))), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_backward_reports_that_it_is_not_deterministic() -> None:
    inputs = make_inputs().to("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            run(inputs)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([5, 3, 1, 1, 2, 6], "the levels .* have 28 positions, but value has 30"),
        ([5, 3, 1, 1, 2, 8], "more positions than value"),
        ([5, 3, 0, 1, 2, 7], "level 1 of size 0 x 1"),
        ([5, 3, 1, 1], "of 3 levels, not 4 numbers"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: list[int], message: str) -> None:
    inputs = make_inputs().to("cuda")
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mask2former.ms_deform_attn_forward(
            inputs.value, sizes, inputs.sampling_locations, inputs.attention_weights
        )


@pytest.mark.gpu
@pytest.mark.usefixtures("compiled")
def test_too_many_levels_are_refused() -> None:
    inputs = make_inputs(spatial_shapes=((1, 1),) * 17).to("cuda")
    with pytest.raises(RuntimeError, match="at most 16 levels"):
        run(inputs)
