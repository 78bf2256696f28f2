"""Signals end a run at the end of a step; who repeats them is heard, and what hangs is ended all the same."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest

from mask2former.engine.interrupt import SIGNALS, StopRequest, raise_stop


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_first_signal_is_kept(number, error):
    before = [signal.getsignal(other) for other in SIGNALS]
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert [signal.getsignal(other) for other in SIGNALS] == before
    with pytest.raises(error) as raised:
        raise_stop(number)
    assert number == signal.SIGINT or raised.value.code == 143
    with stop:
        assert stop.signal is None


def test_second_sigint_raises_at_once_and_the_third_does_not():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGINT


def test_nothing_is_raised_once_saving_has_begun():
    with StopRequest() as stop:
        stop.hold()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert stop.signal == signal.SIGINT


def test_more_of_sigterm_change_nothing():
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM


def test_after_the_grace_the_process_saves_and_ends():
    """While the main thread is in code that never comes back to Python."""
    code = """
import os, signal, sys, threading
from mask2former.engine.interrupt import StopRequest
with StopRequest(grace=0.2, at_deadline=lambda: print("saved", flush=True)):
    os.kill(os.getpid(), signal.SIGTERM)
    lock = threading.Lock(); lock.acquire(); lock.acquire()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (143, "saved\n")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="for systems that fork")
def test_a_forked_process_has_the_usual_handlers():
    with StopRequest() as stop:
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
