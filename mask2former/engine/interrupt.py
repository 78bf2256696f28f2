"""Ending a run at the end of a step when the user or the machine's scheduler asks for it."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


_active: "StopRequest | None" = None


def _restore_in_child() -> None:
    """A forked process, such as one that loads data, is not the one that stops and saves."""
    if _active is not None:
        _active.restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


class StopRequest:
    """Context in which SIGINT and SIGTERM only set `signal`, the first of them; whoever runs steps looks at it.

    A second SIGINT raises KeyboardInterrupt at once, for the impatient. More of SIGTERM change nothing: launchers and
    schedulers send several, also to process groups. But they kill in the end, so that after `grace` seconds
    `at_deadline` is called, in another thread, and the process ends with 128 + SIGTERM: the main thread may wait for
    a process that is gone, or for a long step or evaluation.

    Outside the main thread, where Python allows no handlers, the context does nothing.
    """

    def __init__(self, *, grace: float = 10.0, at_deadline: Callable[[], None] = lambda: None) -> None:
        self.signal: int | None = None
        self._grace = grace
        self._at_deadline = at_deadline
        self._may_raise = True
        self._ended = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        global _active
        self.signal = None
        self._may_raise = True
        self._ended.clear()
        if threading.current_thread() is threading.main_thread():
            # Python calls handlers between two instructions of the main thread, but tells this socket at once
            receiver, self._sender = socket.socketpair()
            self._sender.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
            threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()
            _active = self
        return self

    def __exit__(self, *exception: object) -> None:
        global _active
        self._ended.set()
        if _active is self:
            _active = None
            self.restore()

    def restore(self) -> None:
        """Give the signals back to who had them before."""
        signal.set_wakeup_fd(self._previous_fd)
        self._sender.close()  # ends the thread
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            again = "; repeat it to stop at once" if number == signal.SIGINT else ""
            logger.warning("%s: training stops after this step and saves%s", signal.Signals(number).name, again)
        elif number == signal.SIGINT and self._may_raise:
            self._may_raise = False
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From now on nothing is raised: what is being saved shall not be interrupted."""
        self._may_raise = False

    def _watch(self, receiver: socket.socket) -> None:
        with receiver:
            while numbers := receiver.recv(64):
                if signal.SIGTERM in numbers:
                    if not self._ended.wait(self._grace):
                        self._at_deadline()
                        logging.shutdown()
                        os._exit(128 + signal.SIGTERM)
                    return


def raise_stop(number: int) -> NoReturn:
    """Raise what a signal normally raises."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
