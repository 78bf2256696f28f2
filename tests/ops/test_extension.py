from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mask2former.ops import build, extension

ROOT = Path(__file__).resolve().parents[2]

# Notes that it was called, takes a while, and writes what `-o` names.
COMPILER = """#!/bin/sh
echo x >> "{log}"
sleep 0.3
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then echo compiled > "$2"; fi
  shift
done
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "cuda_problem", lambda: "no GPU is visible")
    monkeypatch.setattr(extension, "PACKAGE", tmp_path / "package")
    extension._load.cache_clear()
    yield
    extension._load.cache_clear()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a compiler that is quick."""
    log, compiler = tmp_path / "log", tmp_path / "c++"
    compiler.write_text(COMPILER.format(log=log))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return log


def count(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_the_op_is_built_once_into_the_cache(calls: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        path, cuda_failure = extension.find_or_build()
    assert path.parent == tmp_path / "cache"
    assert cuda_failure == "the compiled op is for CPUs alone: no GPU is visible"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert str(path) in caplog.text
    assert count(calls) == 2 + len(build.CAPABILITIES) + 1
    assert extension.find_or_build()[0] == path
    assert count(calls) == 2 + len(build.CAPABILITIES) + 1
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".lock", ".sha256", ".so"]


@pytest.mark.parametrize("damage", ["cut", "changed", "unsealed"])
def test_a_damaged_library_is_built_anew(calls: Path, damage: str) -> None:
    path, _ = extension.find_or_build()
    once = count(calls)
    if damage == "unsealed":
        path.with_name(f"{path.name}.sha256").unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"other")
    assert extension.find_or_build()[0] == path
    assert path.read_text() == "compiled\n"
    assert count(calls) == 2 * once
    assert build.is_whole(path)


def test_two_processes_build_once(calls: Path) -> None:
    code = "from mask2former.ops import extension; print(extension.find_or_build()[0])"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "FORCE_CUDA": "0", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert count(calls) == 2 + len(build.CAPABILITIES) + 1


def test_a_lock_that_a_dead_process_left_is_free(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / build.library_name(cuda=False)).with_suffix(".lock").touch()
    assert extension.find_or_build()[0].is_file()


def test_what_was_installed_is_taken(calls: Path) -> None:
    extension.PACKAGE.mkdir()
    installed = extension.PACKAGE / build.library_name(cuda=False)
    installed.touch()
    assert extension.find_or_build()[0] == installed
    with_cuda = extension.PACKAGE / build.library_name(cuda=True)
    with_cuda.touch()
    if torch.version.cuda:
        assert extension.find_or_build() == (with_cuda, None)
    assert count(calls) == 0


def test_what_was_built_for_another_pytorch_is_not_taken(calls: Path) -> None:
    extension.PACKAGE.mkdir()
    (extension.PACKAGE / "ms_deform_attn-0123456789abcdef-cpu.so").touch()
    assert extension.find_or_build()[0].parent != extension.PACKAGE


def test_cuda_that_does_not_compile_leaves_the_cpu(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build, "cuda_problem", lambda: None)
    monkeypatch.setattr(build, "_nvcc", lambda: "/bin/false")
    path, cuda_failure = extension.find_or_build()
    assert path.name == build.library_name(cuda=False)
    assert "its CUDA part could not be built: /bin/false failed" in str(cuda_failure)


def test_a_cache_that_cannot_be_written_has_a_substitute(calls: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "cache").touch()  # a file where the folder should be: root may write to read-only folders
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(extension.tempfile, "tempdir", str(tmp_path / "temporary"))
    path, _ = extension.find_or_build()
    assert path.parent == tmp_path / "temporary" / f"mask2former-{os.getuid()}"
    assert "cannot be written to" in caplog.text
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_substitute_that_others_can_write_to_is_refused(calls: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").touch()
    folder = tmp_path / "temporary" / f"mask2former-{os.getuid()}"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setattr(extension.tempfile, "tempdir", str(tmp_path / "temporary"))
    assert "can be written to by others" in str(extension.problem("cpu"))
    assert count(calls) == 0


def test_no_place_at_all_is_a_reason(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setattr(extension.tempfile, "tempdir", str(tmp_path / "cache"))
    assert "MASK2FORMER_CACHE names another" in str(extension.problem("cpu"))


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    assert "could not be built: /bin/false failed" in str(extension.problem("cpu"))
    assert "could not be built" in str(extension.problem("cuda"))


def test_a_library_that_cannot_be_loaded_is_a_reason(calls: Path) -> None:
    assert "cannot be loaded" in str(extension.problem("cpu"))


def test_other_devices_have_none() -> None:
    assert extension.problem("mps") == "there is no compiled op for the device mps"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASK2FORMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert extension.cache_folder() == Path("/somewhere/mask2former")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert extension.cache_folder() == Path("/home/someone/.cache/mask2former")
