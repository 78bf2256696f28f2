"""Compile the ops of `csrc`. Used on the first use of an op, and by setup.py, which loads this file by itself."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "csrc"
CUDA_SOURCE = "cuda/ms_deform_attn.cu"

COMPILE_FLAGS = ["-O3", "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]  # of g++ and clang++
CUDA_FLAGS = ["-O3", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr", "--expt-extended-lambda"]

# The kernels are compiled once for each of these sets of instructions; the processor decides when they are called.
CAPABILITIES: dict[str, list[str]] = {"DEFAULT": []}
if platform.machine() in ("x86_64", "AMD64"):
    CAPABILITIES["AVX2"] = ["-mavx2", "-mfma", "-mf16c"]
    CAPABILITIES["AVX512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]


class BuildError(RuntimeError):
    """The ops cannot be compiled: the message says why."""


@functools.cache
def key() -> str:
    """Return what a compiled library must have been made for and of, as a short hexadecimal string."""
    settings = [torch.__version__, str(torch.version.cuda), platform.machine(), _standard()]
    settings += [*COMPILE_FLAGS, *CUDA_FLAGS, *(flag for flags in CAPABILITIES.values() for flag in flags)]
    digest = hashlib.sha256("\n".join(settings).encode())
    for path in sorted(path for path in SOURCE.rglob("*") if path.is_file()):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def library_name(*, cuda: bool) -> str:
    """Return the file name of the library that fits this PyTorch and these sources."""
    return f"ms_deform_attn-{key()}-{'cuda' if cuda else 'cpu'}.so"


def cuda_problem() -> str | None:
    """Return why no CUDA code can be compiled here, or None if it can.

    `FORCE_CUDA=1` compiles it where no GPU is visible.
    """
    if not torch.version.cuda:
        return "this PyTorch was built without CUDA"
    if os.environ.get("FORCE_CUDA", "0") != "1" and not torch.cuda.is_available():
        return "no GPU is visible (FORCE_CUDA=1 compiles for one all the same)"
    nvcc = _nvcc()
    if nvcc is None:
        return "there is no nvcc: install the CUDA toolkit, or let CUDA_HOME point to it"
    try:
        version = re.search(r"release (\d+)\.", _run([nvcc, "--version"]))
    except BuildError as error:
        return str(error)
    major = torch.version.cuda.partition(".")[0]
    if version is None or version[1] != major:
        return f"{nvcc} is of CUDA {version[1] if version else '?'}, but this PyTorch needs one of CUDA {major}"
    return None


def cuda_architectures() -> list[str]:
    """Return the compute capabilities to compile for, as in "9.0" or "9.0+PTX", from `TORCH_CUDA_ARCH_LIST` if set."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if listed:
        return listed
    architectures = ["8.0", "9.0+PTX"]
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability < (8, 0):
            architectures.insert(0, "{}.{}".format(*capability))
    return architectures


def build(target: Path, *, cuda: bool) -> None:
    """Compile the ops into the library `target`, which appears when it is whole.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    if sys.platform not in ("linux", "darwin"):
        raise BuildError(f"the compiled ops are for Linux and macOS, not {sys.platform}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        commands = _compile_commands(Path(folder), cuda=cuda)
        workers = int(os.environ.get("MAX_JOBS") or 0) or _processors()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(_run, commands.values()))
        library = Path(folder, target.name)
        _run(_link_command(list(commands), library, cuda=cuda))
        with library.open("rb") as stream:
            os.fsync(stream.fileno())
        _checksum_file(target).write_text(_checksum(library), encoding="utf-8")
        os.replace(library, target)


def is_whole(library: Path) -> bool:
    """Whether a library is there as `build` wrote it: to load one that was cut off ends the process."""
    checksum = _checksum_file(library)
    return library.is_file() and checksum.is_file() and checksum.read_text(encoding="utf-8") == _checksum(library)


def _checksum_file(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _compile_commands(folder: Path, *, cuda: bool) -> dict[str, list[str]]:
    """Object file -> the command that makes it."""
    # As torch.utils.cpp_extension has it, which on import is slow and talks about CUDA.
    include = Path(torch.__file__).parent / "include"
    includes = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    common = [f"-std={_standard()}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", *includes]
    compiler = [*_compiler(), *common, *COMPILE_FLAGS, *_openmp_flags()]
    commands = {
        "bindings.o": [*compiler, "-c", str(SOURCE / "bindings.cpp")],
        "host.o": [*compiler, "-c", str(SOURCE / "cpu" / "ms_deform_attn.cpp")],
    }
    # In this order: of functions that several objects hold, the linker takes the first, which every processor can run.
    for name, flags in CAPABILITIES.items():
        defines = [f"-DCPU_CAPABILITY={name}", f"-DCPU_CAPABILITY_{name}"]
        commands[f"kernel_{name}.o"] = [*compiler, *defines, *flags, "-c", str(SOURCE / "cpu" / "kernel.cpp")]
    if cuda:
        nvcc = _nvcc()
        assert nvcc, "cuda_problem() has said so"
        commands["cuda.o"] = [nvcc, "-ccbin", _compiler()[0], *common, *CUDA_FLAGS, *_architecture_flags()]
        commands["cuda.o"] += ["-c", str(SOURCE / CUDA_SOURCE)]
    return {str(folder / name): [*command, "-o", str(folder / name)] for name, command in commands.items()}


def _link_command(objects: list[str], library: Path, *, cuda: bool) -> list[str]:
    torch_libraries = Path(torch.__file__).parent / "lib"
    # The OpenMP of PyTorch itself, if it brings one: two in a process do not know of each other's threads.
    brought = [*torch_libraries.glob("libgomp*.so*"), *torch_libraries.glob("libomp*.dylib")]
    openmp = [str(path) for path in sorted(brought)[:1]] or _openmp_flags()
    command = [*_compiler(), "-shared", *objects, "-o", str(library), f"-L{torch_libraries}"]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", *openmp]
    # The CUDA runtime is the one that PyTorch has loaded.
    return [*command, "-ltorch_cuda", "-lc10_cuda"] if cuda else command


def _architecture_flags() -> list[str]:
    flags = []
    for architecture in cuda_architectures():
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if architecture.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def _standard() -> str:
    """The C++ standard that PyTorch itself was compiled with."""
    version = re.search(r"C\+\+ Version: 20(\d\d)", torch.__config__.show())
    return f"c++{version[1] if version else 17}"


def _openmp_flags() -> list[str]:
    """Apple's compiler knows OpenMP, of which PyTorch brings header and library, but hides it."""
    return ["-Xclang", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(command[0]) is None:
        raise BuildError(f"there is no C++ compiler {command[0]}: install g++, or let CXX name one")
    return command


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [str(Path(home, "bin"))] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def _run(command: list[str]) -> str:
    """Run a command and return what it writes."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if result.returncode:
        output = (result.stderr or result.stdout).strip() or "no message"
        raise BuildError(f"{command[0]} failed with status {result.returncode}: {output[-2000:]}")
    return result.stdout
