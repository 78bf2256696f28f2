"""A training that is killed at any moment goes on as if it had not been, in weights, metrics and events."""

import signal

import pytest

from tests.engine.test_trainer import assert_identical
from tests.helpers import killing

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="for systems that can kill")


def test_twenty_kills_leave_no_trace(tmp_path):
    straight, killed = killing.kill_and_resume(tmp_path, kills=20, seed=0)
    assert_identical(killing.state(straight), killing.state(killed))
    assert killing.metrics(killed) == killing.metrics(straight)
    assert len(killing.metrics(killed)) == 31
    assert killing.events(killed) == killing.events(straight)
    assert not list(killed.rglob("*.tmp"))
    assert (killed / "log.txt").read_text().count("Resuming at iteration") > 10
