from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mask2former.ops import build


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit whose nvcc says that it is of CUDA 13, for a PyTorch of CUDA 13."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return script(tmp_path / "cuda" / "bin" / "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.48'")


def test_cuda_is_compiled_where_the_toolkit_fits(toolkit: Path) -> None:
    assert build.cuda_problem() is None


def test_cuda_needs_a_gpu_or_force(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_CUDA")
    assert "no GPU is visible" in str(build.cuda_problem())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build.cuda_problem() is None


def test_cuda_needs_a_toolkit(toolkit: Path) -> None:
    toolkit.unlink()
    assert "there is no nvcc" in str(build.cuda_problem())


def test_cuda_needs_the_same_major_version(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "is of CUDA 13, but this PyTorch needs one of CUDA 12" in str(build.cuda_problem())


def test_cuda_needs_a_pytorch_with_it(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in str(build.cuda_problem())


def test_an_nvcc_that_fails_is_a_reason(toolkit: Path) -> None:
    script(toolkit, "exit 3")
    assert "failed with status 3" in str(build.cuda_problem())


def test_architectures(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.cuda_architectures() == ["8.0", "9.0+PTX"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert build.cuda_architectures() == ["7.5", "8.0", "9.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;10.0+PTX")
    assert build.cuda_architectures() == ["9.0", "10.0+PTX"]


def test_commands_with_cuda(toolkit: Path, tmp_path: Path) -> None:
    commands = build._compile_commands(tmp_path, cuda=True)
    (cuda,) = (command for command in commands.values() if command[0] == str(toolkit))
    assert "arch=compute_80,code=sm_80" in cuda
    assert "arch=compute_90,code=compute_90" in cuda
    assert len(commands) == 3 + len(build.CAPABILITIES)
    assert "-lc10_cuda" in build._link_command(list(commands), tmp_path / "x.so", cuda=True)
    assert "-lc10_cuda" not in build._link_command(list(commands), tmp_path / "x.so", cuda=False)


def test_commands_on_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's compiler takes OpenMP only behind `-Xclang`, and PyTorch brings the library."""
    monkeypatch.setattr(build.sys, "platform", "darwin")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    libomp = tmp_path / "torch" / "lib" / "libomp.dylib"
    for command in build._compile_commands(tmp_path, cuda=False).values():
        assert command[command.index("-fopenmp") - 1] == "-Xclang"
    assert build._link_command(["a.o"], tmp_path / "x.so", cuda=False)[-2:] == ["-Xclang", "-fopenmp"]
    script(libomp, "")
    link = build._link_command(["a.o"], tmp_path / "x.so", cuda=False)
    assert str(libomp) in link
    assert "-fopenmp" not in link


def test_other_systems_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.sys, "platform", "win32")
    with pytest.raises(build.BuildError, match="for Linux and macOS, not win32"):
        build.build(tmp_path / "ops.so", cuda=False)


def test_as_many_compilers_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "sched_getaffinity", lambda _: {0, 5, 6}, raising=False)
    assert build._processors() == 3
    monkeypatch.delattr(build.os, "sched_getaffinity")  # macOS has none
    monkeypatch.setattr(build.os, "cpu_count", lambda: 7)
    assert build._processors() == 7


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("/bin/false", "/bin/false failed with status 1"),
        ("no-such-compiler -x", "no C\\+\\+ compiler no-such-compiler"),
    ],
)
def test_without_a_compiler_nothing_is_left(
    compiler: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.BuildError, match=message):
        build.build(tmp_path / "ops.so", cuda=False)
    assert not list(tmp_path.iterdir())


def test_the_compiler_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++", "echo 'no such header' >&2; exit 1")))
    with pytest.raises(build.BuildError, match="no such header"):
        build.build(tmp_path / "ops.so", cuda=False)


def test_key_changes_with_what_the_library_is_made_for_and_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SOURCE", Path(shutil.copytree(build.SOURCE, tmp_path / "csrc")))
    key = build.key.__wrapped__
    keys = [key()]
    with (tmp_path / "csrc" / "cpu" / "kernel.cpp").open("a") as file:
        file.write("// changed\n")
    keys.append(key())
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    keys.append(key())
    monkeypatch.setattr(build, "COMPILE_FLAGS", ["-O0"])
    keys.append(key())
    assert len(set(keys)) == 4
    assert key() == keys[-1]
