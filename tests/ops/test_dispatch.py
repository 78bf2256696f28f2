from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from mask2former.ops import backend, dispatch, extension, library


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MASK2FORMER_OPS", raising=False)
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


@pytest.fixture
def no_compiled_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "problem", lambda device: f"no compiler for {device}")


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Stands for kernels that can be imported; collects what is registered for which device."""
    registered: list[tuple[str, str]] = []
    kernels = SimpleNamespace(forward=lambda: None, backward=lambda: None, probe=lambda: None)
    monkeypatch.setitem(sys.modules, "mask2former.ops.triton", kernels)
    implement = SimpleNamespace(impl=lambda name, function, device: registered.append((name, device)))
    monkeypatch.setattr(library, "LIBRARY", implement)
    return registered


def test_the_compiled_op_is_the_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(extension, "problem", lambda device: asked.append(device))
    assert backend() == backend("cpu") == backend(torch.device("cpu")) == "compiled"
    assert backend("cuda:1") == "compiled"
    assert asked == ["cpu", "cuda"], "each device is asked for once"


def test_the_reference_takes_its_place_with_one_warning(no_compiled_op: None, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert [backend(), backend(), backend("cpu")] == ["reference"] * 3
    (record,) = caplog.records
    assert "no compiler for cpu" in record.getMessage()


def test_triton_takes_its_place_on_gpus(no_compiled_op: None, triton_kernels: list[tuple[str, str]], caplog) -> None:
    assert backend("cuda") == "triton"
    assert triton_kernels == [(library.FORWARD, "CUDA"), (library.BACKWARD, "CUDA")]
    assert not caplog.records


def test_triton_that_cannot_launch_is_not_taken(
    no_compiled_op: None, triton_kernels: list[tuple[str, str]], caplog
) -> None:
    asked: list[int] = []

    def probe() -> None:
        asked.append(1)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    sys.modules["mask2former.ops.triton"].probe = probe  # type: ignore[attr-defined]
    assert [backend("cuda"), backend("cuda")] == ["reference"] * 2
    assert not triton_kernels, "nothing is registered that does not work"
    assert "Triton cannot launch its kernels (Failed to find C compiler" in caplog.text
    assert len(asked) == 1


def test_reasons_are_joined(no_compiled_op: None, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "mask2former.ops.triton", None)
    assert backend("cuda") == "reference"
    assert "no compiler for cuda; Triton cannot be imported" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "meta"])
def test_the_reference_is_for_every_device(device: str, no_compiled_op: None, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "reference")
    assert backend(device) == "reference"
    assert not caplog.records


@pytest.mark.parametrize(
    ("choice", "device", "message"),
    [
        ("compiled", "cpu", "no compiler for cpu.*MASK2FORMER_OPS=auto"),
        ("compiled", "cuda", "no compiler for cuda"),
        ("triton", "cpu", "Triton needs a GPU"),
    ],
)
def test_an_impossible_choice_is_an_error(
    choice: str, device: str, message: str, no_compiled_op: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", choice)
    with pytest.raises(RuntimeError, match=message):
        backend(device)


def test_an_unknown_choice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "cuda")
    with pytest.raises(ValueError, match="MASK2FORMER_OPS=cuda is none of auto, reference, compiled, triton"):
        backend()


def test_an_empty_choice_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "")
    monkeypatch.setattr(extension, "problem", lambda device: None)
    assert backend() == "compiled"
