from __future__ import annotations

import pytest

from mask2former.ops import extension


@pytest.fixture(params=["reference", "compiled"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chooses each implementation for CPUs in turn."""
    if request.param == "compiled" and (problem := extension.problem("cpu")):
        pytest.skip(problem)
    monkeypatch.setenv("MASK2FORMER_OPS", request.param)
    return request.param
