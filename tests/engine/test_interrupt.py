"""The first signal waits for the end of the step, the second does not."""

import os
import signal
import threading

import pytest

from mask2former.engine.interrupt import StopRequest


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_first_signal_is_kept_until_asked_for(number, error):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert signal.getsignal(number) == before  # the second one acts at once
    with pytest.raises(error):
        stop.raise_again()


def test_without_a_signal_nothing_happens():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        pass
    stop.raise_again()
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
